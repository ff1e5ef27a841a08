"""The target of a step: the tile in whose colours all others of the batch are shown (Tiard et al., arXiv 2211.07590).

It is the same in all processes, since it is drawn by the step's first image index and judged by the stains of the batch
of all processes. A target that looks like the mean of the batch changes nothing, and the two views of a tile would
differ by their geometry alone; so another is drawn instead. Nothing here fails on what a tile shows.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

from histo.crops import crop
from histo.errors import InputError
from histo.images import read_image
from histo.randomness import draws
from histo.stains import distinct, target_of
from histo.stains.estimation import StainEstimate
from histo.stains.normalisation import MethodName
from histo.stains.status import Status, usable
from histo.tiles import Tile
from pretrain.appearance import Look, NormaliserName, joined, look, rows
from pretrain.fourier import spectra
from pretrain.pool import DataSettings, Pool

Mode = Literal["batch", "dataset", "bank", "fixed", "center"]
DRAWS = 8  # of tiles of the pool, which have to be read, for one step
BANK = 16  # medoids
SAMPLE = 128  # tiles of the pool among which they are sought; each has to be read
NOBODY = -1


class Seen(NamedTuple):
    """The batch of all processes, in the order of image indices.

    Attributes:
        stains: of each tile.
        look: by the normaliser of the step.
        sources: int64 [B], number of the source of each.
    """

    stains: StainEstimate
    look: Look
    sources: Tensor


class Candidate(NamedTuple):
    """A tile that may be the target; `kin` is the group of tiles that are not shown in its colours.

    stains, look: of one row.
    """

    stains: StainEstimate
    look: Look
    kin: int


class Chosen(NamedTuple):
    """What each tile of the batch is to look like.

    Attributes:
        look: one row for each; its status is `NO_TARGET` where no tile was fit to be a target.
        redrawn: whether the first tile drawn was not.
    """

    look: Look
    redrawn: bool


class Targets:
    """Draws the target of every step.

    Args:
        mode: batch: uniform over the batch; the target itself is shown in the colours of the next one drawn. dataset:
            uniform over the pool. bank: in turn, 16 medoids of the stains of 128 tiles of the pool. fixed: the image at
            `path`. center: uniform over the batch; tiles of the target's own source are shown in the colours of the
            next tile drawn that is of another.
        path: of the fixed target.
        names: normalisers that will be asked for.
        batch: tiles of a step, of all processes.

    Raises:
        InputError: a fixed target that cannot be read or has nothing to normalise to, one source where the target is to
            be of another, or a pool in which no tile has stains.
    """

    def __init__(
        self,
        mode: Mode,
        path: str | None,
        names: tuple[NormaliserName, ...],
        pool: Pool,
        data: DataSettings,
        seed: int,
        batch: int,
        device: torch.device,
    ) -> None:
        self.mode, self.pool, self.data, self.seed, self.batch, self.device = mode, pool, data, seed, batch, device
        self.bank: list[Tensor] = []  # tiles, uint8 [1, 3, t, t]
        self.known: dict[tuple[int, NormaliserName], Candidate] = {}  # of the bank by number, or the fixed one as 0
        if mode == "center" and len(pool.names) < 2:
            raise InputError(
                f"stain_invariant.mode is center, but all tiles come from {pool.names[0]}, expected two sources or "
                "more in --data.tissue, one for each centre; name more, or take mode batch."
            )
        if mode == "fixed":
            assert path is not None
            self.known = {(0, name): self._fixed(path, name) for name in names}
        if mode == "bank":
            self.bank = self._medoids()

    def choose(self, step: int, name: NormaliserName, seen: Seen) -> Chosen:
        """The target of a step.

        Args:
            step: index of the first image of the batch of all processes.
            name: normaliser of the step.
            seen: that batch.
        """
        kin = self._kin(seen)
        found: list[Candidate] = []
        redrawn = False
        for candidate in self._candidates(step, name, seen, kin):
            if found and candidate.kin == found[0].kin:
                continue
            fit = usable(candidate.look.status)
            if self.mode != "fixed":
                fit = fit & distinct(candidate.stains, batch=seen.stains)
            if fit:
                found.append(candidate)
                if len(found) == 2 or candidate.kin not in kin:
                    break
            redrawn = redrawn or not found
        if not found:
            return Chosen(_without(seen.look, torch.ones_like(seen.sources, dtype=torch.bool)), redrawn)
        own = torch.tensor([group == found[0].kin for group in kin], device=self.device)
        looks = joined([candidate.look for candidate in found])
        spread = rows(looks, own.long().clamp(max=len(found) - 1))
        return Chosen(spread if len(found) == 2 else _without(spread, own), redrawn)

    def _kin(self, seen: Seen) -> list[int]:
        """Group of each tile of the batch."""
        if self.mode == "center":
            return seen.sources.tolist()
        return list(range(len(seen.sources))) if self.mode == "batch" else [NOBODY - 1] * len(seen.sources)

    def _candidates(self, step: int, name: NormaliserName, seen: Seen, kin: list[int]) -> Iterator[Candidate]:
        """Tiles in the order in which they are drawn."""
        generator = draws(self.seed, "stain target", step)
        if self.mode in ("batch", "center"):
            for place in generator.permutation(len(kin)):
                row = torch.tensor([place], device=self.device)
                yield Candidate(rows(seen.stains, row), rows(seen.look, row), kin[place])
        if self.mode in ("batch", "center", "dataset"):
            for _ in range(DRAWS):
                position = int(generator.choice(self.pool.tissue.shown))
                try:
                    tile = self._read(position, generator)
                except InputError:
                    continue  # the loader will say so in its turn
                source = int(self.pool.numbers[position]) if self.mode == "center" else NOBODY
                yield Candidate(*look(tile, name), source)
        elif self.mode == "fixed":
            yield self.known[0, name]
        else:
            for k in range(len(self.bank)):
                place = (step // self.batch + k) % len(self.bank)
                if (place, name) not in self.known:
                    self.known[place, name] = Candidate(*look(self.bank[place], name), NOBODY)
                yield self.known[place, name]

    def _read(self, position: int, generator: np.random.Generator) -> Tensor:
        """A crop of a tile of the pool, uint8 [1, 3, t, t]."""
        tile = self.pool.tissue.tiles[position]
        return self._cropped(replace(tile, instances=None), generator)

    def _cropped(self, tile: Tile, generator: np.random.Generator) -> Tensor:
        image = crop(tile, self.data.tile_size, generator, turn=False).image
        return torch.from_numpy(image)[None].to(self.device)

    def _fixed(self, path: str, name: NormaliserName) -> Candidate:
        """The look of a whole image; for Fourier amplitudes of a crop of it, since they depend on its size."""
        image = read_image(path)
        try:
            looks = {kind: target_of(torch.from_numpy(image).to(self.device), kind) for kind in _stained(name)}
        except InputError as error:
            raise InputError(f"stain_invariant.target is {path}: {error}") from error
        stains = looks["macenko"]
        assert isinstance(stains, StainEstimate)
        if name != "fourier":
            return Candidate(stains, looks[name], NOBODY)
        bare = Tile(image, path, "", None, None, None, None, None)
        return Candidate(stains, spectra(self._cropped(bare, draws(self.seed, "stain target", 0))), NOBODY)

    def _medoids(self) -> list[Tensor]:
        """Medoids of k-means over stain vectors, each scaled to deviation 1; the same in every process."""
        generator = draws(self.seed, "stain bank", 0)
        sample = generator.permutation(self.pool.tissue.shown)[:SAMPLE]
        tiles = [self._read(int(position), generator) for position in sample]
        stains = joined([look(tile, "macenko")[0] for tile in tiles])
        good = stains.ok.nonzero()[:, 0].tolist()
        if not good:
            raise InputError(
                f"None of {len(tiles)} tiles of --data.tissue has H&E stains to make a bank of targets from; take "
                "other tiles, or a fixed target."
            )
        vectors = stains.vectors[good].double().cpu().numpy()
        vectors = vectors / np.maximum(vectors.std(axis=0), 1e-6)
        if len(good) <= BANK:
            return [tiles[k] for k in good]
        start = _spread_out(vectors, generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a cluster may become empty, and its centre then stays
            centres, _ = kmeans2(vectors, start, iter=20, minit="matrix")
        distance = np.linalg.norm(vectors[:, None] - centres, axis=2)
        return [tiles[good[k]] for k in sorted(set(distance.argmin(axis=0).tolist()))]


def _spread_out(vectors: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """First centres, [BANK, D] of [N, D]: each drawn by its squared distance from those before (k-means++)."""
    chosen = [int(generator.integers(len(vectors)))]
    while len(chosen) < BANK:
        distance = np.square(vectors[:, None] - vectors[chosen]).sum(axis=2).min(axis=1)
        total = distance.sum()
        chosen.append(int(generator.choice(len(vectors), p=distance / total if total > 0 else None)))
    return vectors[chosen]


def _stained(name: NormaliserName) -> set[MethodName]:
    """What to measure of a fixed target; its stains have to be those of tissue whatever the normaliser."""
    return {"macenko"} if name == "fourier" else {"macenko", name}


def _without(found: Any, where: Tensor) -> Any:
    """A look with status `NO_TARGET` where bool [N]."""
    return found._replace(status=torch.where(where, int(Status.NO_TARGET), found.status))
