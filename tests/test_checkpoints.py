"""Checkpoints: exact resumption, and folders that are complete or do not count."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from histo.errors import InputError
from histo.running import checkpoints
from histo.running.checkpoints import Checkpoint, complete, load, optimizer_tensors, restore_optimizer, save, sweep


def state(images: int, value: float = 1.0) -> Checkpoint:
    tensors = {"net": {"weight": torch.full((2, 3), value), "step": torch.tensor(images)}, "replay": {}}
    return Checkpoint(tensors, {"images": images, "note": "µm/px", "scores": {"dice": 0.5}})


def same(one: dict[str, dict[str, Tensor]], two: dict[str, dict[str, Tensor]]) -> bool:
    return one.keys() == two.keys() and all(
        one[group].keys() == two[group].keys()
        and all(
            torch.equal(one[group][name], two[group][name]) and one[group][name].dtype == two[group][name].dtype
            for name in one[group]
        )
        for group in one
    )


def test_round_trip(tmp_path: Path) -> None:
    tensors = {
        "net": {
            "float": torch.randn(2, 3),
            "half": torch.randn(4).bfloat16(),
            "count": torch.tensor(7),
            "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
            "cut": torch.randn(6, 6)[:, ::2],
            "grad": torch.randn(2, requires_grad=True),
        },
        "empty": {},
    }
    path = save(tmp_path, Checkpoint(tensors, {"images": 12, "é": [1, None]}), keep=1)
    assert path.name == "000000000012"
    back = load(path)
    assert same(back.tensors, tensors)
    assert back.facts == {"images": 12, "é": [1, None]}


class Training:
    """A small network under Adam, with inputs keyed by the step."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 1, 3))
        self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2, betas=(0.0, 0.99), eps=1e-8)
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def steps(self, start: int, stop: int) -> list[float]:
        losses = []
        for step in range(start, stop):
            x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            loss = (self.network(x) - 1).square().mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    unbroken = Training(0)
    whole = unbroken.steps(0, 12)

    first = Training(0)
    before = first.steps(0, 5)
    groups = {"net": first.network.state_dict(), "adam": optimizer_tensors(first.optimizer)}
    path = save(tmp_path, Checkpoint(groups, {"images": 5}), keep=2)

    second = Training(99)
    checkpoint = load(path)
    second.network.load_state_dict(checkpoint.tensors["net"])
    restore_optimizer(second.optimizer, checkpoint.tensors["adam"])
    assert before + second.steps(5, 12) == whole
    for one, two in zip(unbroken.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, two)
    assert same({"adam": optimizer_tensors(unbroken.optimizer)}, {"adam": optimizer_tensors(second.optimizer)})


def test_without_the_optimizers_state_training_goes_another_way() -> None:
    """What the test above must be able to notice."""
    unbroken, broken = Training(0), Training(0)
    whole = unbroken.steps(0, 8)
    losses = broken.steps(0, 5)
    broken.optimizer = torch.optim.Adam(broken.network.parameters(), lr=1e-2, betas=(0.0, 0.99), eps=1e-8)
    assert losses + broken.steps(5, 8) != whole


def test_state_is_laid_out_like_its_parameter() -> None:
    """A fused Adam walks memory in order: a channels-last weight with contiguous averages would mix its entries up."""

    def descended(steps: range, optimizer: torch.optim.Optimizer, network: torch.nn.Module) -> torch.Tensor:
        for k in steps:
            generator = torch.Generator().manual_seed(k)
            optimizer.zero_grad()
            network(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
            optimizer.step()
        return network.weight.detach().clone()

    def born() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network, torch.optim.Adam(network.parameters(), betas=(0.5, 0.99), fused=True)

    network, optimizer = born()
    whole = descended(range(6), optimizer, network)
    network, optimizer = born()
    descended(range(3), optimizer, network)
    resumed, fresh = born()
    resumed.load_state_dict(network.state_dict())
    kept = {name: value.contiguous().clone() for name, value in optimizer_tensors(optimizer).items()}
    restore_optimizer(fresh, kept)
    assert torch.equal(descended(range(3, 6), fresh, resumed), whole)


def test_an_optimizer_that_has_not_stepped(tmp_path: Path) -> None:
    training = Training(0)
    assert optimizer_tensors(training.optimizer) == {}
    path = save(tmp_path, Checkpoint({"adam": optimizer_tensors(training.optimizer)}, {"images": 0}), keep=1)
    restore_optimizer(training.optimizer, load(path).tensors["adam"])
    assert training.steps(0, 3) == Training(0).steps(0, 3)


def test_restoring_keeps_the_learning_rate_of_the_settings() -> None:
    training, other = Training(0), Training(0)
    training.steps(0, 2)
    other.optimizer.param_groups[0]["lr"] = 0.5
    restore_optimizer(other.optimizer, optimizer_tensors(training.optimizer))
    assert other.optimizer.param_groups[0]["lr"] == 0.5


def test_order_is_by_images_and_old_ones_are_dropped(tmp_path: Path) -> None:
    for images in (9, 10, 100, 1000):
        save(tmp_path, state(images), keep=2)
    assert [int(path.name) for path in complete(tmp_path)] == [100, 1000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000100", "000000001000"]


def test_a_checkpoint_just_written_is_never_dropped(tmp_path: Path) -> None:
    """As when a run continues from a checkpoint that is not its newest."""
    for images in (10, 20):
        save(tmp_path, state(images), keep=2)
    path = save(tmp_path, state(15), keep=1)
    assert path.exists()
    assert load(path).facts["images"] == 15


def test_a_half_written_folder_is_never_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, state(10), keep=2)
    real = checkpoints._sync

    def killed(path: Path) -> None:
        if path.name == checkpoints.MANIFEST:
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_sync", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, state(20), keep=2)
    assert len(list(tmp_path.iterdir())) == 2, "the leftover of the killed save"
    assert [int(path.name) for path in complete(tmp_path)] == [10]
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["000000000010"]


def test_a_folder_without_manifest_is_never_chosen(tmp_path: Path) -> None:
    save(tmp_path, state(10), keep=2)
    (tmp_path / "000000000020").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "5.txt").touch()
    assert [int(path.name) for path in complete(tmp_path)] == [10]
    assert complete(tmp_path / "nowhere") == []


