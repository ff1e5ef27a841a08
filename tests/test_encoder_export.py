"""Encoders as timm, torchvision, smp and the Hugging Face hub load them, with model cards; and two compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from test_encoder_import import trained
from torch import Tensor, nn

from histo.encoders import (
    Architecture,
    Opened,
    architecture,
    build,
    data_sources,
    load,
    open_encoder,
    pooled,
    start,
    write_encoder,
    write_for,
)
from histo.encoders.comparison import SIDE, alignment, compare, phantom_tiles
from histo.encoders.exports import To
from histo.errors import InputError

CARD = {
    "in_channels": 3,
    "tile_size": 96,
    "mpp": 0.5,
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "objectives": ["simclr", "stain_invariant"],
    "images_seen": 12345,
    "seed": 3,
    "parent": {"source": "first", "images_seen": 160},
    "command": "pretrain/train.py --config a.yaml | tee log",
    "data": data_sources(["phantom", "monuseg:/somewhere/private/monuseg", "/somewhere/private/own-tiles"]),
    "probe": {"kNN accuracy, own-tiles": 0.87654},
}
SMALL = "test_resnet"
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def opened(name: str, norm: str = "own", **card: Any) -> Opened:
    wanted = architecture(name, norm)
    network = trained(build(wanted))
    return Opened(network, wanted, {**CARD, **card, **wanted.card}, "")


def written(to: To, one: Opened, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The export, and what its own lines of Python leave behind when they run in its folder."""
    out = folder / ("hub" if to == "hub" else "encoder.safetensors")
    lines = write_for(to, out, one)
    names: dict[str, Any] = {}
    exec(lines.replace(out.name, str(out)), names)
    return out, names


def features(network: Any) -> Tensor:
    with torch.no_grad():
        return pooled(network.eval()(X))


@pytest.mark.parametrize(("name", "norm"), [(SMALL, "own"), ("resnet18", "group"), ("test_convnext", "own")])
def test_for_timm(name: str, norm: str, tmp_path: Path) -> None:
    one = opened(name, norm)
    out, names = written("timm", one, tmp_path)
    torch.testing.assert_close(features(names["encoder"]), features(one.encoder))
    network, card = load(out)
    torch.testing.assert_close(features(network), features(one.encoder))
    assert card["images_seen"] == 12345
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"encoder.{end}" for end in ("json", "md", "safetensors")
    ]


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "own"), ("resnet18", "group"), ("resnet50_gn", "own")])
def test_for_torchvision(name: str, norm: str, tmp_path: Path) -> None:
    one = opened(name, norm)
    out, names = written("torchvision", one, tmp_path)
    network = names["net"]
    lacking = network.load_state_dict(load_file(out), strict=False)
    assert lacking.missing_keys == ["fc.weight", "fc.bias"]
    assert lacking.unexpected_keys == []
    network.fc = nn.Identity()
    torch.testing.assert_close(features(network), features(one.encoder))
    assert ("GroupNorm" in (tmp_path / "encoder.md").read_text()) is (norm == "group" or "gn" in name)


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "resnet18d"])
def test_networks_that_torchvision_has_not(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"torchvision has no network with the layers of timm:{name}; use --to timm"):
        write_for("torchvision", tmp_path / "a.safetensors", opened(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "norm", "called"),
    [
        ("resnet18", "own", "resnet18"),
        ("resnet18", "group", "tu-resnet18"),
        ("test_convnext", "own", "tu-test_convnext"),
        ("smp:mit_b0", "own", "mit_b0"),
        ("smp:tu-resnet18", "own", "tu-resnet18"),
    ],
)
def test_for_smp(name: str, norm: str, called: str, tmp_path: Path) -> None:
    one = opened(name, norm)
    _, names = written("smp", one, tmp_path)
    encoder = names["net"].encoder if "net" in names else names["encoder"]
    assert f'"{called}"' in (tmp_path / "encoder.md").read_text()
    with torch.no_grad():
        deepest = encoder.eval()(X)[-1]
        if one.architecture.library == "smp":
            inside = one.encoder(X)[-1]
        else:
            inside = one.encoder.forward_intermediates(X, intermediates_only=True)[-1]  # type: ignore[operator]
    torch.testing.assert_close(deepest, inside)


@pytest.mark.parametrize("name", ["smp:resnet18", "smp:tu-resnet18"])
def test_smps_encoders_for_timm(name: str, tmp_path: Path) -> None:
    one = opened(name)
    _, names = written("timm", one, tmp_path)
    torch.testing.assert_close(features(names["encoder"]), features(one.encoder))


