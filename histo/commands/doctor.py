"""`nucleate doctor`: is this machine ready, how fast will it be, what is missing and how to get it. No network."""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("histo", "translate", "pretrain", "downstream")
CELLPOSE_WEIGHTS = ("cpsam_v2", "cpsam")  # newest first
CPU_FLAGS = ("avx512_bf16", "amx_bf16")  # as Linux names them


class Findings:
    """Prints what was looked at; remembers whether something stands in the way of training."""

    def __init__(self) -> None:
        self.ready = True

    def title(self, text: str) -> None:
        print(f"\n{text}")

    def good(self, text: str) -> None:
        print(f"   ok  {text}")

    def note(self, text: str) -> None:
        """Something to know, or optional and absent."""
        print(f"    ·  {text}")

    def problem(self, text: str) -> None:
        """Training cannot run like this."""
        print(f"   !!  {text}")
        self.ready = False


def main(arguments: list[str]) -> int:
    """Parse `nucleate doctor` and look at everything; returns 0 when training can run here, 1 otherwise."""
    argparse.ArgumentParser(
        prog="nucleate doctor",
        description="Look at versions, packages, devices and optional parts. Exit code 0: training can run; 1: not.",
    ).parse_args(arguments)
    findings = Findings()
    print(f"nucleate {_version('nucleate') or 'not installed'}, Python {platform.python_version()} at {sys.executable}")
    look_at_libraries(findings)
    look_at_packages(findings)
    look_at_devices(findings)
    look_at_extras(findings)
    verdict = (
        "Training can run here; try `nucleate demo`." if findings.ready else "Training cannot run yet: mend each !!."
    )
    print(f"\n{verdict}")
    return 0 if findings.ready else 1


def look_at_libraries(findings: Findings) -> None:
    """Each dependency's version against the one the project asks for."""
    findings.title("Libraries")
    for requirement in requirements():
        name, wanted = split_requirement(requirement)
        found = _version(name)
        asked = f" ({wanted})" if wanted else ""
        if found is None:
            findings.problem(f'{name} is missing{asked}; pip install "{requirement}"')
        elif not meets(found, wanted):
            findings.problem(f'{name} {found} does not meet {wanted}; pip install "{requirement}"')
        else:
            findings.good(f"{name} {found}{asked}")


