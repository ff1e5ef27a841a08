"""Foreign encoder files: where in them an encoder is found, what is refused, and that nothing in them runs."""

import os
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from histo.encoders import open_encoder, start
from histo.encoders.weights import read_weights
from histo.errors import InputError

Tensors = dict[str, Tensor]


def trained(network: nn.Module, seed: int = 1) -> nn.Module:
    """With weights and statistics that are not those of birth."""
    draw = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=draw) * 0.1 + 0.01)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return trained(models.resnet18(num_classes=7))


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}


def bare(network: nn.Module) -> Tensors:
    return {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}


def same_features(opened: nn.Module, original: nn.Module) -> None:
    """timm's pooled features against torchvision's, through its own forward pass without fc."""
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(opened.eval()(x), nn.Sequential(*list(original.children())[:-1], nn.Flatten())(x))


def other(tensors: Tensors) -> Tensors:
    return {key: value + 1 for key, value in tensors.items()}


def lightly(tensors: Tensors) -> Tensors:
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {places[key.partition(".")[0]] + "." + key.partition(".")[2]: value for key, value in tensors.items()}


LAYOUTS: dict[str, tuple[Any, str]] = {
    "torchvision": (lambda t: t, ":"),
    "data parallel": (lambda t: prefixed(t, "module."), ":module."),
    "compiled": (lambda t: {"model": prefixed(t, "_orig_mod.")}, "model:_orig_mod."),
    "lightning": (lambda t: {"state_dict": prefixed(t, "model.")}, "state_dict:model."),
    "lightning backbone": (lambda t: {"state_dict": prefixed(t, "backbone."), "epoch": 3}, "state_dict:backbone."),
    "lightning encoder": (lambda t: {"state_dict": prefixed(t, "encoder.")}, "state_dict:encoder."),
    "dino": (
        lambda t: {
            "student": prefixed(other(t), "module.backbone."),
            "teacher": {**prefixed(t, "backbone."), "head.mlp.0.weight": torch.ones(3)},
        },
        "teacher:backbone.",
    ),
    "moco v2": (
        lambda t: {
            "state_dict": {
                **prefixed(other(t), "module.encoder_k."),
                **prefixed(t, "module.encoder_q."),
                "module.queue": torch.ones(2, 2),
            }
        },
        "state_dict:module.encoder_q.",
    ),
    "moco v3": (
        lambda t: {
            "state_dict": prefixed(t, "module.base_encoder.") | prefixed(other(t), "module.momentum_encoder."),
            "optimizer": {"state": {0: {"mu": torch.ones(3)}}},
        },
        "state_dict:module.base_encoder.",
    ),
    "averaged": (lambda t: {"state_dict": other(t), "state_dict_ema": t}, "state_dict_ema:"),
    "nested": (lambda t: {"a": {"model": {"teacher": prefixed(t, "net.")}}}, "a/model/teacher:net."),
    "lightly": (lambda t: {"state_dict": prefixed(lightly(t), "backbone.")}, "state_dict:backbone."),
    "smp network": (
        lambda t: {**prefixed(t, "encoder."), "decoder.blocks.0.conv1.weight": torch.ones(3)},
        ":encoder.",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_encoder_is_found_where_programs_put_it(layout: str, resnet: nn.Module, tmp_path: Path) -> None:
    put, place = LAYOUTS[layout]
    torch.save(put(bare(resnet)), tmp_path / "file.pth")
    opened = open_encoder(str(tmp_path / "file.pth"), "timm:resnet18")
    same_features(opened.encoder, resnet)
    dictionary, _, prefix = place.partition(":")
    assert (f"dictionary {dictionary}," if dictionary else "the file,") in opened.report
    assert (f"begin with {prefix}," if prefix else "without a prefix") in opened.report
    assert "100.00% of 11,186,132 values" in opened.report
    assert "missing     none" in opened.report
    assert opened.card["mean"] is None
    assert opened.card["mpp"] is None


def test_safetensors_and_a_classifier_that_does_not_count(resnet: nn.Module, tmp_path: Path) -> None:
    save_file(resnet.state_dict(), tmp_path / "file.safetensors")
    opened = open_encoder(str(tmp_path / "file.safetensors"), "resnet18")
    same_features(opened.encoder, resnet)
    assert "heads       fc.bias, fc.weight, left out" in opened.report
    assert "unexpected  none" in opened.report


@pytest.mark.parametrize("name", ["convnext_atto", "regnety_002", "resnet18"])
def test_smps_tu_encoders(name: str, tmp_path: Path) -> None:
    network = trained(smp.encoders.get_encoder(f"tu-{name}", weights=None))
    torch.save(prefixed(network.state_dict(), "module.encoder."), tmp_path / "file.pt")
    opened = open_encoder(str(tmp_path / "file.pt"), name)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        inside = opened.encoder.eval().forward_intermediates(x, intermediates_only=True)[-1]  # type: ignore[operator]
        torch.testing.assert_close(inside, network(x)[-1])
    assert opened.card["untrained"] == (["head.norm.weight", "head.norm.bias"] if "convnext" in name else [])


def test_smps_own_encoders(tmp_path: Path) -> None:
    network = trained(smp.encoders.get_encoder("mit_b0", weights=None))
    torch.save(prefixed(network.state_dict(), "encoder."), tmp_path / "file.pt")
    opened = open_encoder(str(tmp_path / "file.pt"), "smp:mit_b0")
    assert all(torch.equal(value, opened.encoder.state_dict()[key]) for key, value in network.state_dict().items())


# --- the checkpoint of Ciga et al.


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Lightning's checkpoints hold beside tensors, of classes that exist only while the file is written."""
    module = ModuleType("pytorch_lightning_of_2020")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    attributes = type("AttributeDict", (dict,), {"__module__": module.__name__})
    for kind in (callback, attributes):
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return {
        "epoch": 9,
        "callbacks": {callback: {"best_model_score": np.float64(0.5), "best_model_path": Path("a/b")}},
        "hyper_parameters": attributes(lr=0.1, gpus=[0, 1]),
        "optimizer_states": [{"state": defaultdict(dict, {0: {"momentum_buffer": torch.ones(3)}})}],
    }


def ciga(network: nn.Module) -> Tensors:
    head = {"fc.1.weight": (512, 512), "fc.1.bias": (512,), "fc.3.weight": (128, 512), "fc.3.bias": (128,)}
    return prefixed(bare(network) | {key: torch.ones(shape) for key, shape in head.items()}, "model.resnet.")


@pytest.mark.parametrize("with_lightning", [True, False])
def test_the_checkpoint_of_ciga_et_al(
    with_lightning: bool,
    lightning: dict[str, Any],
    resnet: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = tmp_path / "tenpercent_resnet18.ckpt"
    torch.save((lightning if with_lightning else {}) | {"state_dict": ciga(resnet)}, path)
    monkeypatch.delitem(sys.modules, "pytorch_lightning_of_2020")
    opened = open_encoder(str(path))
    same_features(opened.encoder, resnet)
    assert opened.card["mean"] == opened.card["std"] == [0.5] * 3
    assert (opened.card["tile_size"], opened.card["mpp"]) == (224, None)
    assert "MIT" in opened.card["weights_licence"]
    assert ("pytorch_lightning_of_2020.ModelCheckpoint" in opened.report) is with_lightning
    assert "left unread nothing" in opened.report or with_lightning


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.place)!r}, 'w').write('executed')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_stands_beside_the_tensors_never_runs(zipped: bool, resnet: nn.Module, tmp_path: Path) -> None:
    path, place = tmp_path / "file.ckpt", tmp_path / "executed"
    torch.save({"state_dict": bare(resnet), "x": Payload(place)}, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        opened = open_encoder(str(path), "resnet18")
        assert "left unread builtins.exec" in opened.report
        same_features(opened.encoder, resnet)
    else:
        with pytest.raises(InputError, match=r"without running what stands in it .*exec.*never done; save its state_d"):
            open_encoder(str(path), "resnet18")
    assert not place.exists()
    torch.load(path, weights_only=False)
    assert place.read_text() == "executed"  # the payload works


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_that_calls_the_system_is_one_sentence(protocol: int, resnet: nn.Module, tmp_path: Path) -> None:
    """torch's reader lets in nothing of some modules, and puts advice to read the file unsafely before the reason."""

    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"state_dict": bare(resnet), "x": Command()}, tmp_path / "file.ckpt", pickle_protocol=protocol)
    with pytest.raises(InputError, match=r"cannot be read as weights .*\(\w.*\), which is never done") as caught:
        open_encoder(str(tmp_path / "file.ckpt"), "resnet18")
    for word in ("weights_only", "PyTorch 2.6", "\n"):
        assert word not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_stand_ins_are_gone_after_reading(lightning: dict[str, Any], resnet: nn.Module, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())  # a list in any order
    torch.save(lightning | {"state_dict": bare(resnet)}, tmp_path / "file.ckpt")
    left = read_weights(tmp_path / "file.ckpt").left_unread
    assert "pytorch_lightning_of_2020.AttributeDict" in left
    assert set(torch.serialization.get_safe_globals()) == before


