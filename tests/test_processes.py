"""Two processes do what one does: the same gradients and weights, one log, one checkpoint, one error sentence.

`torchrun` on a CPU stands in for `accelerate launch` on several GPUs.
"""

import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from histo.running import checkpoints, processes
from histo.running.tracking import read_log
from tests.launching import ALONE, ENVIRONMENT, PAIR, start, wait_for


def run(command: list[str], timeout: int = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=ENVIRONMENT)


def flat(tensors: dict[str, torch.Tensor], prefix: str) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors) if name.startswith(prefix)])


@pytest.mark.slow
def test_two_processes_match_one(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("five_steps.py"))
    alone = run([*ALONE, script, str(tmp_path / "one.safetensors")])
    assert alone.returncode == 0, alone.stderr
    pair = run([*PAIR, script, str(tmp_path / "two.safetensors")])
    assert pair.returncode == 0, pair.stderr
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    shown = [two.pop(f"shown/{rank}").tolist() for rank in (0, 1)]
    assert sorted(shown[0] + shown[1]) == one.pop("shown/0").tolist() == list(range(20))

    assert one.keys() == two.keys()
    assert one["ada"].item() == two["ada"].item() in (0.6 - 0.25, 0.6 + 0.25), "both counted the same logits"
    for optimizer in ("translators", "judges"):
        gradients = [name for name in one if name.startswith(f"gradient/{optimizer}")]
        largest = max(one[name].abs().max().item() for name in gradients)
        assert largest > 0.1
        for name in gradients:
            # Some are zero in mathematics (a bias before a normalisation), hence a floor at 1e-4 of the largest.
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4 * largest)
        moved = flat(one, f"weight/{optimizer}") - flat(one, f"start/{optimizer}")
        apart = flat(two, f"weight/{optimizer}") - flat(one, f"weight/{optimizer}")
        assert moved.norm() > 1e-3
        assert apart.norm() < 0.05 * moved.norm()  # measured 0.014 and 0.015; a wrong share gives about 1


@pytest.mark.slow
def test_a_run_goes_from_two_processes_to_one_and_back(toy_arguments: list[str], tmp_path: Path) -> None:
    small = [
        "train.precision=fp32",
        "train.learning_rate=1e-5",
        "train.judge_learning_rate=1e-5",
        "train.save_every=16",
    ]
    arguments = [*toy_arguments, "--data.workers", "1", *(f"--{setting}" for setting in small)]
    arguments += ["--run.keep", "9", "--discriminator.deviation_group", "2"]
    reference, mixed = tmp_path / "reference", tmp_path / "mixed"
    alone = start([*arguments, "--train.images", "64"], reference)
    _, errors = alone.communicate(timeout=240)
    assert alone.returncode == 0, errors

    pair = start([*arguments, "--train.images", "64"], mixed, PAIR)
    wait_for(mixed / "checkpoints" / "000000000016", pair)
    pair.send_signal(signal.SIGTERM)
    output, errors = pair.communicate(timeout=240)
    assert output.count("Stopped by") == 1, errors
    stopped_at = int(checkpoints.complete(mixed / "checkpoints")[-1].name)
    assert 16 <= stopped_at < 64

    alone = start([*arguments, "--train.images", "64"], mixed)
    _, errors = alone.communicate(timeout=240)
    assert alone.returncode == 0, errors
    nets = ("generator", "segmenter", "tissue_discriminator", "mask_discriminator")
    early, late, other = (
        torch.cat([flat(checkpoints.load(folder / "checkpoints" / f"{images:012d}").tensors[net], "") for net in nets])
        for folder, images in ((reference, 16), (reference, 64), (mixed, 64))
    )
    assert (other - late).norm() < 0.1 * (late - early).norm()

    pair = start([*arguments, "--train.images", "96"], mixed, PAIR)
    output, errors = pair.communicate(timeout=240)
    assert pair.returncode == 0, errors
    assert output.count("Done: 96 images") == 1
    assert output.count("2 process(es)") == 1
    images = [record["images"] for record in read_log(mixed) if "loss/cycle_mask" in record]
    assert images == list(range(16, 97, 16)), "each image count stands in the log once"
    assert not (mixed / "lock.json").exists()


