"""What `translate/generate.py` makes, item by item, each a pure function of inputs, seed and number."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo.errors import InputError, writing
from histo.files import written_whole
from histo.images import read_image, read_mpp
from histo.layouts import Layouts
from histo.masks import mask_files, write_instances
from histo.polygons import write_polygons
from histo.running import outputs
from histo.running.outputs import result_names
from histo.segmenters import MPP_TOLERANCE
from histo.tiles import Tiles, TileSet, is_described, open_tiles
from histo.tiles.entries import Entries
from translate.domains import MaskSet
from translate.inference import TrainedTranslator
from translate.networks.comod import CoModGenerator

LARGEST_ID = 65_535  # of the 16-bit PNG beside the tissue
T = TypeVar("T")
Row = tuple[str, str | None, str | None, float | None, str | None, str]
"""A line of tiles.csv."""


class Product(outputs.Product, Protocol):
    """A kind of output."""

    def identity(self, index: int, /) -> str:
        """What an item is made of, without looking into it: a name."""
        ...

    def rows(self, index: int, /) -> list[Row]:
        """Its lines of tiles.csv; none where there is no table."""
        ...


class Renderings:
    """Tissue of masks in several styles: images/NUMBER-STYLE.png, labels/NUMBER.png.

    Item i has the styles i·k to i·k + k - 1 of the run, so that no two images share one; with a reference image, all
    items have the k styles most like it.
    """

    def __init__(
        self,
        translator: TrainedTranslator,
        masks: Tiles,
        styles: int,
        seed: int,
        reference: Path | None = None,
        truncation: float = 1.0,
    ) -> None:
        if not isinstance(translator.require_generator(), CoModGenerator) and styles > 1:
            raise InputError(f"--styles is {styles}, but the generator of {translator.path} has no styles; ask for 1.")
        self._truncation = truncation
        self._translator, self._masks, self._styles, self._seed = translator, masks, styles, seed
        self._alike = None if reference is None else translator.styles_like(read_image(reference), styles, seed)

    def __len__(self) -> int:
        return len(self._masks)

    def identity(self, index: int) -> str:
        if isinstance(self._masks, TileSet):
            return self._masks.entries[index].key
        return str(self._masks.files[index]) if isinstance(self._masks, MaskSet) else str(index)

    def files(self, index: int) -> list[Path]:
        return [self._label(index), *(self._image(index, style) for style in range(self._styles))]

    def make(self, index: int, folder: Path) -> None:
        tile = self._masks[index]
        instances = tile.instances
        assert instances is not None
        name = f"mask {tile.key}"
        _check_mask(instances, name)
        _check_mpp(tile.mpp, self._translator.mpp, name)
        numbers = self._alike or range(index * self._styles, (index + 1) * self._styles)
        tissue = self._translator.render(instances, numbers, self._seed, tile.types, self._truncation)[:, 0]
        write_instances(folder / self._label(index), instances)
        for style, image in enumerate(tissue):
            write_image(folder / self._image(index, style), image)

    def rows(self, index: int) -> list[Row]:
        # Masks that do not say are taken to be at the generator's µm/px, which is what they are drawn as.
        entry = self._masks.entries[index] if isinstance(self._masks, TileSet) else None
        patient, mpp, split = (entry.patient, entry.mpp, entry.split) if entry else (None, None, None)
        mpp = mpp or self._translator.mpp
        label = self._label(index).as_posix()
        return [
            (self._image(index, style).as_posix(), None, patient, mpp, split, label) for style in range(self._styles)
        ]

    def describe(self) -> str:
        return f"{self._masks.describe()}, in {self._styles} style{'s' if self._styles > 1 else ''} each"

    def _label(self, index: int) -> Path:
        return Path("labels", f"{index:06d}.png")

    def _image(self, index: int, style: int) -> Path:
        return Path("images", f"{index:06d}-{style}.png")


class Segmentations:
    """Nuclei of tissue: labels/NAME.png and polygons/NAME.geojson, named as the tiles are."""

    def __init__(self, translator: TrainedTranslator, tissue: TileSet) -> None:
        translator.require_reader()
        self._translator, self._tissue, self._names = translator, tissue, result_names(tissue.entries)

    def __len__(self) -> int:
        return len(self._tissue)

    def identity(self, index: int) -> str:
        return self._names[index]

    def files(self, index: int) -> list[Path]:
        name = self._names[index]
        return [Path("labels", f"{name}.png"), Path("polygons", f"{name}.geojson")]

    def make(self, index: int, folder: Path) -> None:
        _check_mpp(self._tissue.entries[index].mpp, self._translator.mpp, f"tile {self._names[index]}")
        instances = self._translator.segment(self._tissue.image(index))
        label, polygons = (_with_folder(folder / file) for file in self.files(index))
        write_instances(label, instances)
        write_polygons(polygons, instances)

    def rows(self, index: int) -> list[Row]:
        return []

    def describe(self) -> str:
        return self._tissue.describe()


class Restainings:
    """Tissue in another stain: images/NAME.png.

    In the look of the target, by a run of tissue to tissue; with a reference image, by a run of masks, drawn anew
    around the nuclei of the tissue in the style most like the reference.
    """

    def __init__(self, translator: TrainedTranslator, tissue: TileSet, seed: int, reference: Path | None) -> None:
        self._translator, self._tissue, self._names, self._seed = translator, tissue, result_names(tissue.entries), seed
        self._styles: list[int] | None = None
        if reference is not None:
            translator.require_reader()
            self._styles = translator.styles_like(read_image(reference), 1, seed)
        else:
            translator.require_restainer()

    def __len__(self) -> int:
        return len(self._tissue)

    def identity(self, index: int) -> str:
        return self._names[index]

    def files(self, index: int) -> list[Path]:
        return [Path("images", f"{self._names[index]}.png")]

    def make(self, index: int, folder: Path) -> None:
        _check_mpp(self._tissue.entries[index].mpp, self._translator.mpp, f"tile {self._names[index]}")
        image = self._tissue.image(index)
        if self._styles is None:
            image = self._translator.restain(image)
        else:
            image = self._translator.render(self._translator.segment(image), self._styles, self._seed)[0, 0]
        write_image(_with_folder(folder / self.files(index)[0]), image)

    def rows(self, index: int) -> list[Row]:
        entry = self._tissue.entries[index]
        return [(self.files(index)[0].as_posix(), entry.label, entry.patient, entry.mpp, entry.split, "")]

    def describe(self) -> str:
        return self._tissue.describe()


def open_masks(
    named: str, translator: TrainedTranslator, *, count: int | None, size: int | None, mpp: float | None, seed: int
) -> Tiles:
    """The masks a user names: `layout`, a folder of instance maps, or a set of tiles that have masks.

    Args:
        count: how many; None takes all there are.
        size: side of layouts in pixels; None is the generator's tile.
        mpp: µm/px of all of them, before what the files say; None: as these say.

    Raises:
        InputError: nothing usable, or more asked for than there is.
    """
    folder = Path(named)
    if named == "layout":
        mpp = mpp or translator.mpp
        if count is None or mpp is None:
            missing = "--count, how many to draw" if count is None else "--mpp, since the generator's µm/px is unknown"
            raise InputError(f"Layouts need {missing}; add it.")
        return Layouts(translator.layout, seed, size=size or translator.tile_size, mpp=mpp, count=count)
    if size is not None:
        raise InputError(f"--size {size} is the side of layouts, but masks were named; leave it out.")
    if is_described(named):
        tiles = open_tiles(named, mpp=mpp, cache_mb=0)
        having = [k for k, entry in enumerate(tiles.entries) if entry.mask is not None]
        if not having:
            raise InputError(f"{named} names no masks; fill the column mask of its tiles.csv, or name another folder.")
        return TileSet(tiles.entries.take(_first(having, count, folder)), cache_mb=0)
    if not folder.is_dir():
        raise InputError(
            f"--masks {named!r} is no folder; expected a folder of masks or of tiles with masks, or layout."
        )
    jpegs = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    if jpegs:
        raise InputError(
            f"{jpegs[0]} is a JPEG, whose compression changes ids; give instance maps as 16-bit PNG, TIFF or .npy."
        )
    files = _first(mask_files(folder)[0], count, folder)
    for file in files:
        stated = read_mpp(file) if mpp is None and file.suffix.lower() != ".npy" else mpp
        _check_mpp(stated, translator.mpp, f"mask {file}")
    return MaskSet(files, cache_mb=0)


def open_tissue(named: str, *, count: int | None, mpp: float | None) -> TileSet:
    """The tissue a user names.

    Raises:
        InputError: nothing usable, or more asked for than there is.
    """
    tiles = open_tiles(named, mpp=mpp, cache_mb=0)
    entries = tiles.entries
    assert isinstance(entries, Entries)
    return TileSet(entries.take(_first(range(len(tiles)), count, named)), cache_mb=0)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 [3, H, W] as PNG, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    data = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(data, format="PNG")
    with writing(path), written_whole(path) as file:
        file.write(data.getvalue())


def _first(items: Sequence[T], count: int | None, named: str | Path) -> list[T]:
    if count is not None and count > len(items):
        raise InputError(f"--count is {count}, but {named} holds {len(items)}; ask for that many, or leave it out.")
    return list(items[:count])


def _with_folder(path: Path) -> Path:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _check_mask(instances: NDArray[np.int32], name: str) -> None:
    if instances.max() > LARGEST_ID:
        raise InputError(
            f"The {name} holds the id {instances.max()}, but labels beside the tissue end at {LARGEST_ID}; renumber it."
        )
    if instances.size > 1 and instances.min() == instances.max() > 0:
        raise InputError(
            f"The {name} is one nucleus, {instances.max()}, without background; expected 0 outside nuclei: check "
            "whether it is inverted."
        )


def _check_mpp(own: float | None, trained: float | None, name: str) -> None:
    if own is not None and trained is not None and not math.isclose(own, trained, rel_tol=MPP_TOLERANCE):
        raise InputError(
            f"The {name} has {own:g} µm/px, but the run learned at {trained:g}; resize it to that, or correct --mpp."
        )