# --- refusals


def refused(contents: Any, tmp_path: Path, words: str, name: str = "resnet18", take: str | None = None) -> None:
    torch.save(contents, tmp_path / "file.pth")
    with pytest.raises(InputError, match=words) as caught:
        open_encoder(str(tmp_path / "file.pth"), name, take=take)
    assert "\n" not in str(caught.value)
    assert "file.pth" in str(caught.value)


def test_less_than_95_percent(resnet: nn.Module, tmp_path: Path) -> None:
    tensors = bare(resnet)
    without = {key: value for key, value in tensors.items() if key != "layer4.1.conv2.weight"}
    refused(without, tmp_path, r"only 78\.9% of its values .*missing layer4\.1\.conv2\.weight.*expected 95%")
    small = {key: value for key, value in tensors.items() if key != "layer1.0.conv1.weight"}
    torch.save(small, tmp_path / "file.pth")
    opened = open_encoder(str(tmp_path / "file.pth"), "resnet18")
    assert opened.card["untrained"] == ["layer1.0.conv1.weight"]
    assert "99.67%" in opened.report


def test_other_architectures(resnet: nn.Module, tmp_path: Path) -> None:
    refused(bare(resnet), tmp_path, r"only \d+\.\d% of its values", "resnet34")
    refused(models.resnet34().state_dict(), tmp_path, r"larger encoder, with [\d,]+ values.*layer1\.2\.conv1\.weight")
    refused(models.resnet50().state_dict(), tmp_path, r"layer1\.0\.conv1\.weight is \[64, 64, 1, 1\], expected \[64, 6")
    refused(bare(resnet), tmp_path, r"3 tensors at ':' have other shapes .*downsample", "resnet18d")
    refused(
        bare(resnet),
        tmp_path,
        "no tensor of it is in the file, whose first key is 'conv1.weight'",
        "vit_tiny_patch16_224",
    )


