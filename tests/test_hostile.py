"""Files that were made to do harm: nothing in them is executed or followed, and each is refused with one sentence.

The harm is a pickle that writes a file when it is loaded; whether the file appears is what these tests look at.
"""

import hashlib
import json
import pickle
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import histo.encoders
import histo.segmenters
from histo.errors import InputError
from histo.masks import read_instances
from histo.running import checkpoints
from histo.running.configs import MAX_BYTES, read_config
from histo.segmenters import Segmenter, SegmenterSettings
from histo.tiles import open_tiles
from translate.domains import DataSettings, open_domains
from translate.train import main


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, (f"open({str(self.place)!r}, 'w').write('executed')",)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def refusal(act: Callable[[], object], *named: object) -> str:
    """The sentence that an act is refused with; it names what the user gave, on one line."""
    with pytest.raises(InputError) as caught:
        act()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for name in named:
        assert str(name) in sentence
    return sentence


def pickles(place: Path, folder: Path) -> list[bytes]:
    """The payload as a bare pickle, as torch's two formats of a .pt, and as NumPy writes objects."""
    torch.save({"state": Payload(place)}, folder / "zip.pt")
    torch.save({"state": Payload(place)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    np.save(folder / "objects.npy", np.array([[Payload(place)]], dtype=object), allow_pickle=True)
    files = [folder / name for name in ("zip.pt", "old.pt", "objects.npy")]
    return [pickle.dumps(Payload(place)), *(file.read_bytes() for file in files)]


@pytest.mark.parametrize("kind", range(4))
def test_the_payload_works(kind: int, place: Path, tmp_path: Path) -> None:
    """What the tests below look for does happen to those who unpickle."""
    file = tmp_path / "file"
    file.write_bytes(pickles(place, tmp_path)[kind])
    assert not place.exists(), "making it does not run it"
    read: Callable[[Path], object] = {
        0: lambda path: pickle.loads(path.read_bytes()),  # noqa: S301
        3: lambda path: np.load(path, allow_pickle=True),
    }.get(kind, lambda path: torch.load(path, weights_only=False))
    read(file)
    assert place.read_text() == "executed"


# --- weights


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.safetensors", "weights.bin"])
def test_a_pickle_as_encoder_or_instance_file(name: str, kind: int, place: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickles(place, tmp_path)[kind])
    for asked, load in (("encoder", histo.encoders.load), ("segmenter", histo.segmenters.load)):
        card = {"format": 1, "kind": asked, "library": "timm", "architecture": "resnet18", "arguments": {}}
        path.with_suffix(".json").write_text(json.dumps({**card, "settings": {}}))
        refusal(lambda load=load: load(path), path)
    assert not place.exists()


@pytest.mark.parametrize("flag", ["--segmenter.encoder", "--run.resume", "--data.tissue", "--data.masks", "--config"])
@pytest.mark.parametrize("kind", range(4))
def test_a_pickle_wherever_a_path_is_taken(
    flag: str, kind: int, place: Path, toy_arguments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickles(place, tmp_path)[kind])
    toys = [] if flag == "--config" else toy_arguments
    refusal(lambda: main(["--dry_run", *toys, flag, str(path), "--run.dir", str(tmp_path / "run")]), path.name)
    assert not place.exists()


def header(content: dict[str, Any], body: bytes, length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(*offsets: int, shape: tuple[int, ...] = (2,), kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "header of 2^60 bytes": header({}, b"", 2**60),
    "header beyond the file": header({}, b"", 10**6),
    "overlapping tensors": header({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "a hole": header({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)),
    "tensor beyond the file": header({"a": tensor(0, 8000, shape=(2000,))}, bytes(8)),
    "offsets of another size": header({"a": tensor(0, 4)}, bytes(4)),
    "backward offsets": header({"a": tensor(8, 0)}, bytes(8)),
    "unknown type": header({"a": tensor(0, 8, kind="OBJ")}, bytes(8)),
    "overflowing shape": header({"a": tensor(0, 8, shape=(2**40, 2**40))}, bytes(8)),
    "negative shape": header({"a": tensor(0, 8, shape=(-2, -1))}, bytes(8)),
    "nested header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no json": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "empty": b"",
    "three bytes": b"abc",
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_damaged_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    path.with_suffix(".json").write_text('{"format": 1, "kind": "encoder"}')
    refusal(lambda: histo.encoders.load(path), path)
    saved = checkpoint(tmp_path, 10)
    replace(saved, "optimizer.safetensors", content)
    refusal(lambda: checkpoints.load(saved), saved)


NESTED = "[" * 100_000 + "]" * 100_000
SURPRISES = ["[]", "3", "null", '"text"', "NaN", "[1, 2]", NESTED, '{"format": ' + "9" * 5000 + "}", "\0", ""]


@pytest.mark.parametrize("content", SURPRISES, ids=range(len(SURPRISES)))
def test_cards_of_surprising_types(content: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2)}, path)
    path.with_suffix(".json").write_text(content)
    for load in (histo.encoders.load, histo.segmenters.load):
        refusal(lambda load=load: load(path), path)


@pytest.mark.parametrize(
    "value", [None, 3, -1, 1e999, float("nan"), "x", "../../x.pt", [], ["resnet18"], {}, {"a": 1}, True]
)
@pytest.mark.parametrize(
    "key", ["library", "architecture", "arguments", "settings", "encoder", "norm", "pyramid_width"]
)
def test_cards_with_one_surprising_entry(key: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2)}, path)
    settings = {"encoder": "test_resnet", "norm": "own", "pyramid_width": 32}
    card = {"format": 1, "library": "timm", "architecture": "test_resnet", "arguments": {}, "settings": settings}
    (settings if key in settings else card)[key] = value
    for kind, load in (("encoder", histo.encoders.load), ("segmenter", histo.segmenters.load)):
        path.with_suffix(".json").write_text(json.dumps({**card, "kind": kind}))
        refusal(lambda load=load: load(path), path)


def test_a_card_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2)}, path)
    card = {"format": 1, "kind": "segmenter", "settings": {"encoder": "test_resnet", "pyramid_width": 32 * 10**6}}
    path.with_suffix(".json").write_text(json.dumps(card))
    refusal(lambda: histo.segmenters.load(path), path)
    with pytest.raises(InputError, match="from 32 to 1024"):
        Segmenter(SegmenterSettings(pyramid_width=2048))


