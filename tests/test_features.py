"""Feature extractors: one rule for every image, facts that change when the weights do, and refusals by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from histo.encoders import architecture, build, write_card
from histo.errors import InputError
from histo.features import Extractor, digest, open_extractor
from histo.randomness import draws

SMALL = "timm:test_efficientnet_gn"


@pytest.fixture(scope="module")
def small() -> Extractor:
    return open_extractor(SMALL)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(3)
    wanted = architecture("test_efficientnet_gn", "own")
    card = {
        "kind": "encoder",
        "library": wanted.library,
        "architecture": wanted.name,
        "arguments": wanted.arguments,
        "tile_size": 64,
        "mean": [0.7, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
    }
    write_card(path, build(wanted).state_dict(), card)
    return path


def images(index: int, *shape: int) -> Tensor:
    return torch.from_numpy(draws(0, "features", index).integers(0, 256, shape, dtype=np.uint8))


def test_facts(small: Extractor) -> None:
    assert small.facts["extractor"] == SMALL
    assert small.facts["weights"] == "random, seed 0"
    assert small.facts["features"] == small.width == 256
    assert small.facts["resize"] == "bilinear, antialias, to 160 x 160 px"
    assert json.loads(json.dumps(small.facts)) == small.facts
    assert small(images(0, 3, 3, 40, 60)).shape == (3, 256)
    assert not small.network.training


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone(small: Extractor) -> None:
    before = torch.random.get_rng_state()
    again, other = open_extractor(SMALL), open_extractor(SMALL, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.sha256 == small.sha256 != other.sha256
    assert torch.equal(again(images(1, 2, 3, 64, 64)), small(images(1, 2, 3, 64, 64)))


def test_features_are_those_of_the_library(encoder_file: Path) -> None:
    extractor = open_extractor(str(encoder_file))
    torch.manual_seed(3)
    network = timm.create_model("test_efficientnet_gn", num_classes=0).eval()
    pixels = images(2, 2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.7, 0.5, 0.6], [0.2, 0.3, 0.25]))
    with torch.no_grad():
        expected = network((pixels / 255 - mean) / std)
    torch.testing.assert_close(extractor(pixels), expected, rtol=1e-4, atol=1e-5)
    assert extractor.side == 64
    assert extractor.facts["weights"] == "the file's own"


def test_one_resize_rule() -> None:
    """Bilinear with antialias: halving a checkerboard gives grey; without antialias it would stay a checkerboard."""
    side = 32
    board = torch.from_numpy(np.indices((2 * side, 2 * side)).sum(0) % 2 * 255).to(torch.uint8).expand(1, 3, -1, -1)
    extractor = Extractor(nn.Conv2d(3, 3, 1), "one", "none", side, (0.0,) * 3, (1.0,) * 3, 3, "", "fp32")
    small = extractor.prepare(board)
    assert small.shape == (1, 3, side, side)
    assert (small[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.01
    pixels = images(3, 2, 3, 50, 70)
    expected = F.interpolate(pixels / 255, (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(extractor.prepare(pixels), expected)
    same = images(4, 1, 3, side, side)
    torch.testing.assert_close(extractor.prepare(same), same / 255)


def test_batches_and_mixed_sizes_change_nothing(small: Extractor) -> None:
    several = [images(5, 3, 48, 64), images(6, 3, 64, 64), images(7, 3, 200, 90)]
    together = small(several)
    for k, image in enumerate(several):
        torch.testing.assert_close(small(image[None])[0], together[k], rtol=1e-3, atol=1e-4)


def test_bf16_is_close(small: Extractor) -> None:
    pixels = images(8, 2, 3, 64, 64)
    near = replace(small, precision="bf16")(pixels)
    assert near.dtype == torch.float32
    assert not torch.equal(near, small(pixels))
    assert F.cosine_similarity(near, small(pixels)).min() > 0.99


def test_the_digest_sees_names_values_shapes_and_types() -> None:
    base = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    others = [
        {"a": torch.arange(6.0), "c": torch.ones(2, 2)},
        {"a": torch.arange(6.0), "b": torch.eye(2)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, 2)},
        {"a": torch.arange(6.0).to(torch.bfloat16), "b": torch.ones(2, 2)},
    ]
    assert digest(base) == digest(dict(reversed(base.items())))
    assert len({digest(base), *map(digest, others)}) == 5
    assert digest({"count": torch.tensor(3)}) != digest({"count": torch.tensor(4)})


def test_weights_of_a_timm_model_from_a_file(tmp_path: Path, small: Extractor) -> None:
    torch.manual_seed(8)
    network = timm.create_model("test_efficientnet_gn")  # with its classifier
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    found = [open_extractor(SMALL, weights=tmp_path / name) for name in ("w.safetensors", "w.pth")]
    assert found[0].sha256 == found[1].sha256 != small.sha256
    assert found[0].facts["weights"] == "w.safetensors"
    network.reset_classifier(0)
    assert digest(network.state_dict()) == found[0].sha256


@pytest.mark.slow
def test_inception_from_a_file(tmp_path: Path) -> None:
    """2048 pooled features, and the scaling that torchvision's own weights are made for."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    whole = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    torch.save(whole.state_dict(), tmp_path / "inception.pth")
    extractor = open_extractor("inception", weights=tmp_path / "inception.pth")
    assert (extractor.width, extractor.side) == (2048, 299)
    pixels = images(9, 1, 3, 299, 299)
    pooled: list[Tensor] = []
    whole.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        whole((pixels / 255 - mean) / std)
    torch.testing.assert_close(extractor(pixels), pooled[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("inception", {}, "inception needs weights.*--weights FILE.*--download"),
        ("timm:resnet19", {}, "no model named 'resnet19'; did you mean"),
        ("resnet18", {}, "no features 'resnet18'; expected inception, timm:NAME"),
        ("clip", {"download": True}, "no features 'clip'"),
        (SMALL, {"weights": Path("nowhere.pth"), "download": True}, "both name weights"),
        (SMALL, {"weights": Path("nowhere.pth")}, "nowhere.pth is no file"),
        ("nowhere.safetensors", {}, "needs both the .safetensors and the .json"),
    ],
)
def test_refusals(name: str, arguments: dict[str, Path | bool], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_extractor(name, **arguments)  # type: ignore[arg-type]


class Trap:
    """Runs code when it is unpickled in the usual way."""

    def __reduce__(self) -> tuple[type[Path], tuple[str]]:
        return Path, ("gone",)


def test_bad_weights(tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet_gn", num_classes=0)
    tensors = network.state_dict()
    key = next(iter(tensors))
    cases: dict[str, tuple[object, str]] = {
        "trap.pth": ({"a": Trap()}, "no dictionary of tensors"),
        "list.pth": ([torch.ones(1)], "no dictionary of tensors"),
        "two.pth": ({"student": tensors, "teacher": tensors}, r"2 dictionaries of tensors \(student, teacher\)"),
        "missing.pth": ({k: v for k, v in tensors.items() if k != key}, "1 keys missing"),
        "more.pth": ({**tensors, "extra": torch.ones(1)}, "1 unexpected"),
        "shape.pth": ({**tensors, key: torch.ones(1)}, "other shapes"),
        "name.zip": (tensors, "ends in '.zip'"),
    }
    for name, (content, words) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=words):
            open_extractor(SMALL, weights=tmp_path / name)
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not much")
        with pytest.raises(InputError, match=rf"{name} cannot be read as weights"):
            open_extractor(SMALL, weights=tmp_path / name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tile_size": 10**9}, "tile_size 1000000000"),
        ({"tile_size": None}, "tile_size None"),
        ({"mean": [0.5]}, r"mean \[0.5\], expected 3 numbers"),
        ({"std": [0.5, 0, 0.5]}, "above 0"),
    ],
)
def test_cards_that_ask_for_too_much(change: dict[str, object], words: str, encoder_file: Path, tmp_path: Path) -> None:
    for file in encoder_file.parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / encoder_file.name
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | change))
    with pytest.raises(InputError, match=words):
        open_extractor(str(path))


def test_an_encoder_file_brings_its_weights(encoder_file: Path) -> None:
    with pytest.raises(InputError, match="holds its weights"):
        open_extractor(str(encoder_file), download=True)


def test_a_failed_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **named: object) -> nn.Module:
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("histo.encoders.build", lambda wanted: _Known())
    with pytest.raises(InputError, match=r"cannot be downloaded \(no route to host\); fetch .* --weights FILE"):
        open_extractor(SMALL, download=True)


class _Known(nn.Module):
    pretrained_cfg = {"input_size": (3, 64, 64), "mean": (0.5,), "std": (0.5,)}  # noqa: RUF012