def test_other_channels(resnet: nn.Module, tmp_path: Path) -> None:
    tensors = bare(resnet) | {"conv1.weight": torch.ones(64, 4, 7, 7)}
    refused({"state_dict": tensors}, tmp_path, "of an encoder for 4 channels, expected 3; name a file for images of 3")


def test_batch_norm_is_not_group_norm(resnet: nn.Module, tmp_path: Path) -> None:
    grouped = timm.create_model("resnet18", num_classes=0, norm_layer="groupnorm").state_dict()
    refused(grouped, tmp_path, r"lacks statistics of batch norm \(bn1\.running_mean")
    torch.save(grouped, tmp_path / "file.pth")
    opened = open_encoder(str(tmp_path / "file.pth"), "resnet18", "group")
    assert opened.architecture.arguments == {"norm_layer": "groupnorm"}


def test_several_copies_are_chosen_by_the_user(resnet: nn.Module, tmp_path: Path) -> None:
    tensors = bare(resnet)
    contents = {"one": tensors, "two": other(tensors)}
    refused(contents, tmp_path, "several different copies of it, one: and two:; name one with --take")
    refused(contents, tmp_path, "no tensor of it is in the file at 'three:'", take="three:")
    torch.save(contents, tmp_path / "file.pth")
    same_features(open_encoder(str(tmp_path / "file.pth"), "resnet18", take="one:").encoder, resnet)
    torch.save({"one": tensors, "two": tensors}, tmp_path / "file.pth")
    same_features(open_encoder(str(tmp_path / "file.pth"), "resnet18").encoder, resnet)


