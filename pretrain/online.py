"""The probe that looks at an encoder while it trains, and never trains it.

It reads features without gradients, in evaluation mode, draws nothing from a global generator, and leaves weights,
running statistics and modes as it found them. Labels are seen by the probe alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from histo.errors import InputError
from histo.metrics.classification import scores
from histo.phantom import PhantomTissue
from histo.probes import (
    alignment,
    centred,
    draw_stains,
    effective_rank,
    embed,
    fit_linear,
    fitted,
    folds,
    in_stains,
    knn,
    spread,
    stain_sensitivity,
    uniformity,
)
from histo.randomness import draws
from histo.tiles import Tile, TileEntry, Tiles, open_tiles
from pretrain.views import ViewSettings, view

TRAIN, TEST = "train", "test"
DRAWN_FOLDS = 4  # one of them is the test part where a set has no splits
STAINED = 64  # tiles whose embeddings are compared over stains
PANEL_ROWS = 6
THUMBNAILS = 500  # TensorBoard's sprite is one picture of at most 8192 px a side
THUMBNAIL = 48  # pixels a side
_CAPTION = 14  # pixels
_GAP = 4


@dataclass
class ProbeSettings:
    """How the encoder is probed while it trains."""

    labelled: list[str] | str | None = None
    """labelled tiles for kNN and linear accuracy, which never train the encoder; several as [a, b]; phantom:
    procedural tissue of another seed; null: none"""
    every: int = 0
    """probe every so many images; 0: never"""
    k: int = 20
    """neighbours that vote"""
    tiles: int = 1000
    """tiles looked at, at most, train and test part together"""
    stains: int = 5
    """stains that a tile is shown in"""

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("k", 1), ("tiles", 4), ("stains", 2)):
            if getattr(self, name) < least:
                raise InputError(f"--probe.{name} is {getattr(self, name)}, expected {least} or more.")


class Projection(NamedTuple):
    """What TensorBoard's projector shows: `SummaryWriter.add_embedding(vectors, metadata, thumbnails, step)`.

    Attributes:
        vectors: float32 [N, D].
        metadata: a label for each tile, its source where it has none.
        thumbnails: float32 [N, 3, 48, 48] in [0, 1].
    """

    vectors: Tensor
    metadata: list[str]
    thumbnails: Tensor


class OnlineProbe:
    """The same tiles, stains and parts at every look, so that two looks differ by the encoder alone.

    Tiles are read once, here, and brought to `tile_size` whole, whatever their scale and aspect.

    Args:
        settings: of the probe.
        tile_size: pixels a side that the encoder sees.
        mean, std: of each channel, of levels scaled to [0, 1].
        seed: of tiles, parts and stains.
        unlabelled: tiles for the figures that need no labels, where `settings.labelled` is null; best held out.

    Attributes:
        basis: what the figures rest on, for people.

    Raises:
        InputError: neither labelled nor other tiles, tiles without labels or of one class, a class of too few patients,
            a tile that cannot be read, or none that has stains.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        tile_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        unlabelled: Tiles | None = None,
    ) -> None:
        self.settings, self.mean, self.std = settings, tuple(mean), tuple(std)
        self.labelled = settings.labelled is not None
        self.classes: list[str] = []
        if settings.labelled is not None:
            if settings.labelled == "phantom":
                tiles: Tiles = PhantomTissue(seed + 2, size=tile_size, count=settings.tiles)
                known: Sequence[Tile | TileEntry] = [tiles[k] for k in range(len(tiles))]
            else:
                described = open_tiles(settings.labelled, cache_mb=0)
                tiles, known = described, described.entries
            chosen, self.split = _labelled_parts(known, settings, seed)
        elif unlabelled is not None and len(unlabelled):
            tiles, self.split = unlabelled, "no labels"
            chosen = {"all": _some(np.arange(len(tiles)), settings.tiles, seed)}
        else:
            raise InputError("The probe has no tiles to look at; give --probe.labelled, or hold out some tiles.")
        self.basis = f"{sum(map(len, chosen.values()))} of {tiles.describe()} · {self.split}"
        read = {part: [tiles[int(position)] for position in positions] for part, positions in chosen.items()}
        self.images = {
            part: torch.from_numpy(np.stack([fitted(tile, tile_size) for tile in some])) for part, some in read.items()
        }
        if self.labelled:
            self.classes = sorted({str(tile.label) for some in read.values() for tile in some})
            self.truth = {
                part: torch.tensor([self.classes.index(str(tile.label)) for tile in some])
                for part, some in read.items()
            }
        self.looked_at = TEST if self.labelled else "all"
        self.names = [tile.label or tile.source for tile in read[self.looked_at]]
        some = torch.from_numpy(_some(np.arange(len(self.names)), STAINED, seed))
        stained = in_stains(self.images[self.looked_at][some], draw_stains(seed, settings.stains))
        if int(stained.usable.sum()) < 2:
            raise InputError(
                f"{int(stained.usable.sum())} of the probe's {len(some)} tiles has H&E stains, expected 2 or more to "
                "restain; give other tiles by --probe.labelled, or set --probe.every 0."
            )
        self.original = self.images[self.looked_at][some][stained.usable]
        self.stained = stained.images[:, stained.usable]

    def measure(
        self, encoder: nn.Module, device: torch.device | str, views: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, float]:
        """The encoder's figures, for the log.

        Args:
            encoder: maps float [N, 3, H, W], scaled by mean and std, to features [N, D].
            device: of the encoder.
            views: features float [N, D] of two views of the same tiles (`views`), for the alignment; None: none.

        Returns:
            probe/spread, probe/spread_share (of the healthy 1 / √D); of features less their mean (`centred`)
            probe/uniformity, probe/effective_rank,
            probe/stain_cosine, probe/stain_ratio; with labels probe/knn_… and probe/linear_…, each accuracy,
            balanced_accuracy and macro_f1; with `views` probe/alignment. Of features that are not finite only the
            spread is told, as NaN.
        """
        features = {part: self._embed(encoder, images, device) for part, images in self.images.items()}
        seen = features[self.looked_at]
        stained = torch.stack([self._embed(encoder, images, device) for images in self.stained])
        if not all(each.isfinite().all() for each in (*features.values(), stained)):
            return {"probe/spread": float("nan"), "probe/spread_share": float("nan")}
        around = features[TRAIN] if self.labelled else seen
        sensitivity = stain_sensitivity(centred(stained, around))
        found = {
            "uniformity": uniformity(centred(seen, around)),
            "spread": spread(seen),
            "spread_share": spread(seen) * seen.shape[1] ** 0.5,
            "effective_rank": effective_rank(centred(seen, around)),
            "stain_cosine": sensitivity.cosine,
            "stain_ratio": sensitivity.ratio,
        }
        if views is not None:
            found["alignment"] = alignment(*(centred(each, around) for each in views))
        if self.labelled:
            train, truth = features[TRAIN], self.truth
            count = len(self.classes)
            guesses = {
                "knn": knn(centred(train, train), truth[TRAIN], centred(seen, train), count, self.settings.k),
                "linear": fit_linear(train, truth[TRAIN], count)(seen).argmax(dim=1),
            }
            for kind, guess in guesses.items():
                found |= {f"{kind}_{name}": value for name, value in scores(guess, truth[TEST], count).items()}
        return {f"probe/{name}": value for name, value in found.items()}

    def views(
        self, encoder: nn.Module, device: torch.device | str, settings: ViewSettings, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Features of two views of some tiles, float [N, D] each, for `measure`."""
        images = self.original.to(device)
        indices = list(range(len(images)))
        one, other = (
            self._embed(encoder, view(images, settings, seed, f"probe {name} view", indices).round().byte(), device)
            for name in ("first", "second")
        )
        return one, other

    def panel(self, encoder: nn.Module, device: torch.device | str) -> NDArray[np.uint8]:
        """Some tiles as they are and in every stain, with the cosine similarity to the first: uint8 [H, W, 3]."""
        rows = np.unique(np.linspace(0, len(self.original) - 1, PANEL_ROWS).round().astype(int)).tolist()
        originals, stained = self.original[rows], self.stained[:, rows]
        columns = [originals, *stained]
        around = self._embed(encoder, self.original, device)
        vectors = [normalize(centred(self._embed(encoder, images, device), around), dim=1) for images in columns]
        side = originals.shape[-1]
        zoom = max(1, 128 // side)
        wide, high = side * zoom + _GAP, side * zoom + _CAPTION + _GAP
        sheet = Image.new("RGB", (wide * len(columns), high * len(originals)), "white")
        pen = ImageDraw.Draw(sheet)
        for across, images in enumerate(columns):
            for down, image in enumerate(images):
                tile = Image.fromarray(image.permute(1, 2, 0).numpy())
                place = (across * wide + _GAP // 2, down * high + _GAP // 2)
                sheet.paste(tile.resize((side * zoom,) * 2, Image.Resampling.NEAREST), place)
                text = f"{float(vectors[across][down] @ vectors[0][down]):.3f}" if across else self._title(down)
                pen.text((place[0], place[1] + side * zoom), text, fill="black")
        return np.asarray(sheet)

    def projection(self, encoder: nn.Module, device: torch.device | str) -> Projection:
        """Embeddings, labels and thumbnails of the tiles looked at, of 500 at most."""
        images = self.images[self.looked_at][:THUMBNAILS]
        small = interpolate(images.float() / 255, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
        return Projection(self._embed(encoder, images, device), self.names[: len(images)], small.clamp(0, 1))

    def _embed(self, encoder: nn.Module, images: Tensor, device: torch.device | str) -> Tensor:
        return embed(encoder, images, self.mean, self.std, device)

    def _title(self, row: int) -> str:
        return "cosine to this one:" if row == 0 else ""


def _labelled_parts(
    entries: Sequence[Tile | TileEntry], settings: ProbeSettings, seed: int
) -> tuple[dict[str, NDArray[np.int64]], str]:
    """Positions of the train and the test part, and how they were made."""
    unlabelled = [entry.key for entry in entries if entry.label is None]
    if unlabelled:
        raise InputError(
            f"{len(unlabelled)} of the {len(entries)} tiles of --probe.labelled have no label, first {unlabelled[0]}; "
            "fill the column label of tiles.csv, or set --probe.labelled null for the figures without labels."
        )
    labels = [str(entry.label) for entry in entries]
    if len(set(labels)) < 2:
        raise InputError(
            f"All {len(entries)} tiles of --probe.labelled have the label {labels[0]}, expected two classes or more; "
            "give another set, or null for the figures without labels."
        )
    splits = np.array([entry.split or "" for entry in entries])
    if {TRAIN, TEST} <= set(splits):
        parts = {part: np.flatnonzero(splits == part) for part in (TRAIN, TEST)}
        said = "the set's own splits train and test"
    else:
        patients = [None if entry.patient is None else (entry.source, entry.patient) for entry in entries]
        fold = folds(patients, labels, DRAWN_FOLDS, seed)
        parts = {TRAIN: np.flatnonzero(fold != 0), TEST: np.flatnonzero(fold == 0)}
        by = "patient" if None not in patients else "tile where the patient is unknown"
        said = f"a quarter for test, drawn by {by}"
    share = min(1.0, settings.tiles / sum(map(len, parts.values())))
    parts = {part: _some(positions, max(2, int(len(positions) * share)), seed) for part, positions in parts.items()}
    if len({labels[position] for position in parts[TRAIN]}) < 2:
        raise InputError(
            f"The probe's {len(parts[TRAIN])} training tiles have one label, expected two classes or more; raise "
            "--probe.tiles, or give a set with other splits."
        )
    return parts, said


def _some(positions: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many of the positions, drawn by the seed, in their own order."""
    if len(positions) <= most:
        return positions
    chosen: NDArray[np.int64] = np.sort(draws(seed, "probe tiles", len(positions)).permutation(positions)[:most])
    return chosen
