"""Files of weights that other programs wrote, read without running anything that stands in them.

A torch file is a pickle, which may name any function to be called when it is read. torch's own reader of tensors
(`weights_only`) calls those that rebuild tensors and refuses all others. Checkpoints of training programs name more:
Lightning's keep a class of callback and a dictionary type of theirs. Here a stand-in takes the place of each such name.
It does nothing and imports nothing, so the tensors beside it can be read and what it stood for is lost.
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from histo.errors import InputError

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".tar")
LARGEST = 20e9  # bytes
DEEPEST = 4  # dictionaries within dictionaries
MOST_DICTIONARIES = 10_000
MOST_NAMES = 200  # a Lightning checkpoint names fewer than ten


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        dictionaries: the dictionaries of tensors in it, by where they are: () for the file itself, ("state_dict",) for
            that entry of it, and so on.
        left_unread: names of what stood beside the tensors and was not restored.
    """

    dictionaries: dict[tuple[str, ...], dict[str, Tensor]]
    left_unread: list[str]


def read_weights(path: Path) -> Weights:
    """The tensors of a .safetensors file, or of a torch file: .pth, .pt, .bin, .ckpt, .tar.

    Raises:
        InputError: no such file, another ending, too large, damaged, without tensors, or a torch file whose tensors
            cannot be told from what only running it would restore.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file; expected weights: .safetensors, {', '.join(TORCH_ENDINGS)}.")
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path} has more than {LARGEST / 1e9:g} GB; expected the weights of one network.")
    if path.suffix not in (".safetensors", *TORCH_ENDINGS):
        raise InputError(f"{path} ends in {path.suffix!r}; expected weights: .safetensors, {', '.join(TORCH_ENDINGS)}.")
    contents, left_unread = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    found = dict(_dictionaries(contents))
    if not found:
        raise InputError(
            f"{path} holds no dictionary of tensors; where a whole network was pickled, save its state_dict() with the "
            "program that made it."
        )
    return Weights(found, left_unread)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights that holds one dictionary of them.

    Raises:
        InputError: as `read_weights`, or several dictionaries of tensors.
    """
    found = read_weights(path).dictionaries
    if len(found) > 1:
        places = ", ".join(".".join(place) or "the file itself" for place in list(found)[:4])
        raise InputError(
            f"{path} holds {len(found)} dictionaries of tensors ({places}), expected one; save that alone."
        )
    return next(iter(found.values()))


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str, advice: str) -> None:
    """Give a network all its weights, and no other tensor.

    Args:
        path, what, advice: where they come from, what the network is, and what to do where they do not fit, for people.

    Raises:
        InputError: keys missing or unexpected, or tensors of other shapes.
    """
    expected = network.state_dict().keys()
    missing, unexpected = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or unexpected:
        raise InputError(
            f"{path} does not fit {what}: {len(missing)} keys missing (first {missing[:1]}), {len(unexpected)} "
            f"unexpected (first {unexpected[:1]}); {advice}"
        )
    try:
        # smp's encoders override load_state_dict; the module's own does the same for all.
        nn.Module.load_state_dict(network, tensors)
    except RuntimeError as error:
        raise InputError(f"{path} has weights of other shapes than {what}; {advice}") from error


def _safetensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        return load_file(path), []
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as weights ({_reason(error)}); download it again.") from error


def _torch(path: Path) -> tuple[Any, list[str]]:
    foreign = _foreign_names(path)
    if len(foreign) > MOST_NAMES:
        raise InputError(f"{path} names {len(foreign)} functions and classes; save its state_dict() alone.")
    try:
        allowed = torch.serialization.safe_globals([_Nothing, *((_stand_in(name), name) for name in foreign)])
        with allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols of pickle that its reader may not know: it says so itself
            return torch.load(path, map_location="cpu", weights_only=True), foreign
    except Exception as error:  # torch.load has no kind of its own for a damaged file
        raise InputError(
            f"{path} cannot be read as weights without running what stands in it ({_reason(error)}), which is "
            "never done; save its state_dict() alone with the program that made it, or download it again."
        ) from error


def _foreign_names(path: Path) -> list[str]:
    """The functions and classes a torch file names beyond those that rebuild tensors, found without calling any."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # torch's format before 1.6, or no torch file: reading it says what is wrong
        return []


class _Nothing:
    """What a stand-in makes when it is called: it takes any state and keeps none."""

    def __setstate__(self, state: object) -> None:
        pass


class _Calls(type):
    def __call__(cls, *arguments: object, **named: object) -> Any:
        # torch's reader fills dictionaries of exactly this type; a defaultdict is one that is called for.
        return OrderedDict() if cls.__name__ == "collections.defaultdict" else _Nothing()


def _stand_in(name: str) -> type:
    """A class of its own in place of `name`, as classes are also keys of dictionaries (Lightning's callbacks).

    A new object of it is an empty dictionary, since objects that are filled item by item (Lightning's AttributeDict)
    must be one.
    """
    return _Calls(name, (_Nothing,), {"__new__": lambda cls, *arguments: OrderedDict()})


def _dictionaries(contents: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The dictionaries with tensors in nested ones, from the outside in."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), contents)]
    for place, value in waiting:
        if not isinstance(value, Mapping):
            continue
        tensors = {key: item.detach() for key, item in value.items() if isinstance(key, str) and _is_plain(item)}
        if tensors:
            yield place, tensors
        if len(place) < DEEPEST and len(waiting) < MOST_DICTIONARIES:
            waiting += [((*place, key), item) for key, item in value.items() if isinstance(key, str)]


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _reason(error: Exception) -> str:
    """What torch's reader says, without its advice to read the file unsafely."""
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    if said.startswith("Weights only load failed"):  # of modules that are never let in, the reason stands behind advice
        said = said.partition("\n")[2].strip()
    return said.partition("\n")[0].partition(" Please ")[0].rstrip(".")[:200] or type(error).__name__
