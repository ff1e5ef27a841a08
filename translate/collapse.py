"""Is the adversarial game lost? A judge that is always right, and a generator that always draws the same.

A judge is saturated when its loss stays near 0: then it hardly tells the generator where to go. For logits of t on real
and -t on generated images the logistic loss is 2·softplus(-t), below 0.003 from t = 6.5 on; since a wrong verdict costs
log 2 at least, the shares of wrong verdicts on both add up to loss / log 2 at most, 0.4 % there. For scores that are e
away from 1 and 0 the least-squares loss is e², below 0.003 from e = 0.055 on; a wrong verdict costs ⅛ at least, and the
shares add up to 2.4 % at most. (The judge of masks of a sound run of the tiny preset came down to 0.009 once.)

Modes have collapsed when translations of different sources, or one source in different styles, hardly differ: the mean
distance of their pixels (L1) is a small share of that between tiles of real target tissue.
"""

import torch
from torch import Tensor

from histo.running.alarms import Rule
from translate.agreement import Probe
from translate.engine import Translator
from translate.fidelity import mean_pairwise_distance

STYLES, STYLED = 4, 4  # styles, and sources that are drawn in each


SATURATED = Rule(
    0.003,
    5,
    "this judge tells real from generated without fail, and its logits are saturated",
    "raise ada.probability or use ada.kind adaptive, lower --train.judge_learning_rate, or raise --loss.r1, "
    "as far as the method has them",
)
SOURCES = Rule(
    0.1,
    1,
    "different sources are drawn almost alike, which is mode collapse",
    "look at the panels, lower --train.judge_learning_rate, or go back to a checkpoint before",
)
TARGETS = Rule(
    0.1,
    1,
    "different targets are translated back almost alike, mostly to empty masks",
    "look at the panels, let --segmenter.head guide what is read, or lower --train.judge_learning_rate",
)
STYLE = Rule(
    0.01,
    1,
    "the style changes next to nothing, which is mode collapse",
    "look at the panels, or lower the weights of the cycle terms, which reward it",
)


@torch.no_grad()
def diversity(probe: Probe, translator: Translator) -> dict[str, float]:
    """How much translations differ, as shares of how much real target tissue does.

    `diversity/sources`: of different sources; `diversity/styles`: of one source in several styles, where there are any;
    `diversity/targets`: of different targets on the way back, as a share of how much real sources do. Those are left
    out that the method does not draw, and that the fixed inputs are too few or all alike for.
    """
    device, values = translator.accelerator.device, {}
    real, others = _spread(probe.target), _spread(probe.source)
    with translator.accelerator.autocast():
        back = translator.to_source(probe.target.to(device))
        if back is not None and others > 0 and real > 0:
            values["diversity/targets"] = round(_spread(back) / others, 5)
    if real == 0 or len(probe.source) < 2:
        return values
    source = probe.source.to(device)
    with translator.accelerator.autocast():
        drawn = translator.to_target(source, "probe style", list(range(len(source))))
        if drawn is None:
            return values
        values["diversity/sources"] = _spread(drawn) / real
        few = source[:STYLED]
        styles = [translator.to_target(few, f"probe style {k}", list(range(len(few)))) for k in range(STYLES)]
    alike = [style for style in styles if style is not None]
    if not all(torch.equal(style, alike[0]) for style in alike):  # else there are none
        each = [_spread(torch.stack([style[k] for style in alike])) for k in range(len(few))]
        values["diversity/styles"] = sum(each) / len(each) / real
    return {name: round(value, 5) for name, value in values.items()}


def rule_of(name: str) -> Rule | None:
    """When a figure that a translation logs under this name is a collapse."""
    if name.startswith("loss/") and name.endswith("judge"):
        return SATURATED
    return {"diversity/sources": SOURCES, "diversity/targets": TARGETS, "diversity/styles": STYLE}.get(name)


def _spread(images: Tensor) -> float:
    """Mean distance of pairs of images, per value; 0 for fewer than two."""
    if len(images) < 2:
        return 0.0
    return mean_pairwise_distance(images.float().clamp(-1, 1).flatten(1), norm=1) / images[0].numel()
