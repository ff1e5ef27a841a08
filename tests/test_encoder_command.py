"""`nucleate encoder`: what it prints, what it writes, and how it refuses."""

import json
from pathlib import Path

import pytest
import timm
import torch
from test_encoder_export import SMALL, opened
from test_encoder_import import bare, ciga, trained
from torchvision import models

from histo.commands.encoder import main
from histo.encoders import load, write_for
from histo.errors import InputError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"model.{key}": value for key, value in bare(trained(models.resnet18())).items()}}, path)
    return path


def test_convert_a_checkpoint(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "encoder.safetensors"
    convert = ["convert", str(checkpoint), str(out), "--architecture", "timm:resnet18"]
    with pytest.raises(InputError, match=r"does not say how its input is scaled.*give --mean and --std") as caught:
        main(convert)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    capsys.readouterr()
    told = ["--mean", "0.5", "--std", "0.2,0.3,0.4", "--data", "our slides", "--licence", "CC0"]
    assert main([*convert, *told]) == 0
    said = capsys.readouterr().out
    for words in (
        "taken       dictionary state_dict, keys that begin with model.",
        "100.00%",
        "Unknown, and so the cards",
    ):
        assert words in said
    assert "say: mpp, tile_size." in said
    card = load(out)[1]
    assert (card["mean"], card["std"], card["mpp"], card["tile_size"]) == ([0.5] * 3, [0.2, 0.3, 0.4], None, None)
    assert (card["converted_from"], card["licences"]) == ("last.ckpt", "CC0")
    assert "| our slides | unknown | CC0 | unclear |" in out.with_suffix(".md").read_text()


def test_convert_the_checkpoint_of_ciga_et_al_to_a_hub_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": ciga(trained(models.resnet18()))}, tmp_path / "tenpercent_resnet18.ckpt")
    assert main(["convert", str(tmp_path / "tenpercent_resnet18.ckpt"), str(tmp_path / "hub"), "--to", "hub"]) == 0
    network = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True, num_classes=0)
    assert list(network.pretrained_cfg["mean"]) == [0.5] * 3
    assert "MIT" in (tmp_path / "hub" / "README.md").read_text()
    assert "Load it:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [("--mpp", "0", "between 0.01 and 100"), ("--tile_size", "8", "32 to 2048"), ("--std", "0", "above 0")],
)
def test_values_out_of_range(flag: str, value: str, words: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{flag} is .*{words}"):
        main(["convert", str(checkpoint), str(tmp_path / "a.safetensors"), "--architecture", "resnet18", flag, value])


@pytest.mark.parametrize("value", ["x", "1,2", "nan", ""])
def test_a_scaling_that_is_none(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "a", "b", "--mean", value])
    assert "is not one number or three" in capsys.readouterr().err


def test_show(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "state_dict: 120 tensors, 11,186,132 values" in said
    assert "model.conv1.weight  [64, 3, 7, 7]" in said
    assert "--architecture NAME says how it fits" in said
    assert main(["show", str(checkpoint), "--architecture", "resnet18"]) == 0
    assert "missing     none" in capsys.readouterr().out
    write_for("timm", tmp_path / "a.safetensors", opened("resnet18", "group"))
    capsys.readouterr()
    assert main(["show", str(tmp_path / "a.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "timm:resnet18 with GroupNorm, 11,176,512 values" in said
    assert "images_seen     12345" in said
    with pytest.raises(InputError, match="There is no"):
        main(["show", str(tmp_path / "nothing.pth")])


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (tmp_path / f"{name}.safetensors" for name in "ab")
    write_for("timm", one, opened(SMALL))
    write_for("timm", two, opened("test_convnext"))
    capsys.readouterr()
    assert main(["compare", str(one), str(one)]) == 0
    said = capsys.readouterr().out
    assert "are equal" in said
    assert "linear CKA 1.000" in said
    assert main(["compare", str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert "timm:test_convnext  (another)" in said
    assert "0 in both, of which 0 differ" in said


def test_a_damaged_card_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    write_for("timm", tmp_path / "a.safetensors", opened(SMALL))
    card = tmp_path / "a.json"
    for content in ("", "[" * 100_000, json.dumps({**json.loads(card.read_text()), "arguments": {"a": 1}})):
        card.write_text(content)
        with pytest.raises(InputError, match=r"a\.safetensors") as caught:
            main(["show", str(tmp_path / "a.safetensors")])
        assert "\n" not in str(caught.value)
