"""Picture panels with fixed inputs: what a person looks at while a translator learns."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries
from torch import Tensor

from histo.segmenters import Reading, instances_of
from translate.agreement import Probe, to_bytes
from translate.engine import Translator

ROWS = 6
STYLES = 3
OUTLINE = np.array([60, 255, 90], np.uint8)
HEADER = 16  # pixels


@torch.no_grad()
def draw_panels(probe: Probe, translator: Translator) -> dict[str, NDArray[np.uint8]]:
    """Two sheets, RGB uint8 [H, W, 3], by the averaged networks.

    "mask to tissue": mask, G's tissue in three styles, S's mask of the first, nuclei found in it.
    "tissue to mask": tissue, nuclei found in it, S's mask image, G's tissue from that mask.
    """
    generator, segmenter = translator.generator_average, translator.segmenter_average
    device = translator.accelerator.device
    masks, tissue = probe.masks[:ROWS].to(device), probe.tissue[:ROWS].to(device)
    with translator.accelerator.autocast():
        rendered = [
            generator(masks, *translator.style(f"panel style {k}", list(range(len(masks))), training=False))
            for k in range(STYLES)
        ]
        read_back = segmenter(rendered[0])
        read = segmenter(tissue)
        style = translator.style("panel style 0", list(range(len(tissue))), training=False)
        again = generator(read.mask, *style)
    there = {"mask x": to_bytes(masks)}
    there |= {f"G(x), style {k + 1}": to_bytes(image) for k, image in enumerate(rendered)}
    there |= {"S(G(x))": to_bytes(read_back.mask), "its nuclei": _overlay(rendered[0], read_back)}
    back = {"tissue y": to_bytes(tissue), "nuclei of S(y)": _overlay(tissue, read)}
    back |= {"S(y)": to_bytes(read.mask), "G(S(y))": to_bytes(again)}
    return {"mask_to_tissue": _sheet(there), "tissue_to_mask": _sheet(back)}


def _overlay(images: Tensor, reading: Reading) -> NDArray[np.uint8]:
    pictures = to_bytes(images)
    for k, picture in enumerate(pictures):
        picture[:, find_boundaries(instances_of(reading, k), mode="inner")] = OUTLINE[:, None]
    return pictures


def _sheet(columns: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Columns of tiles under their titles; small tiles are enlarged without smoothing."""
    side = next(iter(columns.values())).shape[-1]
    zoom = max(1, 128 // side)
    cell = side * zoom + 4
    rows = len(next(iter(columns.values())))
    sheet = Image.new("RGB", (cell * len(columns), HEADER + cell * rows), "white")
    pen = ImageDraw.Draw(sheet)
    for across, (title, tiles) in enumerate(columns.items()):
        pen.text((across * cell + 4, 2), title, fill="black")
        for down, tile in enumerate(tiles):
            picture = Image.fromarray(tile.transpose(1, 2, 0)).resize((side * zoom,) * 2, Image.Resampling.NEAREST)
            sheet.paste(picture, (across * cell + 2, HEADER + down * cell + 2))
    return np.asarray(sheet)