def test_an_encoder_of_smps_own_is_not_for_timm(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smp:mit_b0 is a network of smp's own, which timm has not; use --to smp"):
        write_for("hub", tmp_path / "hub", opened("smp:mit_b0"))


@pytest.mark.parametrize(("name", "norm"), [(SMALL, "own"), ("resnet18", "group"), ("test_convnext", "own")])
def test_hub_folders_as_timm_reads_them(name: str, norm: str, tmp_path: Path) -> None:
    one = opened(name, norm)
    out, names = written("hub", one, tmp_path)
    network = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0)
    torch.testing.assert_close(features(network), features(one.encoder))
    torch.testing.assert_close(features(names["encoder"]), features(one.encoder))
    known: Any = network.pretrained_cfg
    assert (list(known["mean"]), list(known["std"])) == (CARD["mean"], CARD["std"])
    assert list(known["input_size"]) == [3, 96, 96]
    classifier = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=5)
    assert classifier(X).shape == (2, 5)
    back = open_encoder(str(out))
    torch.testing.assert_close(features(back.encoder), features(one.encoder))
    assert back.architecture == one.architecture
    assert (back.card["mean"], back.card["tile_size"], back.card["images_seen"]) == (CARD["mean"], 96, 12345)
    assert (out / "README.md").read_text().startswith(f"# {name}")


def test_hub_folders_of_others(tmp_path: Path) -> None:
    """As timm's own push writes them: a classifier in the weights, and no card of ours."""
    network = trained(timm.create_model("resnet18", num_classes=4))
    timm.models.save_for_hf(network, tmp_path)
    found = open_encoder(str(tmp_path))
    with torch.no_grad():
        inside = network.forward_head(network.forward_features(X), pre_logits=True)  # type: ignore[operator]
    torch.testing.assert_close(features(found.encoder), inside)
    assert found.card["mean"] == [0.485, 0.456, 0.406]
    assert found.card["weights_licence"] == "apache-2.0"
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"in_chans": 4}, "for 4 channels, expected 3"),
        ({"global_pool": "max"}, "by 'max', expected 'avg'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": change}))
        with pytest.raises(InputError, match=words):
            open_encoder(str(tmp_path))


def test_a_hub_folder_needs_its_scaling(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"needs mean, tile_size, which the card does not say.*give --mean, --tile_size"
    ):
        write_for("hub", tmp_path / "hub", opened(SMALL, mean=None, tile_size=None))


@pytest.mark.parametrize(
    "change",
    [{"architecture": "local-dir:x"}, {"architecture": 3}, {"model_args": {"checkpoint_path": "x"}}],
)
def test_a_hub_folder_may_not_steer_timm(change: dict[str, Any], tmp_path: Path) -> None:
    write_for("hub", tmp_path / "hub", opened(SMALL))
    config = tmp_path / "hub" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(
        InputError, match=r"config\.json asks for .* expected a model of timm with no arguments but Gro"
    ):
        open_encoder(str(tmp_path / "hub"))


