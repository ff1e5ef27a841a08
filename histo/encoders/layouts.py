"""Where in a file of weights an encoder's tensors lie, and under which names.

Programs save encoders inside other networks: torch's own wrappers put `module.` or `_orig_mod.` before every key,
Lightning `model.`, DINO `backbone.` in the dictionaries `teacher` and `student`, MoCo `module.encoder_q.`, smp
`encoder.`. None of these is listed here. A prefix is whatever stands before the encoder's own keys in the file, and the
dictionary and prefix under which the most weights are found are taken, and named.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from histo.encoders.weights import Weights
from histo.errors import InputError

LEAST = 0.95  # share of an encoder's values that must be found
# Parts of networks that come after an encoder; whether they are in a file does not matter.
_HEAD = re.compile(
    r"(fc|heads?|head_dist|classifier|last_linear|(projection|prediction|mlp)_head|projector|predictor|prototypes)\."
)
# Of several copies of an encoder, the averaged one is the one its authors evaluate, and a delayed one never is.
_AVERAGED, _DELAYED = {"teacher", "ema"}, {"student", "momentum", "k", "target"}


def _as_features(key: str) -> str:
    """timm's names in `features_only` models, which smp's tu- encoders are: `stages.0.` is `stages_0.`."""
    return re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key)


def _as_sequence(key: str) -> str:
    """A ResNet whose children were put in an `nn.Sequential`, as SimCLR and MoCo in lightly do."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    child, _, rest = key.partition(".")
    return f"{places[child]}.{rest}" if child in places else key


SPELLINGS: dict[str, Callable[[str], str]] = {
    "its own": str,
    "timm's features_only": _as_features,
    "a numbered sequence": _as_sequence,
}


@dataclass(frozen=True)
class Match:
    """How tensors in a file fit an encoder.

    Attributes:
        place: `DICTIONARY:PREFIX`; the dictionary is empty for the file itself.
        spelling: whose names the keys follow.
        tensors: those that fit, by the encoder's keys.
        missing: the encoder's keys that the file has not, but for counters of batch norm.
        misshapen: the shapes in the file of tensors that have others, by the encoder's keys.
        unexpected: keys under the prefix that the encoder has not, without those of heads.
        heads: keys under the prefix that belong to a classifier or a projection.
        values: numbers the encoder has; found: those of them that fit; beyond: those of `unexpected` keys in the
            encoder's own parts, as another architecture would have them.
    """

    place: str
    spelling: str
    tensors: dict[str, Tensor]
    missing: list[str]
    misshapen: dict[str, list[int]]
    unexpected: list[str]
    heads: list[str]
    values: int
    found: int
    beyond: int

    def report(self) -> str:
        """Lines for people."""
        dictionary, _, prefix = self.place.partition(":")
        keys = f"keys that begin with {prefix}" if prefix else "keys without a prefix"
        rows = {
            "taken": f"{f'dictionary {dictionary}' if dictionary else 'the file'}, {keys}, named as {self.spelling}",
            "matched": f"{len(self.tensors)} tensors, {self.found / self.values:.2%} of {self.values:,} values",
            "missing": _some(self.missing),
            "unexpected": _some(self.unexpected),
            "heads": f"{_some(self.heads)}, left out" if self.heads else "none",
        }
        return "\n".join(f"  {name:<12}{text}" for name, text in rows.items())


def match(weights: Weights, expected: Mapping[str, Tensor], take: str | None, what: str) -> Match:
    """The tensors of a file that an encoder takes.

    Args:
        expected: the encoder's state dict.
        take: `DICTIONARY:PREFIX`, to choose among several copies of the encoder; None takes the only or averaged one.
        what: the file and the architecture, for messages.

    Raises:
        InputError: less than `LEAST` of the encoder is there, tensors of other shapes, a larger encoder, several
            different copies with nothing to choose by, or no such place.
    """
    found = [
        _compare(f"{'/'.join(place)}:{prefix}", name, tensors, prefix, spelled, expected)
        for place, tensors in weights.dictionaries.items()
        for name, spell in SPELLINGS.items()
        for spelled in [{spell(key): key for key in expected}]
        for prefix in _prefixes(tensors, spelled, expected)
    ]
    if take is not None:
        found = [one for one in found if one.place == take]
    if not found:
        place = "" if take is None else f" at {take!r}"
        first = next(iter(next(iter(weights.dictionaries.values()))))
        raise InputError(
            f"{what}: no tensor of it is in the file{place}, whose first key is {first!r}; name the architecture of "
            "the file."
        )
    best = _chosen(found, what)
    _refuse_misfit(best, expected, what)
    return best


def _prefixes(tensors: Mapping[str, Tensor], spelled: Mapping[str, str], expected: Mapping[str, Tensor]) -> set[str]:
    """What stands before the encoder's first and its largest tensor in the keys of a dictionary."""
    largest = max(spelled, key=lambda key: expected[spelled[key]].numel())
    return {
        key[: -len(anchor)]
        for anchor in (next(iter(spelled)), largest)
        for key in tensors
        if key == anchor or key.endswith(f".{anchor}")
    }