def test_sweep_keeps_complete_checkpoints_and_foreign_files(tmp_path: Path) -> None:
    save(tmp_path, state(10), keep=2)
    (tmp_path / ".writing-000000000020").mkdir()
    (tmp_path / ".writing-000000000020" / "net.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000010", "notes.txt"]
    sweep(tmp_path / "nowhere")


def test_a_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    save(tmp_path, state(10, value=1), keep=2)
    path = save(tmp_path, state(10, value=2), keep=2)
    assert load(path).tensors["net"]["weight"][0, 0] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_saving_again_after_a_killed_save_of_the_same_count(tmp_path: Path) -> None:
    leftover = tmp_path / ".writing-000000000010"
    leftover.mkdir()
    (leftover / "alien.safetensors").touch()
    path = save(tmp_path, state(10), keep=1)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "net.safetensors", "replay.safetensors"]


def test_a_kill_while_replacing_the_only_checkpoint_leaves_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever instant the process dies at while it saves over its only checkpoint, a whole one can be loaded."""
    save(tmp_path, state(10), keep=1)
    real = shutil.rmtree

    def killed(path: Path, *arguments: object, **named: object) -> None:
        if (Path(path) / checkpoints.MANIFEST).exists():
            (Path(path) / "net.safetensors").unlink(missing_ok=True)
            raise KeyboardInterrupt
        real(path, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with suppress(KeyboardInterrupt):
            save(tmp_path, state(10), keep=1)
    found = complete(tmp_path)
    assert found
    assert load(found[-1]).facts["images"] == 10


@pytest.mark.parametrize("name", ["net.safetensors", "manifest.json"])
def test_a_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, state(10), keep=1)
    content = bytearray((path / name).read_bytes())
    content[len(content) - 3 if name.endswith("safetensors") else 0] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        load(path)


def test_a_missing_file_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, state(10), keep=1)
    (path / "net.safetensors").unlink()
    with pytest.raises(InputError, match=r"net\.safetensors is missing"):
        load(path)


def test_a_missing_manifest(tmp_path: Path) -> None:
    path = save(tmp_path, state(10), keep=1)
    (path / "manifest.json").unlink()
    with pytest.raises(InputError, match="is no checkpoint"):
        load(path)
    with pytest.raises(InputError, match="is no checkpoint"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"facts": {}, "sha256": []}'])
def test_a_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, state(10), keep=1)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        load(path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = save(tmp_path / "run", state(10), keep=1)
    outside = tmp_path / "outside.safetensors"
    shutil.copy(path / "net.safetensors", outside)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"] = {"../../outside.safetensors": manifest["sha256"]["net.safetensors"]}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError):
        load(path)


def test_forget_after_takes_away_another_life(tmp_path: Path) -> None:
    for images in (10, 20, 30):
        save(tmp_path, state(images), keep=3)
    checkpoints.forget_after(tmp_path, 20)
    assert [path.name for path in complete(tmp_path)] == [f"{10:012d}", f"{20:012d}"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lost_manifest_is_damage(tmp_path: Path) -> None:
    for images in (10, 20):
        checkpoints.save(tmp_path, checkpoints.Checkpoint({"net": {"w": torch.ones(1)}}, {"images": images}), keep=9)
    (tmp_path / "000000000020" / "manifest.json").unlink()
    found, (sentence,) = checkpoints.load_newest(tmp_path)
    assert found is not None
    assert found.facts["images"] == 10
    assert "000000000020 is no checkpoint, or a damaged one" in sentence
    checkpoints.save(tmp_path, checkpoints.Checkpoint({"net": {"w": torch.ones(1)}}, {"images": 20}), keep=9)
    assert checkpoints.load(tmp_path / "000000000020").facts["images"] == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000010", "000000000020"]
    for path in tmp_path.glob("*/manifest.json"):
        path.unlink()
    with pytest.raises(InputError, match="None of the 2 checkpoints"):
        checkpoints.load_newest(tmp_path)


def test_a_disk_that_cannot_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for images in (10, 20):
        checkpoints.save(tmp_path, checkpoints.Checkpoint({"net": {"w": torch.ones(1)}}, {"images": images}), keep=9)
    digest = checkpoints._digest

    def bad_sector(path: Path) -> str:
        if path.parent.name == "000000000020":
            raise OSError(5, "Input/output error")
        return digest(path)

    monkeypatch.setattr(checkpoints, "_digest", bad_sector)
    found, (sentence,) = checkpoints.load_newest(tmp_path)
    assert found is not None
    assert found.facts["images"] == 10
    assert "cannot be read (Input/output error)" in sentence
