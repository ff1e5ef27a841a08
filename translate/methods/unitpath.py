"""UNITPathSSL (arXiv 2309.07394): mask ⇄ tissue, the segmenter guided by the nuclei of the masks it is shown.

A step (figure 2):  x → G → ŷ → S → x again and nuclei;  y → S → x̂ → G → y again;  D_tissue judges ŷ against y, D_mask
judges x̂ against x. What D_tissue sees, real or generated, is augmented (translate/ada.py).
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from histo.errors import InputError
from histo.guidance import guidance
from histo.running.processes import together
from histo.running.updates import Update
from histo.segmenters import Reader, Segmenter, SegmenterSettings
from translate.ada import AdaptiveAugmentation, AdaSettings
from translate.engine import Batch, Export, Translator
from translate.losses import refuse_weights
from translate.losses.adversarial import least_squares, least_squares_generator, logistic, non_saturating, r1_penalty
from translate.losses.cycle import cycle
from translate.networks.comod import CoModGenerator
from translate.networks.discriminators import DiscriminatorSettings, PatchDiscriminator, TissueDiscriminator
from translate.networks.generators import GeneratorSettings, build_generator
from translate.recipe import Recipe as SharedRecipe
from translate.replay import ReplayBuffer


@dataclass
class LossSettings:
    """Weights of the named terms (UNITPathSSL, equation 7: λ = 2, 10, 2) and R1."""

    tissue_adversarial: float = 1.0
    """generated tissue against the tissue discriminator (non-saturating)"""
    mask_adversarial: float = 2.0
    """predicted masks against the mask discriminator (least squares)"""
    cycle_mask: float = 5.0
    """L1 of mask → tissue → mask; half of the paper's cycle weight 10"""
    cycle_tissue: float = 5.0
    """L1 of tissue → mask → tissue; the other half"""
    guidance: float = 2.0
    """S's head on generated tissue against the nuclei it was generated from; which head is segmenter.head"""
    guidance_every: int = 1
    """steps between guided ones; the weight is not scaled up to make good for it"""
    r1: float = 1.0
    """γ of the R1 penalty on real tissue"""
    r1_every: int = 16
    """steps between R1 penalties, which are scaled up to make good for it"""

    def __post_init__(self) -> None:
        refuse_weights(self)
        for name in ("r1_every", "guidance_every"):
            if getattr(self, name) < 1:
                raise InputError(f"loss.{name} is {getattr(self, name)}, expected 1 or more steps.")


@dataclass
class Recipe(SharedRecipe):
    """Settings of unpaired translation between tissue and nucleus masks as in UNITPathSSL."""

    FIXED: ClassVar[tuple[str, ...]] = (
        *SharedRecipe.FIXED,
        "generator",
        "segmenter",
        "discriminator",
        "ada.kind",
        "ada.probability",
    )

    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    ada: AdaSettings = field(default_factory=AdaSettings)
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        for name, base in (("generator", self.generator), ("discriminator", self.discriminator)):
            if base.channel_base < self.data.tile_size:
                raise InputError(
                    f"{name}.channel_base is {base.channel_base}, expected data.tile_size ({self.data.tile_size}) "
                    "or more: the layers at full resolution would have no channel."
                )
        if self.data.between_tissues:
            raise InputError(
                f"--data.target is {self.data.target!r}, but unitpath translates between tissue and masks; leave it "
                "out, or use --config configs/translate/cyclegan.yaml or cut.yaml."
            )