def test_files_that_are_none(resnet: nn.Module, tmp_path: Path) -> None:
    refused([1, 2], tmp_path, "holds no dictionary of tensors")
    refused(resnet, tmp_path, r"holds no dictionary of tensors; where a whole network was pickled, save its state_dict")
    refused(bare(resnet), tmp_path, "does not say what network", name=None)  # type: ignore[arg-type]
    for name, content, words in (
        ("a.pkl", b"x", r"ends in '\.pkl'"),
        ("a.ckpt", b"PK\x03\x04 not much", "cannot be read as weights"),
        ("a.safetensors", b"", "cannot be read as weights"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            open_encoder(str(tmp_path / name), "resnet18")
    with pytest.raises(InputError, match="There is no"):
        open_encoder(str(tmp_path / "nowhere.pth"), "resnet18")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder with neither"):
        open_encoder(str(tmp_path / "empty"), "resnet18")


def test_a_dictionary_that_holds_itself(resnet: nn.Module, tmp_path: Path) -> None:
    contents: dict[str, Any] = {"state_dict": bare(resnet)}
    contents["self"] = contents
    torch.save(contents, tmp_path / "file.pth")
    same_features(open_encoder(str(tmp_path / "file.pth"), "resnet18").encoder, resnet)


# --- what a training starts from


def test_none_is_random_by_its_seed() -> None:
    one, again, two = (start("none", "own", "resnet18", seed=seed).encoder.state_dict() for seed in (1, 1, 2))
    assert torch.equal(one["conv1.weight"], again["conv1.weight"])
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])
    state = torch.random.get_rng_state()
    begun = start("none", "group", "resnet18", seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert begun.architecture.arguments == {"norm_layer": "groupnorm"}
    assert begun.facts["parent"] == "random weights, seed 3"
    with pytest.raises(InputError, match=r"give --encoder\.architecture"):
        start("none", "own")
    with pytest.raises(InputError, match=r"--encoder\.norm own"):
        start("none", "group", "smp:resnet18")


def test_a_foreign_file_as_parent(resnet: nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": ciga(resnet)}, tmp_path / "tenpercent_resnet18.ckpt")
    begun = start(str(tmp_path / "tenpercent_resnet18.ckpt"), "own")
    assert begun.facts["mean"] == [0.5] * 3
    assert begun.facts["parent"]["source"] == "tenpercent_resnet18.ckpt"
    assert begun.facts["parent"]["architecture"] == "timm:resnet18"
    assert len(begun.facts["parent"]["sha256"]) == 64
    with pytest.raises(InputError, match=r"only \d"):
        start(str(tmp_path / "tenpercent_resnet18.ckpt"), "own", "timm:resnet34")


def test_timms_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    create, asked = timm.create_model, []

    def pretrained(name: str, pretrained: bool, **named: Any) -> nn.Module:
        asked.append((name, pretrained))
        return create(name, pretrained=False, **named)

    monkeypatch.setattr(timm, "create_model", pretrained)
    begun = start("timm:resnet18", "own")
    assert asked == [("resnet18", True)]
    assert begun.facts["mean"] == [0.485, 0.456, 0.406]
    assert begun.facts["parent"]["trained_by"] == "timm resnet18.a1_in1k"
    with pytest.raises(InputError, match="GroupNorm was asked for"):
        start("timm:resnet18", "group")
    with pytest.raises(InputError, match=r"did you mean .*resnet18"):
        start("timm:resnett18", "own")
    with pytest.raises(InputError, match="is timm:resnet18, but timm:resnet34 was asked for"):
        start("timm:resnet18", "own", "timm:resnet34")


def test_timms_weights_offline_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **named: object) -> nn.Module:
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"cannot be had \(no route to host\); connect this machine once") as caught:
        start("timm:resnet18", "own")
    assert "\n" not in str(caught.value)
