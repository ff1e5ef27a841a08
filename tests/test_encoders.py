"""Encoders by name, and encoder files: the same features wherever they are loaded."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from histo.encoders import Architecture, architecture, build_pyramid, load, read_card, write_card
from histo.errors import InputError


def picture() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pyramid_of(name: str, norm: str | None = None) -> tuple[nn.Module, list[int], Architecture]:
    torch.manual_seed(0)
    norm = norm or ("own" if name.startswith("smp") or "regnety" in name else "group")
    wanted = architecture(name, norm)
    pyramid, widths = build_pyramid(wanted)
    for module in pyramid.modules():  # as after training: statistics that are not the ones of birth
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return pyramid.eval(), widths, wanted


def card_of(wanted: Architecture, **changed: Any) -> dict[str, Any]:
    card = {
        "kind": "encoder",
        "library": wanted.library,
        "architecture": wanted.name,
        "arguments": wanted.arguments,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "mpp": 0.5,
    }
    return {**card, **changed}


def exported(folder: Path, name: str = "resnet18", norm: str | None = None) -> tuple[Path, nn.Module]:
    pyramid, _, wanted = pyramid_of(name, norm)
    path = folder / "encoder.safetensors"
    write_card(path, pyramid.encoder.state_dict(), card_of(wanted))
    return path, pyramid


def edit(path: Path, **changed: Any) -> None:
    """Change the card as a text editor would; None takes a key away."""
    card = json.loads(path.with_suffix(".json").read_text())
    card = {key: value for key, value in {**card, **changed}.items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(card))


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "regnety_002", "smp:resnet18", "smp:tu-resnet18"])
def test_features_of_strides_4_to_32(name: str) -> None:
    pyramid, widths, wanted = pyramid_of(name)
    with torch.no_grad():
        features = pyramid(picture())
    sides = [16, 8, 4, 2]
    assert [tuple(f.shape) for f in features] == [(2, w, s, s) for w, s in zip(widths, sides, strict=True)]
    assert wanted.library == ("smp" if name.startswith("smp") else "timm")


@pytest.mark.parametrize("name", ["resnet18", "resnet50_gn", "resnext50_32x4d"])
def test_group_norm_everywhere(name: str) -> None:
    pyramid, _, _ = pyramid_of(name, "group")
    assert any(isinstance(module, nn.GroupNorm) for module in pyramid.modules())
    batch_norms = [key for key, part in pyramid.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert batch_norms == []


@pytest.mark.parametrize("name", ["smp:resnet18", "regnety_016", "efficientnet_b0"])
def test_group_norm_that_cannot_be_had_names_the_way_out(name: str) -> None:
    with pytest.raises(InputError, match=r"--segmenter\.norm own"):
        build_pyramid(architecture(name, "group"))


def test_own_norm_keeps_the_models_batch_norm() -> None:
    pyramid, _, wanted = pyramid_of("resnet18", "own")
    assert wanted.arguments == {}
    assert any(isinstance(module, nn.BatchNorm2d) for module in pyramid.modules())


def test_features_of_an_image_ignore_its_batch_with_group_norm() -> None:
    pyramid = pyramid_of("resnet18", "group")[0].train()
    x = picture()
    with torch.no_grad():
        for together, alone in zip(pyramid(x), pyramid(x[1:]), strict=True):
            torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_an_unknown_timm_name_is_answered_with_near_ones() -> None:
    with pytest.raises(InputError, match=r"no model named 'resnett18'; did you mean .*\bresnet18\b"):
        build_pyramid(architecture("resnett18", "group"))
    with pytest.raises(InputError, match="no model named 'zzzzzzzz'"):
        build_pyramid(architecture("zzzzzzzz", "group"))


@pytest.mark.parametrize("name", ["smp:nothing", "smp:tu-nothing"])
def test_an_unknown_smp_name(name: str) -> None:
    with pytest.raises(InputError, match="nothing"):
        build_pyramid(architecture(name, "own"))


def test_an_unknown_library() -> None:
    with pytest.raises(InputError, match="names the library 'hf-hub'"):
        architecture("hf-hub:somebody/model", "own")


def test_other_strides_are_refused() -> None:
    with pytest.raises(InputError, match="expected one each of 4, 8, 16 and 32"):
        build_pyramid(architecture("vit_tiny_patch16_224", "own"))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientnet_lite0"])
def test_models_that_cannot_take_group_norm_say_how_to_go_on(name: str) -> None:
    with pytest.raises(InputError, match=r"segmenter\.norm own"):
        build_pyramid(architecture(name, "group"))


@pytest.mark.parametrize(
    ("name", "norm"),
    [("resnet18", "group"), ("resnet18", "own"), ("regnety_002", "own"), ("convnext_atto", "own")],
)
def test_a_loaded_timm_encoder_has_the_features_of_the_original(tmp_path: Path, name: str, norm: str) -> None:
    path, pyramid = exported(tmp_path, name, norm)
    model, card = load(path)
    assert card["mpp"] == 0.5
    assert set(card["libraries"]) == {"torch", "timm"}
    with torch.no_grad():
        deepest = pyramid(picture())[-1]
        inside = cast(Any, model.eval()).forward_features(picture())
        assert model(picture()).shape == (2, deepest.shape[1])
    torch.testing.assert_close(inside, deepest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["smp:resnet18", "smp:tu-resnet18", "smp:mit_b0"])
def test_a_loaded_smp_encoder_has_the_features_of_the_original(tmp_path: Path, name: str) -> None:
    path, pyramid = exported(tmp_path, name)
    model, _ = load(path)
    with torch.no_grad():
        for one, two in zip(pyramid(picture()), model.eval()(picture())[2:], strict=True):
            torch.testing.assert_close(one, two)


def test_plain_timm_loads_the_file(tmp_path: Path) -> None:
    path, pyramid = exported(tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    model = timm.create_model(card["architecture"], pretrained=False, num_classes=0, **card["arguments"])
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        deepest = cast(Any, model.eval()).forward_features(picture())
        torch.testing.assert_close(deepest, pyramid(picture())[-1])


def test_plain_smp_loads_a_timm_encoder(tmp_path: Path) -> None:
    path, pyramid = exported(tmp_path)
    net = smp.create_model("unet", "tu-resnet18", encoder_weights=None, norm_layer="groupnorm")
    net.encoder.model.load_state_dict(load_file(path))
    with torch.no_grad():
        for one, two in zip(pyramid(picture()), net.eval().encoder(picture())[2:], strict=True):
            torch.testing.assert_close(one, two)


def test_plain_smp_loads_an_smp_encoder(tmp_path: Path) -> None:
    path, pyramid = exported(tmp_path, "smp:resnet18")
    net = smp.create_model("unet", "resnet18", encoder_weights=None)
    net.encoder.load_state_dict(load_file(path))
    with torch.no_grad():
        for one, two in zip(pyramid(picture()), net.eval().encoder(picture())[2:], strict=True):
            torch.testing.assert_close(one, two)


def test_writing_leaves_two_files_and_replaces_old_ones(tmp_path: Path) -> None:
    path, _ = exported(tmp_path)
    write_card(path, {"a": torch.ones(3, 4).t()}, {"kind": "encoder", "note": "µ"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder.json", "encoder.safetensors"]
    tensors, card = read_card(path, "encoder")
    assert torch.equal(tensors["a"], torch.ones(4, 3))
    assert (card["note"], card["format"]) == ("µ", 1)


def test_a_card_of_another_kind(tmp_path: Path) -> None:
    path, _ = exported(tmp_path)
    edit(path, kind="segmenter")
    with pytest.raises(InputError, match="holds 'segmenter', expected 'encoder'"):
        load(path)


def test_a_missing_file_or_card(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of them is missing"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match=r"ending in \.safetensors"):
        load(tmp_path / "weights.pth")
    path, _ = exported(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="one of them is missing"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0notjson!", b"\x80\x04K\x01."])
def test_a_damaged_weight_file(tmp_path: Path, content: bytes) -> None:
    path, _ = exported(tmp_path)
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load(path)


def test_a_cut_weight_file(tmp_path: Path) -> None:
    path, _ = exported(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        load(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"encoder"'])
def test_a_damaged_card(tmp_path: Path, content: str) -> None:
    path, _ = exported(tmp_path)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(InputError):
        load(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"architecture": "resnet34"},
        {"architecture": "no_such_model"},
        {"architecture": "local-dir:/nowhere"},
        {"library": None},
        {"library": "other"},
        {"arguments": None},
        {"arguments": {"nonsense": 1}},
        {"format": 99},
    ],
)
def test_an_edited_card(tmp_path: Path, changed: dict[str, Any]) -> None:
    path, _ = exported(tmp_path)
    edit(path, **changed)
    with pytest.raises(InputError, match=r"encoder\.safetensors"):
        load(path)


def test_a_card_cannot_make_timm_read_a_checkpoint(tmp_path: Path) -> None:
    """timm's constructor takes `checkpoint_path`, which some of its versions unpickle."""
    path, _ = exported(tmp_path)
    foreign = tmp_path / "foreign.pth"
    torch.save(timm.create_model("resnet18", num_classes=0, norm_layer="groupnorm").state_dict(), foreign)
    edit(path, arguments={"norm_layer": "groupnorm", "checkpoint_path": str(foreign)})
    with pytest.raises(InputError):
        load(path)
