"""Which machine a benchmark ran on, and how fast it multiplies."""

import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional as F

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def cpu_model() -> str:
    """The CPU's name; Linux alone keeps it in a file."""
    return _cpu_information("model name") or platform.processor() or platform.machine()


def _cpu_information(field: str) -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize()


def quickest(call: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Seconds of the quickest of several calls, after one that warms up: other work disturbed it least."""
    call()
    durations = []
    for _ in range(repeats):
        synchronise(device)
        start = perf_counter()
        call()
        synchronise(device)
        durations.append(perf_counter() - start)
    return min(durations)


def rates(device: str, precision: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a square matrix product and of a 3×3 convolution of 128 channels at 128², batch 4."""
    side = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    matrices = 2 * side**3 / quickest(lambda: a @ b, 5, device)
    x = torch.randn(4, 128, 128, 128, device=device, dtype=precision).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=precision).contiguous(memory_format=torch.channels_last)
    return matrices, 2 * 9 * 128 * x.numel() / quickest(lambda: F.conv2d(x, weight, padding=1), 5, device)


def describe(device: str, measured: dict[bool, tuple[float, float]]) -> str:
    """Name, threads, versions and the measured rates; `measured` maps "is bf16" to what `rates` gave."""
    if device == "cpu":
        flags = _cpu_information("flags").split()
        known = " ".join(flag for flag in FLAGS if flag in flags) or "no known flags"
        name = f"{cpu_model()} ({known}), {torch.get_num_threads()} threads"
    else:
        name = torch.cuda.get_device_name()
    lines = [f"{name}, torch {torch.__version__}"]
    for bf16, (matrices, convolutions) in measured.items():
        precision = "bf16" if bf16 else "fp32"
        lines.append(f"  {precision}: matrices {matrices / 1e9:.0f}, convolutions {convolutions / 1e9:.0f} GFLOP/s")
    return "\n".join(lines)
