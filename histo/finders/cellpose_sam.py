"""Nuclei by Cellpose-SAM, through the library's own `CellposeModel` (Cellpose 4).

Pachitariu, Rariden and Stringer, "Cellpose-SAM: superhuman generalization for cellular segmentation" (bioRxiv, 2025).
Its weights were trained on data under a non-commercial licence, which every record of its masks says.
"""

import hashlib
import logging
import ssl
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from histo import stains
from histo.errors import InputError
from histo.masks import renumber

LICENCE = (
    "Cellpose's models are trained on data under CC BY-NC 4.0 (non-commercial); whether masks and networks made with "
    "them inherit these terms is for their user to settle"
)
SOURCE = "https://huggingface.co/mouseland/cellpose-sam"
LARGEST_WEIGHTS = 10_000_000_000  # bytes
_DIAMETER = 30.0  # pixels: what Cellpose rescales a nucleus to
_WINDOW = 256  # pixels: the network's input
_SMALLEST_SIDE = 8  # pixels after rescaling: one patch of the network
# Weights that a file may lack: facts of its training, not looked at when nuclei are found.
_NOT_NEEDED = {"diam_labels", "diam_mean"}


@dataclass
class CellposeSettings:
    """Cellpose-SAM as a finder of nuclei."""

    model: str = "cpsam_v2"
    """name of a file in Cellpose's folder of models (CELLPOSE_LOCAL_MODELS_PATH, else ~/.cellpose/models), or a path"""
    download: bool = False
    """let the library fetch a model it knows by name; nothing is ever fetched without this"""
    nucleus: float = 6.0
    """mean diameter of a nucleus; µm (3 to 8 in labelled tiles of five sets). Tiles are rescaled by 30 / (nucleus /
    µm/px), so that it has Cellpose's 30 pixels"""
    diameter: float | None = None
    """the same in pixels of the tiles, whatever their µm/px; null: from nucleus. 30 leaves tiles as they are"""
    flow_threshold: float = 0.4
    """nuclei whose flows differ more from the network's are left out; 0 keeps all"""
    cellprob_threshold: float = 0.0
    """logit above which a pixel is nuclear; lower finds more and larger nuclei"""
    stain: Literal["rgb", "haematoxylin"] = "rgb"
    """what the network sees. rgb: the tile as it is; haematoxylin: the amount of that stain (Ruifrok & Johnston's
    matrix) in the first channel, and nothing in the others. Either is scaled from its 1st to its 99th percentile"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """arithmetic of the network; fp32 where a processor has no bf16 and is slow with it"""
    batch_size: int = 8
    """windows of 256² pixels that go through the network together"""

    def __post_init__(self) -> None:
        for name in ("nucleus", "diameter"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1000:
                raise InputError(f"cellpose.{name} is {value}, expected 1 to 1000.")
        if not 0 <= self.flow_threshold <= 10:
            raise InputError(f"cellpose.flow_threshold is {self.flow_threshold}, expected 0 to 10.")
        if not -100 <= self.cellprob_threshold <= 100:
            raise InputError(f"cellpose.cellprob_threshold is {self.cellprob_threshold}, expected -100 to 100.")
        if self.batch_size < 1:
            raise InputError(f"cellpose.batch_size is {self.batch_size}, expected 1 or more.")


class CellposeFinder:
    """`CellposeModel` with weights that are at hand.

    Tiles that fill one window or less go through the network together. Each is scaled to its own percentiles, so it
    does not matter which tiles it shares a batch with.

    Raises:
        InputError: the weights are not there, damaged, or of another network than Cellpose-SAM.
    """

    def __init__(self, settings: CellposeSettings, device: torch.device) -> None:
        self.settings = settings
        file = weights_file(settings)
        models = _library()
        _check_weights(file)
        try:
            self._model = models.CellposeModel(
                device=device, pretrained_model=str(file), use_bfloat16=settings.precision == "bf16"
            )
        except Exception as error:  # the library raises whatever its parts do
            raise InputError(f"{file} cannot be loaded as a Cellpose-SAM model ({_reason(error)}); {_MEND}") from error
        missing = self._model.net.state_dict().keys() - _names(file) - _NOT_NEEDED
        if missing:  # the library would go on with random ones
            raise InputError(
                f"{file} lacks {len(missing)} of the weights of Cellpose-SAM, {min(missing)} among them; {_MEND}"
            )
        with file.open("rb") as weights:
            self._sha256 = hashlib.file_digest(weights, "sha256").hexdigest()

    @property
    def batch(self) -> int:
        return self.settings.batch_size

    @property
    def facts(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        return {
            "method": "cellpose",
            **{name: settings[name] for name in sorted(settings.keys() - {"download", "batch_size", "model"})},
            "model": Path(self.settings.model).name,
            "weights_sha256": self._sha256,
            "licence": LICENCE,
            "library": f"cellpose {version('cellpose')}",
        }

    def __call__(self, images: Sequence[NDArray[np.uint8]], mpp: Sequence[float | None]) -> list[NDArray[np.int32]]:
        found: dict[int, NDArray[np.int32]] = {}
        together: dict[tuple[int, int, float], list[int]] = defaultdict(list)
        for k, (image, scale) in enumerate(zip(images, mpp, strict=True)):
            together[(image.shape[1], image.shape[2], self.diameter(scale))].append(k)
        for (height, width, diameter), places in together.items():
            sides = [int(side * _DIAMETER / diameter) for side in (height, width)]
            if min(sides) < _SMALLEST_SIDE:
                raise InputError(
                    f"A tile of {height} x {width} pixels (height x width) has {min(sides)} of them on a side once "
                    f"nuclei of {diameter:.3g} pixels are brought to {_DIAMETER:g}, expected {_SMALLEST_SIDE} or more; "
                    "give larger tiles, or correct the µm/px."
                )
            step = self.batch if max(sides) <= _WINDOW else 1  # of larger ones the library batches the windows
            for first in range(0, len(places), step):
                some = places[first : first + step]
                found |= zip(some, self._masks([images[k] for k in some], diameter), strict=True)
        return [found[k] for k in range(len(images))]

    def diameter(self, mpp: float | None) -> float:
        """Pixels of a nucleus at this µm/px.

        Raises:
            InputError: it follows from the µm/px, and they are unknown.
        """
        if self.settings.diameter is not None:
            return self.settings.diameter
        if mpp is None:
            raise InputError(
                "A tile has no known µm/px, but the diameter of its nuclei in pixels follows from it; give --data.mpp, "
                "or cellpose.diameter."
            )
        return self.settings.nucleus / mpp

    def _masks(self, images: list[NDArray[np.uint8]], diameter: float) -> list[NDArray[np.int32]]:
        """Of images of one size."""
        stack = np.stack([_prepared(image, self.settings.stain) for image in images])
        masks, _, _ = self._model.eval(
            stack,
            channel_axis=3,
            normalize={"normalize": False},
            diameter=diameter,
            batch_size=self.batch,
            flow_threshold=self.settings.flow_threshold,
            cellprob_threshold=self.settings.cellprob_threshold,
        )
        return [renumber(mask) for mask in masks.reshape(stack.shape[:3])]


def weights_file(settings: CellposeSettings) -> Path:
    """Where the model's weights lie, fetched by the library if the settings allow that and they are not there.

    Raises:
        InputError: they are not there, or could not be fetched.
    """
    models = _library()
    named = Path(settings.model)
    file = named if named.exists() or len(named.parts) > 1 else Path(models.MODEL_DIR) / named
    if file.is_file():
        return file
    known = settings.model in models.MODEL_NAMES
    if known and settings.download:
        _fetch(models, settings.model)
        return file
    how = f"put {SOURCE}/resolve/main/{named} there" if known else "put the file there"
    allow = ", or set cellpose.download to true" if known else ""
    raise InputError(
        f"The weights of the Cellpose model {settings.model!r} are not at {file}; {how}, name another file with "
        f"cellpose.model{allow}."
    )


def _library() -> Any:
    """`cellpose.models`, without its remarks on networks that are not asked for."""
    logging.getLogger("cellpose").setLevel(logging.ERROR)
    from cellpose import models

    return models


def _fetch(models: Any, name: str) -> None:
    # The library switches the check of certificates off for the whole process, which must not outlive its download.
    checked = ssl._create_default_https_context
    try:
        models.cache_model_path(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The Cellpose model {name!r} could not be fetched ({_reason(error)}); put it from {SOURCE} into "
            f"{models.MODEL_DIR}, or name a file with cellpose.model."
        ) from error
    finally:
        ssl._create_default_https_context = checked


_MEND = "put the file there again, or name another with cellpose.model."


def _check_weights(file: Path) -> None:
    """Refuse what the library should not be given: it reads the file with torch's defaults."""
    if file.stat().st_size > LARGEST_WEIGHTS:
        raise InputError(f"{file} has {file.stat().st_size:,} bytes, expected at most {LARGEST_WEIGHTS:,}; {_MEND}")
    if "W2" not in _names(file):
        raise InputError(f"{file} holds no weights of a Cellpose 4 network (W2 is missing); {_MEND}")


def _names(file: Path) -> set[str]:
    """Names of the weights in a file, as the network calls them; nothing but tensors is read."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {str(name).removeprefix("module.") for name in state}
    except Exception as error:  # torch raises what its unpickler and zip reader do
        raise InputError(f"{file} cannot be read as weights ({_reason(error)}); {_MEND}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _prepared(image: NDArray[np.uint8], stain: str) -> NDArray[np.float32]:
    """float32 [H, W, 3], each channel from its 1st percentile (0) to its 99th (1); constant ones 0."""
    from cellpose.transforms import normalize_img

    pixels = image.astype(np.float32)
    if stain == "haematoxylin":
        pixels = np.zeros_like(pixels)
        pixels[0] = stains.concentrations(torch.from_numpy(np.array(image)[None]))[0, 0].numpy()
    return normalize_img(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
