"""The baselines learn what a few steps can teach: the colours of other tissue."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from histo.phantom import PhantomTissue
from tests.methods import arguments
from translate.networks import generators
from translate.train import main


def colours(images: Tensor) -> Tensor:
    return images.mean((0, 2, 3))


def pictures(folder: Path) -> Tensor:
    """The upper left 64 px of each, float [N, 3, 64, 64] in [-1, 1]."""
    arrays = [np.array(Image.open(file))[:64, :64] for file in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def two_stains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tissue, and other tissue whose red and green are exchanged."""
    folders = (tmp_path_factory.mktemp("stain-a"), tmp_path_factory.mktemp("stain-b"))
    tissue = PhantomTissue(3, size=80, count=24)
    for k in range(24):
        picture = tissue[k].image.transpose(1, 2, 0)
        other = k >= 12
        shown = picture[..., [1, 0, 2]] if other else picture
        Image.fromarray(np.ascontiguousarray(shown)).save(folders[other] / f"{k}.png")
    return folders


@pytest.mark.parametrize(
    ("method", "more", "left"),
    [("cyclegan", ("--loss.identity", "0"), 1 / 3), ("cut", ("--loss.patches", "32"), 3 / 4)],
)
def test_it_learns_the_colours_of_other_tissue(
    method: str, more: tuple[str, ...], left: float, two_stains: tuple[Path, Path], tmp_path: Path
) -> None:
    """48 steps leave this much of the distance of mean colours, and bring tissue nearer to its own other colours."""
    source, target = two_stains
    rates = ("--train.learning_rate", "2e-3", "--train.judge_learning_rate", "2e-3", "--train.ema_images", "20")
    length = ("--train.images", "96", "--train.batch_size", "2", "--train.precision", "fp32")
    domains = ("--data.tissue", str(source), "--data.target", str(target), "--data.mpp", "0.5")
    main(
        [
            *arguments(method, *domains, *length, *rates, "--discriminator.width", "16", *more),
            "--run.dir",
            str(tmp_path),
        ]
    )
    generator, _ = generators.load(tmp_path / "export" / "generator.safetensors")
    x, y = pictures(source), pictures(target)
    drawn = generator(x)
    assert (colours(drawn) - colours(y)).norm() < left * (colours(x) - colours(y)).norm()
    truth = x[:, [1, 0, 2]]
    assert (drawn - truth).abs().mean() < (x - truth).abs().mean()