def _compare(
    place: str,
    spelling: str,
    tensors: Mapping[str, Tensor],
    prefix: str,
    spelled: Mapping[str, str],
    expected: Mapping[str, Tensor],
) -> Match:
    there = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    present = {spelled[key]: value for key, value in there.items() if key in spelled}
    fitting = {key: value for key, value in present.items() if value.shape == expected[key].shape}
    other = [key for key in there if key not in spelled]
    heads = [key for key in other if _HEAD.match(key)]
    parts = {key.partition(".")[0] for key in spelled}
    unexpected = [key for key in other if not _HEAD.match(key)]
    return Match(
        place,
        spelling,
        fitting,
        [key for key in expected if key not in present and not key.endswith("num_batches_tracked")],
        {key: list(value.shape) for key, value in present.items() if key not in fitting},
        unexpected,
        heads,
        sum(value.numel() for value in expected.values()),
        sum(value.numel() for value in fitting.values()),
        sum(there[key].numel() for key in unexpected if key.partition(".")[0] in parts),
    )


def _chosen(found: list[Match], what: str) -> Match:
    """The place where the most of the encoder is; of equally good ones the averaged, else the only or equal ones."""

    def reach(one: Match) -> int:
        return len(one.tensors) + len(one.misshapen)

    def rank(one: Match) -> int:
        words = set(re.split(r"[^a-z0-9]+", one.place.lower()))
        return 0 if words & _AVERAGED else 2 if words & _DELAYED else 1

    most = max(map(reach, found))
    good = [one for one in found if reach(one) == most]
    good = [one for one in good if rank(one) == min(map(rank, good))]
    first = good[0]
    for other in good[1:]:
        if other.place != first.place and not _equal(first.tensors, other.tensors):
            raise InputError(
                f"{what}: the file holds several different copies of it, "
                f"{' and '.join(dict.fromkeys(one.place for one in good))}; name one with --take."
            )
    return first


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def _refuse_misfit(one: Match, expected: Mapping[str, Tensor], what: str) -> None:
    channels = _other_channels(one, expected)
    if channels is not None:
        raise InputError(
            f"{what}: the file is of an encoder for {channels[0]} channels, expected {channels[1]}; name a file for "
            f"images of {channels[1]} channels."
        )
    if one.misshapen:
        shapes = [f"{key} is {shape}, expected {list(expected[key].shape)}" for key, shape in one.misshapen.items()]
        raise InputError(
            f"{what}: {len(shapes)} tensors at {one.place!r} have other shapes ({_some(shapes)}); name the "
            "architecture of the file."
        )
    if one.found < LEAST * one.values:
        raise InputError(
            f"{what}: only {one.found / one.values:.1%} of its values are in the file (missing {_some(one.missing)}; "
            f"unexpected {_some(one.unexpected)}), expected {LEAST:.0%}; name the architecture of the file."
        )
    if one.found < LEAST * (one.found + one.beyond):
        raise InputError(
            f"{what}: the file holds a larger encoder, with {one.beyond:,} values that this one has no place for "
            f"({_some(one.unexpected)}); name the architecture of the file."
        )
    if lost := [key for key in one.missing if key.endswith(("running_mean", "running_var"))]:
        raise InputError(
            f"{what}: the file lacks statistics of batch norm ({_some(lost)}), without which its features are "
            "others; name a file that has them."
        )


def _other_channels(one: Match, expected: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(channels of the file, channels expected) where its first layer, and nothing else, is of other channels."""
    first = next((key for key, value in expected.items() if value.ndim == 4), "")
    if [first] != list(one.misshapen):
        return None
    had, wanted = one.misshapen[first], list(expected[first].shape)
    same = len(had) == 4 and [had[0], *had[2:]] == [wanted[0], *wanted[2:]]
    return (had[1], wanted[1]) if same else None


def _some(names: list[str], most: int = 3) -> str:
    """A list cut short."""
    rest = len(names) - most
    return (", ".join(names[:most]) or "none") + (f" and {rest} more" if rest > 0 else "")


def renamed(
    encoder: Mapping[str, Tensor], reference: Mapping[str, Tensor], prefix: str, what: str
) -> dict[str, Tensor]:
    """An encoder's tensors under another library's keys.

    Args:
        reference: tensors of that library's network, for their keys and shapes.
        prefix: what it puts before every key.
        what: the encoder and the library, for messages.

    Raises:
        InputError: a tensor of the reference that the encoder has not, or of another shape.
    """
    spellings = [{prefix + spell(key): key for key in encoder} for spell in SPELLINGS.values()]
    names = max(spellings, key=lambda names: len(names.keys() & reference.keys()))
    for key, value in reference.items():
        if key not in names or encoder[names[key]].shape != value.shape:
            raise InputError(f"{what}: the encoder has no {key} of shape {list(value.shape)}; choose another library.")
    return {key: encoder[names[key]] for key in reference}