@pytest.mark.parametrize(
    "entry",
    [{"mean": "x"}, {"mean": [0.5]}, {"std": [0.5, 0, 1]}, {"tile_size": "64"}, {"mpp": -1}, {"untrained": 5}],
)
def test_cards_of_surprising_entries(entry: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for to in ("timm", "smp"):
        write_for(to, path, opened(SMALL))
        card = path.with_suffix(".json")
        card.write_text(json.dumps(json.loads(card.read_text()) | entry))
        with pytest.raises(InputError, match=rf"The card of .*a\.safetensors has {next(iter(entry))} .*, expected"):
            open_encoder(str(path))


@pytest.mark.parametrize("content", ["", "[]", "3", '{"pretrained_cfg": 3}', '{"input_size": 3}', "[" * 100_000])
def test_a_damaged_hub_folder(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json (is damaged|asks for)") as caught:
        open_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        open_encoder(str(tmp_path))


def test_names_and_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name ending in \.safetensors"):
        write_for("timm", tmp_path / "a.pth", opened(SMALL))
    with pytest.raises(InputError, match="expected a folder"):
        write_for("hub", tmp_path / "a.safetensors", opened(SMALL))


def test_exports_for_others_come_back(tmp_path: Path) -> None:
    one = opened("test_convnext")
    write_for("smp", tmp_path / "a.safetensors", one)
    back = open_encoder(str(tmp_path / "a.safetensors"))
    assert back.architecture == one.architecture
    assert back.card["mean"] == CARD["mean"]
    assert back.card["untrained"] == ["head.norm.weight", "head.norm.bias"]  # smp's encoder is without it
    with pytest.raises(InputError, match="holds 'state dict', expected 'encoder'"):
        load(tmp_path / "a.safetensors")


def test_a_training_starts_from_a_run_or_a_file(tmp_path: Path) -> None:
    one = opened("resnet18", "group")
    (tmp_path / "run" / "export").mkdir(parents=True)
    write_for("timm", tmp_path / "run" / "export" / "encoder.safetensors", one)
    for source in (tmp_path / "run", tmp_path / "run" / "export", tmp_path / "run" / "export" / "encoder.safetensors"):
        begun = start(str(source), "own")
        assert begun.architecture == one.architecture
        assert (begun.facts["mpp"], begun.facts["tile_size"]) == (0.5, 96)
        assert begun.facts["parent"]["images_seen"] == 12345
        torch.testing.assert_close(features(begun.encoder), features(one.encoder))
    with pytest.raises(InputError, match="is timm:resnet18 with GroupNorm, but resnet34 was asked for"):
        start(str(tmp_path / "run"), "own", "resnet34")


def test_an_encoder_file_for_other_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_encoder(path, build(Architecture("timm", "resnet18", {})), opened("resnet18", in_channels=4).card)
    with pytest.raises(InputError, match="is an encoder for 4 channels, expected 3"):
        load(path)


# --- model cards


def test_a_model_card_says_what_is_known(tmp_path: Path) -> None:
    write_encoder(tmp_path / "a.safetensors", opened(SMALL).encoder, opened(SMALL).card)
    text = (tmp_path / "a.md").read_text()
    for words in (
        "| objectives | simclr, stain_invariant |",
        "| images seen | 12345 |",
        "| started from | source first, images_seen 160 |",
        "| command | pretrain/train.py --config a.yaml \\| tee log |",
        "| kNN accuracy, own-tiles | 0.8765 |",
        "| phantom | tissue drawn by nucleate's own code | none needed | not excluded |",
        "| CC BY-NC-SA 4.0, to be checked | excluded |",
        "| own-tiles | unknown | unknown | unclear |",
        "exclude commercial use: monuseg.",
        "The terms of some of its data are unknown",
        "| µm/px | 0.5 |",
        "minus mean 0.4, 0.5, 0.6, over std 0.2, 0.3, 0.4",
        f"| torch | {torch.__version__.partition('+')[0]}",
        "no medical device",
    ):
        assert words in text
    assert "/somewhere" not in text
    assert "/somewhere" not in (tmp_path / "a.json").read_text()


def test_a_model_card_says_what_is_unknown(tmp_path: Path) -> None:
    wanted = Architecture("timm", "resnet18", {})
    write_encoder(tmp_path / "a.safetensors", build(wanted), wanted.card)
    text = (tmp_path / "a.md").read_text()
    for words in ("Licences: unknown", "None was run", "How it was trained is unknown", "| µm/px | unknown |"):
        assert words in text


def test_licences_of_packed_tiles(tile_folder: Path, tmp_path: Path) -> None:
    from histo.tiles.packing import pack

    pack(tile_folder, tmp_path / "shards", licence="CC BY 4.0")
    assert data_sources(str(tmp_path / "shards"))[0]["licence"] == "CC BY 4.0"
    (tmp_path / "shards" / "manifest.json").write_text('{"nucleate": 3}')
    assert data_sources([str(tmp_path / "shards")])[0]["licence"] == "unknown"


# --- two encoders


def slow_alignment(x: Tensor, y: Tensor) -> float:
    """CKA from HSIC as a sum over quadruples of different tiles, which the unbiased estimate is the mean of."""
    n = len(x)
    k, m = x @ x.T, y @ y.T

    def hsic(a: Tensor, b: Tensor) -> float:
        total, count = 0.0, 0
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += float(a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]))
                            count += 1
        return total / count

    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


def test_alignment_by_its_definition_and_invariances() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.rand(7, width, generator=draw, dtype=torch.float64) for width in (3, 5))
    assert alignment(x, y) == pytest.approx(slow_alignment(x, y), abs=1e-9)
    turn = torch.linalg.qr(torch.rand(3, 3, generator=draw, dtype=torch.float64))[0]
    assert alignment(x, 3 * x @ turn + 5) == pytest.approx(1)
    unrelated = [torch.randn(100, 400, generator=draw) for _ in range(2)]
    assert abs(alignment(unrelated[0], unrelated[1])) < 0.1  # the biased estimate is about 0.8


def test_two_encoders() -> None:
    one, tiles = opened(SMALL), phantom_tiles(8)
    assert (tiles.shape, tiles.dtype) == ((8, 3, SIDE, SIDE), torch.uint8)
    same = compare(one, one, tiles)
    assert (same.differing, same.alone) == ({}, 0)
    assert same.alignment == pytest.approx(1)
    changed = Opened(build(one.architecture), one.architecture, one.card, "")
    changed.encoder.load_state_dict(one.encoder.state_dict())
    with torch.no_grad():
        changed.encoder.get_parameter("conv1.0.weight").mul_(1.5)
    assert compare(one, changed, tiles).differing == pytest.approx({"conv1.0.weight": 0.5})
    random = [Opened(start("none", "own", SMALL, seed=s).encoder, one.architecture, one.card, "") for s in (1, 2)]
    assert compare(*random, tiles).alignment < 0.99
    with pytest.raises(InputError, match="input scaling of timm:test_resnet is unknown"):
        compare(one, one._replace(card={}), tiles)
