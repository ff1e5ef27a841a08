"""Picture panels with fixed inputs: what a person looks at while a translator learns."""

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries
from torch import Tensor

from histo.segmenters import Reading, instances_of
from histo.sheets import sheet
from translate.agreement import Probe, to_bytes
from translate.engine import Translator

ROWS = 6
STYLES = 3
OUTLINE = np.array([60, 255, 90], np.uint8)


@torch.no_grad()
def draw_panels(probe: Probe, translator: Translator) -> dict[str, NDArray[np.uint8]]:
    """A sheet for each direction the method learns, RGB uint8 [H, W, 3], by the averaged networks.

    There: the source x, what G draws of it, in several styles where it has them, the way back, and the nuclei found.
    Back: the target y, the nuclei found, the source-like image of it, and the way there again. Between masks and tissue
    they are named "mask_to_tissue" and "tissue_to_mask", else "source_to_target" and "target_to_source".
    """
    device = translator.accelerator.device
    source, target = probe.source[:ROWS].to(device), probe.target[:ROWS].to(device)
    rows = list(range(len(source)))
    masks = not translator.recipe.data.between_tissues
    x, y = ("mask x", "tissue y") if masks else ("source x", "target y")
    sheets = {}
    with translator.accelerator.autocast():
        drawn = [
            image
            for k in range(STYLES)
            if (image := translator.to_target(source, f"panel style {k}", rows)) is not None
        ]
        if drawn:
            if torch.equal(drawn[0], drawn[1]):  # one style only
                drawn = drawn[:1]
            there = {x: to_bytes(source)} | {f"G(x), style {k + 1}": to_bytes(each) for k, each in enumerate(drawn)}
            back = translator.to_source(drawn[0])
            if back is not None:
                there["x again"] = to_bytes(back)
            if translator.reader:
                there["its nuclei"] = _overlay(drawn[0], translator.reader(drawn[0]))
            sheets["mask_to_tissue" if masks else "source_to_target"] = sheet(there)
        read = translator.to_source(target)
        if read is not None:
            here = {y: to_bytes(target)}
            if translator.reader:
                here["nuclei of y"] = _overlay(target, translator.reader(target))
            here["S(y)" if masks else "F(y)"] = to_bytes(read)
            again = translator.to_target(read, "panel style 0", list(range(len(target))))
            if again is not None:
                here["y again"] = to_bytes(again)
            sheets["tissue_to_mask" if masks else "target_to_source"] = sheet(here)
    return sheets


def _overlay(images: Tensor, reading: Reading) -> NDArray[np.uint8]:
    pictures = to_bytes(images)
    for k, picture in enumerate(pictures):
        picture[:, find_boundaries(instances_of(reading, k), mode="inner")] = OUTLINE[:, None]
    return pictures