def requirements() -> list[str]:
    """The project's own dependencies, from the checkout or else from the installed distribution."""
    pyproject = ROOT / "pyproject.toml"
    if pyproject.is_file():
        return list(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [line for line in metadata.requires("nucleate") or [] if "extra ==" not in line]


def split_requirement(requirement: str) -> tuple[str, str]:
    """`name[extra]>=1,<2` → (`name`, `>=1,<2`)."""
    found = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", requirement)
    if found is None:
        raise ValueError(f"no requirement: {requirement!r}")
    return found[1], found[2].strip()


def meets(version: str, wanted: str) -> bool:
    """Whether a version lies in bounds like `>=4.49,<5`; only the release numbers count."""

    def release(text: str) -> list[int]:
        numbers = [int(number) for number in re.match(r"[\d.]*", text)[0].split(".") if number]  # type: ignore[index]
        return numbers + [0] * (6 - len(numbers))

    for bound in filter(None, wanted.split(",")):
        if bound.startswith(">="):
            if release(version) < release(bound[2:]):
                return False
        elif bound.startswith("<"):
            if release(version) >= release(bound[1:]):
                return False
        else:
            raise ValueError(f"{bound!r} is a bound that nucleate's requirements do not use")
    return True


def look_at_packages(findings: Findings) -> None:
    """Where our packages would be imported from, and whether they are ours."""
    findings.title("nucleate's packages are imported from")
    owners = metadata.packages_distributions()
    for name in PACKAGES:
        place = package_place(name)
        strangers = sorted(set(owners.get(name, [])) - {"nucleate"})
        if place is None:
            findings.problem(f"{name} is not found; run `pip install -e .` in the clone of the repository")
        elif place.parent != ROOT:
            whose = f" by {', '.join(strangers)}" if strangers else ""
            findings.problem(
                f"{name} is another package of that name, installed{whose} at {place}, and hides ours in {ROOT}; "
                "install nucleate into an environment of its own"
            )
        else:
            findings.good(f"{name}  {place}")
            if strangers:
                findings.note(
                    f"{', '.join(strangers)} installs a package {name} too; an environment of our own is safer"
                )


def package_place(name: str) -> Path | None:
    """The folder that `import name` would take, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or []) or [spec.origin or ""]
    return Path(places[0]).resolve()


def look_at_devices(findings: Findings) -> None:
    """Processors, their memory, and whether bf16 pays on them."""
    findings.title("Devices")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    findings.note(f"CPU: {cpu_model()}, {cores} cores, {_memory()}")
    flags = cpu_flags()
    shown = [f"{flag} {'unknown' if flags is None else 'yes' if flag in flags else 'no'}" for flag in CPU_FLAGS]
    findings.note(f"CPU instructions: {', '.join(shown)}")
    asked = os.environ.get("OMP_NUM_THREADS", "")
    spin = os.environ.get("GOMP_SPINCOUNT", "(unset; training takes 1000)")
    findings.note(f"threads: OMP_NUM_THREADS={asked or '(unset)'}, GOMP_SPINCOUNT={spin}")
    if asked.isdigit() and int(asked) > cores:
        findings.note(f"OMP_NUM_THREADS={asked} is more than the {cores} cores, which slows everything; unset it")
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of its own is missing
        findings.problem(f"torch cannot be imported ({error}); install it anew")
        return
    findings.note(f"torch uses {torch.get_num_threads()} threads; built for {_build()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            with torch.cuda.device(index):
                native = torch.cuda.is_bf16_supported(including_emulation=False)
            advice = (
                "bf16 is native and the fast path" if native else "no native bf16, train with --train.precision fp32"
            )
            findings.good(f"GPU {index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB; {advice}")
        return
    if shutil.which("nvidia-smi"):
        findings.note("There is an NVIDIA driver, but this torch cannot use it: see pytorch.org for the matching build")
    if torch.backends.mps.is_available():
        findings.good("GPU: Apple, by way of MPS; start with --train.precision fp32")
        return
    gain = bf16_gain()
    advice = "the default, bf16, pays" if gain > 1.1 else "train with --train.precision fp32"
    findings.note(f"no GPU; on this CPU a convolution runs {gain:.1f} times as fast in bf16 as in fp32: {advice}")


def _build() -> str:
    from torch import version

    if version.cuda:
        return f"CUDA {version.cuda}"
    return f"ROCm {version.hip}" if version.hip else "the CPU"


def bf16_gain() -> float:
    """How many times faster than in fp32 a convolution and its gradients run on the CPU under bf16 autocast.

    Measured, because instruction flags promise more than some processors and library versions keep.
    """
    import torch

    layer = torch.nn.Conv2d(128, 128, 3, padding=1)
    image = torch.zeros(4, 128, 64, 64, requires_grad=True)

    def seconds(bf16: bool) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            layer(image).sum().backward()
        return time.perf_counter() - start

    times = {bf16: min(seconds(bf16) for _ in range(4)) for bf16 in (False, True)}
    return times[False] / times[True]


def cpu_model() -> str:
    """The processor's name as far as the system tells it."""
    found = re.search(r"^model name\s*: (.*)$", _cpuinfo() or "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def cpu_flags() -> set[str] | None:
    """Instruction sets of the processor as Linux names them; None where they cannot be read."""
    found = re.search(r"^flags\s*: (.*)$", _cpuinfo() or "", re.MULTILINE)
    return set(found[1].split()) if found else None


def _cpuinfo() -> str | None:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    except (AttributeError, ValueError, OSError):
        return "memory unknown"


def look_at_extras(findings: Findings) -> None:
    """What nucleate can do without: slide reading, and Cellpose's weights."""
    findings.title("Optional")
    reader, library = _version("openslide-python"), _version("openslide-bin")
    if reader and library:
        findings.good(f"slides: openslide-python {reader} with openslide-bin {library}")
    elif reader:
        findings.note(f"slides: openslide-python {reader} needs the system's OpenSlide, or pip install openslide-bin")
    else:
        findings.note('slides cannot be read; pip install -e ".[slides]"')
    folder = cellpose_folder()
    present = [name for name in CELLPOSE_WEIGHTS if (folder / name).is_file()]
    if present:
        findings.good(f"cellpose weights: {folder / present[0]}")
    else:
        findings.note(
            f"cellpose weights are not in {folder}; the first use of cellpose fetches them (about 1 GB), or put"
        )
        findings.note(
            f"  {CELLPOSE_WEIGHTS[0]} from huggingface.co/mouseland/cellpose-sam there (trained on CC-BY-NC data)"
        )


def cellpose_folder() -> Path:
    """Where cellpose looks for its weights."""
    named = os.environ.get("CELLPOSE_LOCAL_MODELS_PATH")
    return Path(named) if named else Path.home() / ".cellpose" / "models"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
