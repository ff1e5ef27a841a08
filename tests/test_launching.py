"""Accelerate's configs: each is one that Accelerate reads, and those that can run here do."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from tests.launching import ALONE, PAIR, ROOT, start

CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
LAUNCH = [*ALONE, "-m", "accelerate.commands.launch", "-q"]


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.stem for path in CONFIGS] == ["cpu", "one_gpu", "several_gpus", "several_nodes"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.to_dict().items() >= {key: value for key, value in written.items() if key != "gpu_ids"}.items()
    assert config.distributed_type in ("NO", "MULTI_GPU")


@pytest.mark.slow
def test_the_cpu_config_runs(toy_arguments: list[str], tmp_path: Path) -> None:
    launcher = [*LAUNCH, "--config_file", str(ROOT / "configs" / "accelerate" / "cpu.yaml")]
    process = start([*toy_arguments, "--train.images", "8"], tmp_path / "run", launcher)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "cpu, bf16, 1 process(es)" in output


@pytest.mark.slow
def test_several_nodes_meet(toy_arguments: list[str], tmp_path: Path) -> None:
    """Two launchers with a rank each, as on two machines, and one run folder."""
    nodes = [
        start(
            [*toy_arguments, "--train.images", "8"],
            tmp_path / "run",
            [*PAIR[:-2], "--nnodes", "2", "--node_rank", rank, "--master_port", "29541", "--nproc_per_node", "1"],
        )
        for rank in ("0", "1")
    ]
    outputs = [node.communicate(timeout=180) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sorted(output.count("Done: 8 images") for output, _ in outputs) == [0, 1]
