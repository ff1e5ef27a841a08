"""Picture panels with fixed tiles: what the encoder is shown, and how alike it finds it."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from histo.sheets import sheet
from pretrain.learner import Learner
from pretrain.objective import Batch
from pretrain.pairs import PairObjective
from pretrain.pool import PooledCrops

ROWS = 8
CELL = 48  # pixels of a tile beside the similarities


class Panels:
    """The first tiles of a run, drawn anew at every look; the encoder alone differs.

    Args:
        crops: what the run learns from.
        learner: whose objectives show it.
    """

    def __init__(self, crops: PooledCrops, learner: Learner) -> None:
        self.learner = learner
        self.items = default_collate([crops[index] for index in range(ROWS)])

    @torch.no_grad()
    def draw(self) -> dict[str, NDArray[np.uint8]]:
        """Sheets of what each objective shows, and of pairs of tiles their similarities; RGB uint8 [H, W, 3]."""
        learner = self.learner
        batch = Batch.of(dict(self.items), learner.accelerator.device)
        pictures = {}
        modes = {name: network.training for name, network in learner.networks.items()}
        for network in learner.networks.values():
            network.eval()
        for name, objective in learner.objectives.items():
            shown = objective.show(batch)
            for title, columns in objective.sheets(batch, shown).items():
                pictures[f"{name}_{title}"] = sheet({column: _levels(value) for column, value in columns.items()})
            if isinstance(objective, PairObjective):
                with learner.accelerator.autocast():
                    embedded, _ = objective.embed(shown)
                    pair = [F.normalize(each.float(), dim=1) for each in objective.projected(embedded)]
                views = [_levels(shown[key]) for key in ("first", "second")]
                pictures[f"{name}_similarity"] = similarities(pair[0] @ pair[1].T, *views)
        for name, network in learner.networks.items():
            network.train(modes[name])
        return pictures


def similarities(cosines: Tensor, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cosines of each first view (down) with each second one (across), from blue at -1 over white to red at 1.

    Args:
        cosines: float [N, N]; those of positives are on the diagonal.
        first, second: uint8 [N, 3, s, s].

    Returns:
        RGB uint8 [H, W, 3], the views along the edges.
    """
    count = len(cosines)
    page = np.full(((count + 1) * CELL, (count + 1) * CELL, 3), 255, dtype=np.uint8)
    small = [F.interpolate(torch.from_numpy(v).float(), (CELL, CELL), mode="area") for v in (first, second)]
    values = cosines.clamp(-1, 1).float().cpu().numpy()
    for row in range(count):
        place = slice((row + 1) * CELL, (row + 2) * CELL)
        page[place, :CELL] = small[0][row].permute(1, 2, 0).byte().numpy()
        page[:CELL, place] = small[1][row].permute(1, 2, 0).byte().numpy()
        for column in range(count):
            value = values[row, column]
            fade = np.array([1 - max(0.0, -value), 1 - abs(value), 1 - max(0.0, value)])
            page[place, (column + 1) * CELL : (column + 2) * CELL] = np.rint(255 * fade).astype(np.uint8)
    picture = Image.fromarray(page)
    pen = ImageDraw.Draw(picture)
    for row in range(count):
        for column in range(count):
            pen.text(((column + 1) * CELL + 8, (row + 1) * CELL + 18), f"{values[row, column]:.2f}", fill="black")
    return np.asarray(picture)


def _levels(images: Tensor) -> NDArray[np.uint8]:
    return images.detach().float().clamp(0, 255).round().byte().cpu().numpy()