@pytest.mark.slow
def test_a_fault_in_one_process_ends_all_with_one_sentence(toy_arguments: list[str], tmp_path: Path) -> None:
    """Images 2, 3, 6, 7, … are the second process's, and one of its tiles is broken."""
    tissue = tmp_path / "tissue"
    tissue.mkdir()
    for k in range(400):
        Image.new("RGB", (96, 96), (200, 120, 180)).save(tissue / f"{k}.png")
    for k in range(0, 400, 2):
        (tissue / f"{k}.png").write_bytes((tissue / f"{k}.png").read_bytes()[:60])
    settings = ["--data.tissue", str(tissue), "--data.masks", "phantom", "--data.mpp", "0.5", "--data.workers", "0"]
    pair = start([*toy_arguments, *settings], tmp_path / "run", PAIR)
    _, errors = pair.communicate(timeout=120)
    assert pair.returncode != 0
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, errors
    assert "cannot be decoded" in sentences[0]


@pytest.mark.slow
def test_what_one_process_meets_all_are_told(tmp_path: Path) -> None:
    script = tmp_path / "faults.py"
    script.write_text(
        "from histo.errors import InputError\n"
        "from histo.running.processes import anywhere, state, summed, together\n"
        "from histo.running.settings import run_script\n"
        "rank = state().process_index\n"
        "assert anywhere(rank == 1) and not anywhere(False)\n"
        "assert summed([1.0, float(rank)]) == [2.0, 1.0]\n"
        "def main(arguments):\n"
        "    with together():\n"
        "        print('through', flush=True)\n"
        "    with together():\n"
        "        if rank == 1:\n"
        "            raise InputError('the second one has it')\n"
        "    print('never', flush=True)\n"
        "run_script(main)\n"
    )
    pair = run([*PAIR, str(script)])
    assert pair.stdout.count("through") == 2
    assert "never" not in pair.stdout
    assert pair.stderr.count("error: the second one has it") == 1
    assert pair.returncode != 0


@pytest.mark.slow
def test_all_continue_from_what_the_first_one_sees(toy_arguments: list[str], tmp_path: Path) -> None:
    """A network disk may hide the newest checkpoint from one machine for a while."""
    run = tmp_path / "run"
    alone = start([*toy_arguments, "--data.workers", "0", "--train.images", "64"], run)
    assert alone.wait(timeout=120) == 0
    script = tmp_path / "late.py"
    script.write_text(
        "from histo.running import checkpoints\n"
        "from histo.running.processes import state\n"
        "from histo.running.settings import run_script\n"
        "from translate.train import main\n"
        "found = checkpoints._named\n"
        "if state().process_index == 1:\n"
        "    checkpoints._named = lambda folder: found(folder)[:1]\n"
        "run_script(main)\n"
    )
    arguments = [*toy_arguments, "--data.workers", "0", "--train.images", "72", "--run.dir", str(run)]
    pair = subprocess.run(
        [*PAIR, str(script), *arguments], capture_output=True, text=True, timeout=120, env=ENVIRONMENT
    )
    assert pair.returncode == 0, pair.stderr
    assert pair.stdout.count("Done: 72 images") == 1


@pytest.mark.slow
def test_the_others_wait_for_hours_of_work_of_one(tmp_path: Path) -> None:
    """torch gives up after 10 or 30 minutes; what is set here is what holds."""
    assert timedelta(hours=12) < processes.PATIENCE
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom datetime import timedelta\n"
        "from histo.running import processes\n"
        "processes.PATIENCE = timedelta(seconds=2)\n"
        "with processes.together():\n"
        "    time.sleep(6 * (processes.state().process_index == 0))\n"
    )
    pair = run([*PAIR, str(script)])
    assert pair.returncode != 0