# --- checkpoints


def checkpoint(folder: Path, images: int) -> Path:
    tensors = {"net": {"w": torch.ones(3)}, "optimizer": {"0.exp_avg": torch.zeros(3)}}
    folder.mkdir(exist_ok=True)
    return checkpoints.save(folder, checkpoints.Checkpoint(tensors, {"images": images}), keep=9)


def replace(path: Path, name: str, content: bytes) -> None:
    """Put a file in a checkpoint, and its hash in the manifest, as somebody would who wants it read."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["optimizer.safetensors", "optimizer.pt", "rng.pkl", "random_states_0.pkl"])
@pytest.mark.parametrize("kind", range(4))
def test_a_pickle_in_a_checkpoint_with_its_hash(name: str, kind: int, place: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "run", 10)
    replace(path, name, pickles(place, tmp_path)[kind])
    refusal(lambda: checkpoints.load(path), path)
    assert not place.exists()


@pytest.mark.parametrize("kind", range(4))
def test_a_pickle_beside_or_instead_of_the_files_of_a_checkpoint(kind: int, place: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "run", 10)
    for name in ("rng.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.pt"):
        (path / name).write_bytes(pickles(place, tmp_path)[kind])
    assert checkpoints.load(path).tensors.keys() == {"net", "optimizer"}, "files without a hash are not looked at"
    (path / "optimizer.safetensors").write_bytes(pickles(place, tmp_path)[kind])
    assert "was changed" in refusal(lambda: checkpoints.load(path), path)
    (path / "manifest.json").write_bytes(pickles(place, tmp_path)[kind])
    refusal(lambda: checkpoints.load(path), path)
    assert not place.exists()


@pytest.mark.parametrize(
    "images",
    [-1, "x", "10", None, 1.5, 10.0, float("nan"), True, [], {}, 11, 10**12, 10**400],
    ids=lambda v: str(v)[:9],
)
def test_impossible_image_counts(images: object, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 10)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["facts"]["images"] = images
    (path / "manifest.json").write_text(json.dumps(manifest))
    refusal(lambda: checkpoints.load(path), path / "manifest.json")


@pytest.mark.parametrize("content", [*SURPRISES, "[" * 100_000], ids=range(len(SURPRISES) + 1))
def test_manifests_of_surprising_types(content: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 10)
    (path / "manifest.json").write_text(content)
    refusal(lambda: checkpoints.load(path), path / "manifest.json")


@pytest.mark.parametrize(
    "name",
    ["../../x.safetensors", "/x.safetensors", "..", "", ".safetensors", "a/b.safetensors", "a\0.safetensors", "é\n"],
)
def test_file_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "run", 10)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"][name] = manifest["sha256"]["net.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    for copy in (tmp_path / "x.safetensors", path.parent / "x.safetensors"):
        copy.write_bytes((path / "net.safetensors").read_bytes())
    refusal(lambda: checkpoints.load(path), "manifest.json")


@pytest.mark.parametrize("change", ["unknown parameter", "no number", "no optimiser", "no replay", "untrained"])
def test_a_checkpoint_of_foreign_tensors(change: str, toy_run: Path, toy_arguments: list[str], tmp_path: Path) -> None:
    whole = checkpoints.load(checkpoints.complete(toy_run / "checkpoints")[-1])
    tensors, facts = dict(whole.tensors), dict(whole.facts)
    first = next(name for name in tensors if name.startswith("optimizer_"))
    if change == "no optimiser":
        del tensors[first]
    elif change == "untrained":
        facts["untrained"] = {"content/segmenter_dice": "x"}
    elif change == "no replay":
        tensors["replay"] = {"x": torch.ones(2)}
    else:
        tensors[first] = {"99999.exp_avg" if change == "unknown parameter" else "x.exp_avg": torch.ones(2)}
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    path = checkpoints.save(folder, checkpoints.Checkpoint(tensors, facts), keep=2)
    arguments = [*toy_arguments, "--data.workers", "0", "--run.dir", str(tmp_path / "run"), "--run.resume", str(path)]
    assert "resume from another checkpoint" in refusal(lambda: main(arguments))


# --- configs

BOMB = "a: &a [1, 1]\n" + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in pairwise("abcdefghij"))
CONFIGS = {
    "call": ("seed: !!python/object/apply:os.system ['touch PLACE']\n", "a tag"),
    "object": ("seed: !!python/object/new:subprocess.Popen [[touch, PLACE]]\n", "a tag"),
    "own tag": ("seed: !seed 1\n", "a tag"),
    "billion laughs": (BOMB, "an anchor or alias"),
    "circle": ("a: &a [*a]\n", "an anchor or alias"),
    "merge": ("a: &a {seed: 1}\nb: {<<: *a}\n", "an anchor or alias"),
    "repeated": ("seed: 1\nseed: 2\n", "seed a second time"),
    "repeated within": ("data:\n  workers: 1\n  workers: 2\n", "workers a second time"),
    "tab": ("data:\n\tworkers: 1\n", "at line 2"),
    "bytes": ("seed: \x00\x01", "plain values"),
    "nested": ("[" * 50_000, "more than 20 levels"),
    "nested blocks": ("".join(f"{' ' * k}a:\n" for k in range(300)), "more than 20 levels"),
    "large": ("# " + "x" * MAX_BYTES, "larger than"),
    "long number": ("seed: " + "9" * 5000, "plain values"),
    "impossible date": ("seed: 2024-99-99", "plain values"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "plain values"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_configs(name: str, place: Path, tmp_path: Path) -> None:
    content, words = CONFIGS[name]
    content = content.replace("PLACE", str(place))
    path, run = tmp_path / "mine.yaml", tmp_path / "run"
    path.write_text(content)
    run.mkdir()
    (run / "config.yaml").write_text(content)
    (run / "log.jsonl").touch()  # a run that has begun
    begin = time.monotonic()
    assert words in refusal(
        lambda: main(["--dry_run", "--config", str(path), "--run.dir", str(tmp_path / "new")]), path
    )
    assert words in refusal(lambda: main(["--dry_run", "--run.dir", str(run)]), run / "config.yaml")
    tiny = str(Path(__file__).parents[1] / "configs" / "translate" / "tiny.yaml")
    assert "is damaged" in refusal(
        lambda: main(["--dry_run", "--config", tiny, "--run.dir", str(run)]), run / "config.yaml"
    )
    assert time.monotonic() - begin < 20, "a bomb would take for ever"
    assert not place.exists()


def test_plain_configs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {tissue: [a, b], mpp: null}\nseed: 3\nrate: 1.5e-3\non: yes\n'*': '&'\n")
    assert read_config(path) == {
        "data": {"tissue": ["a", "b"], "mpp": None},
        "seed": 3,
        "rate": 1.5e-3,
        True: True,
        "*": "&",
    }


# --- data


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("suffix", [".npy", ".png", ".tif", ".geojson"])
def test_a_pickle_as_mask_or_tile(suffix: str, kind: int, place: Path, tmp_path: Path) -> None:
    path = tmp_path / f"mask{suffix}"
    path.write_bytes(pickles(place, tmp_path)[kind])
    refusal(lambda: read_instances(path, size=(4, 4)), path)
    assert not place.exists()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    Image.new("L", (64, 64), 7).save(folder / "secret.png")
    return folder / "secret.png"


def plain_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiles"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        picture = Image.new("L", (64, 64), 7)
        picture.paste(0, (0, 0, 64, 32))  # as a mask it has background
        picture.save(folder / name)
    return folder


@pytest.mark.parametrize("name", ["link.png", "deep/link.png", "linked"])
def test_a_link_out_of_a_plain_folder(name: str, outside: Path, tmp_path: Path) -> None:
    folder = plain_folder(tmp_path)
    (folder / name).symlink_to(outside if name.endswith(".png") else outside.parent)
    sentence = refusal(lambda: open_tiles(folder), folder / name)
    assert "is a link to" in sentence
    assert "copy what it leads to into the folder" in sentence
    tiles = open_tiles(folder, on_bad="skip")
    assert [entry.key for entry in tiles.entries] == ["a.png", "deep/b.png"]
    assert tiles.bad == [(folder / name, sentence)]


def test_links_inside_and_to_the_folder_itself(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path)
    (folder / "c.png").symlink_to("deep/b.png")
    (tmp_path / "elsewhere").symlink_to(folder)
    tiles = open_tiles(tmp_path / "elsewhere")
    assert [entry.key for entry in tiles.entries] == ["a.png", "c.png", "deep/b.png"]
    assert all(tile.image.max() == 7 for tile in tiles)
    (folder / "d.png").symlink_to("nowhere.png")
    (folder / "e.png").symlink_to("e.png")
    refusal(lambda: open_tiles(folder), folder / "d.png")
    skipped = open_tiles(folder, on_bad="skip").bad
    assert [path.name for path, _ in skipped] == ["d.png", "e.png"]


def test_links_out_of_a_folder_of_masks(outside: Path, tile_folder: Path, tmp_path: Path) -> None:
    folder = plain_folder(tmp_path)
    (folder / "link.png").symlink_to(outside)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:50])

    def masks(on_bad: Any) -> Any:
        settings = DataSettings(tissue=str(tile_folder), masks=str(folder), tile_size=64, workers=0, on_bad=on_bad)
        return open_domains(settings, 0, tmp_path / "made", progress=False)

    assert "is a link to" in refusal(lambda: masks("error"), folder / "link.png")
    domains = masks("skip")
    assert [file.name for file in domains.source.tiles.files] == ["a.png", "b.png"]
    assert [path for path, _ in domains.skipped] == [folder / "cut.png", folder / "link.png"]


ROWS = {
    "up": ("../private/secret.png", "would leave"),
    "up later": ("deep/../../private/secret.png", "would leave"),
    "backslashes": ("..\\private\\secret.png", "would leave"),
    "absolute": ("/private/secret.png", "has the absolute"),
    "drive": ("C:\\secret.png", "has the absolute"),
    "link": ("link.png", "a link to"),
    "linked folder": ("linked/secret.png", "a link to"),
    "nul": ("a\0.png", "expected a file"),
    "long name": ("x" * 300 + ".png", "characters"),
    "long path": ("x/" * 900 + "a.png", "characters"),
    "folder": ("deep", "missing"),
    "circle": ("circle.png", "missing"),
    "huge": ("x" * 100_000_000, "field larger than field limit"),
    "open quote": ('"a.png', "unexpected end of data"),
}


@pytest.mark.parametrize("column", ["path", "mask"])
@pytest.mark.parametrize("name", ROWS)
def test_hostile_rows(name: str, column: str, outside: Path, tmp_path: Path) -> None:
    folder = plain_folder(tmp_path)
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)
    (folder / "circle.png").symlink_to("circle.png")
    text, words = ROWS[name]
    if column == "mask" and name == "up":
        text = "../" + text  # one step up is where published sets keep masks
    row = f"{text}," if column == "path" else f"a.png,{text}"
    (folder / "tiles.csv").write_text(f"path,mask\n{row}\n")
    sentence = refusal(lambda: open_tiles(folder))
    assert words in sentence
    assert len(sentence) < 2500
