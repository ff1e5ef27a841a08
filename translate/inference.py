"""A trained translator as notebooks and `translate/generate.py` use it: arrays in, arrays out, of any size.

Which networks a run left, and how each is called, is known here alone.
"""

import hashlib
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from histo.codec import encode
from histo.errors import InputError
from histo.images import channels_first
from histo.layouts import LayoutSettings, ShapeSettings
from histo.masks import as_instances
from histo.overlap import windows
from histo.randomness import draws
from histo.running.configs import read_config
from histo.segmenters import Reader, segment
from translate.canvas import image_code, render_image, translate_image
from translate.exports import Networks, open_networks
from translate.networks.comod import CoModGenerator
from translate.staining import Staining, stain_distance

CANDIDATES = 64  # styles among which the ones like a reference are looked for
TYPED_MASKS = ("layout", "phantom")  # whose nuclei have types; a run on other masks never saw the second


class TrainedTranslator:
    """What a run learned.

    Attributes:
        card: facts of the generator (or, without one, of the segmenter): `tile_size`, `mpp`, `images_seen` and others.
        path: the folder of its exports.
        typed: whether its masks drew two types of nuclei.
        layout: what masks its run drew, or would have drawn, with `--data.masks layout`.
    """

    def __init__(self, path: Path, networks: Networks, data: dict[str, Any]) -> None:
        self.path, self.networks, self.card = path, networks, networks.card
        self.typed = data.get("masks") in TYPED_MASKS
        self.layout = _layout(data.get("layout", {}))

    @property
    def tile_size(self) -> int:
        """Side of the tiles it was trained on; pixels."""
        return int(self.card["tile_size"])

    @property
    def mpp(self) -> float | None:
        """µm/px of the tissue it was trained on, None where unknown."""
        return self.card.get("mpp")

    def render(
        self,
        masks: NDArray[Any],
        styles: int | Sequence[int] = 4,
        seed: int = 0,
        types: NDArray[Any] | None = None,
        truncation: float = 1.0,
    ) -> NDArray[np.uint8]:
        """Tissue with these nuclei.

        Args:
            masks: instance map, integer [H, W] or [N, H, W], 0 = background, of the µm/px of the training.
            styles: how many styles, or their numbers: `render(m, [3])` is `render(m, 4)[3:]`.
            seed: of the styles; the same seed, number and mask give the same pixels.
            types: uint8 [largest id + 1], type 1 or 2 of each id, as in `histo.codec.encode`; not looked at where the
                run saw one type only.
            truncation: in [0, 1]; 1 keeps the styles, less draws them towards the mean style.

        Returns:
            uint8 [styles, N, 3, H, W]; a single map counts as N = 1.

        Raises:
            InputError: not instance maps, no style asked for or several of a generator without styles, truncation out
                of range, or a run without a generator of masks.
        """
        generator = self.require_generator()
        numbers = range(styles) if isinstance(styles, int) else styles
        if len(numbers) < 1 or min(numbers) < 0:
            raise InputError(f"styles is {styles}, expected 1 or more, or their numbers from 0; ask for one at least.")
        if not 0 <= truncation <= 1:
            raise InputError(f"truncation is {truncation}, expected 0 to 1; 1 keeps the styles as they are.")
        if not isinstance(generator, CoModGenerator) and (len(numbers) > 1 or truncation < 1):
            raise InputError(f"The generator of {self.path} has no styles; ask for one, without truncation.")
        masks = np.asarray(masks)
        stack = masks[None] if masks.ndim == 2 else masks
        if stack.ndim != 3 or stack.size == 0:
            raise InputError(f"The masks have shape {masks.shape}, expected [H, W] or [N, H, W]; give instance maps.")
        tissue = np.empty((len(numbers), len(stack), 3, *stack.shape[1:]), dtype=np.uint8)
        for n, mask in enumerate(stack):
            texture = draws(seed, "render fill", 0)
            known = types if self.typed else None
            drawn = encode(as_instances(mask, "The mask"), known, texture, self.card.get("mask_form", "paper"))
            if not isinstance(generator, CoModGenerator):
                tissue[0, n] = translate_image(generator, drawn, self.tile_size)
                continue
            code = image_code(generator, drawn)
            for place, number in enumerate(numbers):
                tissue[place, n] = render_image(generator, drawn, number, seed, truncation=truncation, code=code)
        return tissue

    def styles_like(self, reference: NDArray[Any], count: int = 1, seed: int = 0) -> list[int]:
        """Numbers of the styles whose stain is most like that of a reference image, the nearest first.

        The nuclei found in a few tiles of the reference are rendered in `CANDIDATES` styles; near is a small sum of the
        Wasserstein distances of haematoxylin and of eosin between renderings and tiles (`translate.staining`).

        Args:
            reference: as in `segment`.
            count: how many, up to `CANDIDATES`.
            seed: of the styles; give `render` the same.

        Raises:
            InputError: no such image, one without tissue, more styles than candidates, or a run that lacks a network.
        """
        if not 1 <= count <= CANDIDATES:
            raise InputError(f"{count} styles like the reference were asked for, expected 1 to {CANDIDATES}.")
        self.require_generator()
        image = channels_first(reference)
        corners = [
            (row, column)
            for row in _spread(image.shape[1], self.tile_size)
            for column in _spread(image.shape[2], self.tile_size)
        ]
        tiles = windows(image, corners, self.tile_size)
        wanted = Staining.of(torch.from_numpy(tiles))
        if not wanted.pixels:
            raise InputError("The reference image shows no stained tissue; give one that does.")
        nuclei = np.stack([self.segment(tile) for tile in tiles])
        distances = []
        for number in range(CANDIDATES):
            drawn = Staining.of(torch.from_numpy(self.render(nuclei, [number], seed)[0]))
            distances.append(
                sum(value or 0.0 for value in stain_distance(wanted, drawn).values()) if drawn.pixels else inf
            )
        return [int(number) for number in np.argsort(distances, kind="stable")[:count]]

    def segment(self, image: NDArray[Any]) -> NDArray[np.int32]:
        """The nuclei of an image of tissue.

        Args:
            image: uint8 RGB of the µm/px of the training, [3, H, W] or [H, W, 3]: the axis of three is the colours;
                an image of which the first and the last axis have three is refused.

        Returns:
            Instance map, int32 [H, W], 0 = background.

        Raises:
            InputError: another shape or dtype, or a run without a segmenter.
        """
        return segment(self.require_reader(), channels_first(image), tile=self.tile_size)

    def restain(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """An image of the source tissue in the look of the target's.

        Args:
            image: as in `segment`.

        Returns:
            uint8 [3, H, W].

        Raises:
            InputError: another shape or dtype, or a run that did not learn to translate tissue to other tissue.
        """
        return translate_image(self.require_restainer(), channels_first(image), self.tile_size)

    def require_restainer(self) -> nn.Module:
        """The tissue → tissue network, or an InputError."""
        if self.networks.generator is None or not self.networks.between_tissues:
            raise InputError(
                f"{self.path} learned no translation of tissue to other tissue; name a run that had --data.target, or "
                "an image as --style_of, in whose stain a run of masks draws the tissue anew."
            )
        return self.networks.generator

    def require_generator(self) -> nn.Module:
        """The mask → tissue network, or an InputError."""
        if self.networks.generator is None or self.networks.between_tissues:
            raise InputError(f"{self.path} has no generator of tissue from masks; name a run that learned one.")
        return self.networks.generator

    def require_reader(self) -> Reader:
        """The network that finds nuclei in tissue, or an InputError."""
        if self.networks.reader is None:
            raise InputError(f"{self.path} has no nucleus segmenter; name a run that learned one.")
        return self.networks.reader

    def facts(self) -> dict[str, Any]:
        """Who it is: the card's facts and the SHA-256 of the weights."""
        files = sorted(self.path.glob("*.safetensors"))
        known = ("kind", "tile_size", "mpp", "images_seen", "tissue", "masks", "licences", "revision", "seed")
        return {
            **{name: self.card.get(name) for name in known},
            "weights_sha256": {file.stem: _hash(file) for file in files if file.stem != "encoder"},
        }


def open_translator(path: Path, device: torch.device | None = None) -> TrainedTranslator:
    """Read a run folder's exports, or an export folder; see `translate.load`.

    Args:
        device: where its networks go; None: a GPU where there is one.
    """
    if not path.is_dir():
        raise InputError(f"{path} is no folder; name a run folder of translate/train.py, or its export folder.")
    export = path / "export" if (path / "export").is_dir() else path
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainedTranslator(export, open_networks(export, device), _data_settings(export.parent / "config.yaml"))


def _spread(length: int, tile: int) -> list[int]:
    """Where two tiles begin on a side, or the only one there is room for."""
    return [0] if length < 2 * tile else [length // 4 - tile // 2, length - length // 4 - tile // 2]


def _data_settings(config: Path) -> dict[str, Any]:
    """The group `data` of a run's settings; an export folder that was moved away from its run has none."""
    content = read_config(config) if config.is_file() else {}
    return content.get("data", {}) if isinstance(content, dict) else {}


def _layout(values: dict[str, Any]) -> LayoutSettings:
    try:
        given: dict[str, Any] = dict(values)
        for name in {"stroma", "epithelial"} & given.keys():
            given[name] = ShapeSettings(**given[name])
        return LayoutSettings(**given)
    except TypeError as error:
        raise InputError(f"The run's data.layout does not fit this version ({error}); restore its config.") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