class Method(Translator):
    """G, S, D_tissue and D_mask."""

    TRANSLATORS = ("generator", "segmenter")
    JUDGES = ("tissue_discriminator", "mask_discriminator")
    AVERAGED = ("generator", "segmenter")
    KEPT = ("generator", "tissue_discriminator")

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.settings, self.loss = recipe, recipe.loss
        super().__init__(recipe, accelerator)
        self.replay = ReplayBuffer(self.seed)
        self.ada = AdaptiveAugmentation(recipe.ada, self.seed)

    def build(self) -> dict[str, nn.Module]:
        recipe = self.settings
        return {
            "generator": build_generator(recipe.generator, self.tile_size),
            "segmenter": Segmenter(recipe.segmenter, recipe.data.mask_form),
            "tissue_discriminator": TissueDiscriminator(recipe.discriminator, self.tile_size),
            "mask_discriminator": PatchDiscriminator(recipe.discriminator.mask_width, self.tile_size),
        }

    def update(self, parts: list[Batch]) -> dict[str, Tensor]:
        """G and S first, then both judges on what was drawn."""
        translators = self.begin("translators", len(parts))
        drawn = [self._translate(part, translators) for part in parts]
        terms = translators.apply()
        judges = self.begin("judges", len(parts))
        judged = self.replayed(self.replay, [mask for _, mask in drawn])
        real_logits = [
            self._judge(part, tissue, mask, judges)
            for part, (tissue, _), mask in zip(parts, drawn, judged, strict=True)
        ]
        with together():
            self.ada.observe(torch.cat(real_logits))
        return terms | judges.apply()

    def _translate(self, batch: Batch, update: Update) -> tuple[Tensor, Tensor]:
        """Both ways round for one part of the batch; returns the tissue and the masks that were drawn."""
        x, y, weights = batch.source, batch.target, self.loss
        guided = self.steps % weights.guidance_every == 0
        with self.accelerator.autocast():
            fake_tissue = self.run("generator", x, *self.style("style", batch.indices))
            seen = self.run("segmenter", fake_tissue, guided)
            fake_mask = self.run("segmenter", y, False).mask
            seen_by_judge = self.ada.augmented(fake_tissue, "G's tissue", batch.indices)
            terms = {
                "tissue_adversarial": non_saturating(self.run("tissue_discriminator", seen_by_judge)),
                "mask_adversarial": least_squares_generator(self.run("mask_discriminator", fake_mask)),
                "cycle_mask": cycle(seen.mask, x),
            }
            if weights.cycle_tissue > 0:
                tissue_again = self.run("generator", fake_mask, *self.style("style of cycle", batch.indices))
                terms["cycle_tissue"] = cycle(tissue_again, y)
            if guided:
                terms |= guidance(self.networks["segmenter"], seen, batch, self.seed)
        update.add(terms, {name: getattr(weights, name.partition("/")[0]) for name in terms})
        return fake_tissue.detach(), fake_mask.detach()

    def _judge(self, batch: Batch, fake_tissue: Tensor, fake_mask: Tensor, update: Update) -> Tensor:
        """Both discriminators on one part of the batch; returns the logits of real tissue."""
        tissue = self.ada.augmented(batch.target, "real tissue", batch.indices)
        fake_tissue = self.ada.augmented(fake_tissue, "generated tissue", batch.indices)
        with self.accelerator.autocast():
            real_logits = self.run("tissue_discriminator", tissue)
            terms = {
                "tissue_judge": logistic(real_logits, self.run("tissue_discriminator", fake_tissue)),
                "mask_judge": least_squares(
                    self.run("mask_discriminator", batch.source), self.run("mask_discriminator", fake_mask)
                ),
            }
        if self.loss.r1 > 0 and self.steps % self.loss.r1_every == 0:
            # Of D at the images it sees; StyleGAN2-ADA takes it at the images before augmentation, through the warp,
            # which needs a second derivative that grid_sample does not have.
            terms["r1"] = r1_penalty(self.networks["tissue_discriminator"], tissue)
        update.add(terms, {"tissue_judge": 1.0, "mask_judge": 1.0, "r1": self.loss.r1 * self.loss.r1_every})
        return real_logits.detach()

    def style(self, stream: str, indices: list[int], training: bool = True) -> tuple[Any, ...]:
        """Random inputs of the generator for global image indices, on the device; none where it has no style."""
        generator = self.averages["generator"]
        if not isinstance(generator, CoModGenerator):
            return ()
        style = generator.style(self.seed, stream, indices, training).to(self.accelerator.device)
        if style.other is None:
            return style.z, style.keep, style.noise
        network = self.networks["generator"]
        assert isinstance(network, CoModGenerator)
        return style.z, style.keep, style.noise, None, network.mixed(style)

    def to_target(self, source: Tensor, stream: str, indices: list[int]) -> Tensor:
        return self.averages["generator"](source, *self.style(stream, indices, training=False))

    def to_source(self, target: Tensor) -> Tensor:
        return self.averages["segmenter"](target, False).mask

    @property
    def reader(self) -> Reader:
        segmenter = self.averages["segmenter"]
        assert isinstance(segmenter, Segmenter)
        return segmenter

    def exports(self) -> list[Export]:
        return [
            Export("generator", "generator", self.averages["generator"], asdict(self.settings.generator)),
            Export("segmenter", "segmenter", self.averages["segmenter"], asdict(self.settings.segmenter)),
        ]

    @property
    def needs_flows(self) -> bool:
        return self.settings.segmenter.head == "flows"

    def buffers(self) -> dict[str, ReplayBuffer]:
        return {"replay": self.replay}

    def facts(self) -> dict[str, Any]:
        return {"ada": self.ada.facts()}

    def restore_facts(self, facts: dict[str, Any]) -> None:
        self.ada.restore(facts.get("ada"))

    def scalars(self) -> dict[str, float]:
        return self.ada.scalars()
