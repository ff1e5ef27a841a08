"""Content agreement tells kept nuclei from swapped ones; panels have the shape people look at."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from histo.segmenters import Reading
from translate.agreement import Probe, measure, to_bytes, to_unit
from translate.domains import DataSettings, open_domains
from translate.panels import draw_panels


class Reads(nn.Module):
    """A segmenter of tissue that is the mask image itself; `swapped` takes background for nuclei."""

    head = "semantic"

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(-1.0 if swapped else 1.0))

    def forward(self, image: Tensor, guided: bool = True) -> Reading:
        nucleus = (image.amax(1, keepdim=True) > -0.9).float() * 2 - 1
        return Reading(image if self.sign > 0 else -image, nucleus * self.sign)


def translator(swapped: bool) -> Any:
    reader = Reads(swapped)
    return SimpleNamespace(
        recipe=SimpleNamespace(data=DataSettings()),
        to_target=lambda source, stream, indices: source,
        to_source=lambda target: reader(target).mask,
        reader=reader,
        accelerator=Accelerator(mixed_precision="bf16"),
        tile_size=64,
    )


@pytest.fixture(scope="module")
def probe(tile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    settings = DataSettings(tissue=str(tile_folder), tile_size=64)
    return Probe.draw(open_domains(settings, 0, tmp_path_factory.mktemp("masks"), progress=False), settings, 0)


def test_kept_content_agrees_and_swapped_content_does_not(probe: Probe) -> None:
    kept, swapped = measure(probe, translator(False)), measure(probe, translator(True))
    assert kept["content/segmenter_dice"] > 0.97
    assert kept["content/segmenter_pq"] > 0.9
    assert swapped["content/segmenter_dice"] < 0.1
    assert {"content/watershed_dice", "holdout_dice", "holdout_aji", "holdout_pq"} <= kept.keys()


def test_the_probe_is_labelled_and_held_out(probe: Probe) -> None:
    assert {tile.split for tile in probe.held_out} == {"test"}
    assert all(tile.instances is not None for tile in probe.held_out)
    assert probe.nuclei
    assert all(nuclei.any() for nuclei in probe.nuclei)
    assert probe.source.shape[1:] == probe.target.shape[1:] == (3, 64, 64)
    assert probe.mpp == pytest.approx(0.5)


def test_without_magnification_there_is_no_watershed(probe: Probe) -> None:
    unknown = Probe(probe.source, probe.nuclei, probe.target, [], None)
    assert set(measure(unknown, translator(False))) == {f"content/segmenter_{name}" for name in ("dice", "aji", "pq")}


def test_panels(probe: Probe) -> None:
    sheets = draw_panels(probe, translator(False))
    assert set(sheets) == {"mask_to_tissue", "tissue_to_mask"}
    for sheet in sheets.values():
        assert sheet.dtype == np.uint8
        assert sheet.shape[2] == 3
    assert sheets["mask_to_tissue"].shape[1] == 4 * 132, "one style: mask, tissue, mask again, nuclei"


def test_bytes_and_units_are_inverse() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1)
    assert np.array_equal(to_bytes(to_unit(values)), values)
    assert to_bytes(torch.full((1, 3, 2, 2), 7.0)).max() == 255
