"""Settings from configs and flags, and the way a script ends when they are wrong."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from histo.errors import InputError
from histo.running.settings import Request, as_yaml, read_settings


@dataclass
class Optics:
    """Light path."""

    mpp: float | None = None
    """µm/px of the scan"""
    power: int = 20
    """magnification"""
    mode: Literal["bright", "dark"] = "bright"
    """illumination"""
    stains: list[str] | str = "none"
    """one or several"""
    flat: bool = False
    """flat-field correction"""

    def __post_init__(self) -> None:
        if self.power < 1:
            raise InputError(f"optics.power is {self.power}, expected 1 or more.")


@dataclass
class Scan:
    """A slide scan."""

    optics: Optics = field(default_factory=Optics)
    rate: float = 1e-3
    """of something"""
    name: str = "untitled"
    """of the slide"""
    seed: int = 0
    """seed"""
    planes: list[int] = field(default_factory=lambda: [0])
    """depths"""
    scales: list[float] | None = None
    """µm/px of further scans"""

    def __post_init__(self) -> None:
        if self.seed == 13 and self.optics.flat:
            raise InputError("seed is 13 with optics.flat, expected another seed.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "preset.yaml").write_text("optics:\n  power: 10\n  mpp: 0.25\n")
    (tmp_path / "second.yaml").write_text("optics:\n  power: 11\nrate: 1e-4\n")
    return tmp_path


def read(folder: Path, *argv: str) -> Request[Scan]:
    return read_settings(Scan, "scan.py", "Scan a slide.", list(argv), folder / "preset.yaml")


def refusal(folder: Path, *argv: str) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, *argv)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def config(folder: Path, content: str) -> tuple[str, str]:
    path = folder / "mine.yaml"
    path.write_text(content)
    return "--config", str(path)


def test_no_argument_at_all_means_the_preset(folder: Path) -> None:
    request = read(folder)
    assert request.settings == Scan(Optics(power=10, mpp=0.25))
    assert request.configs == [folder / "preset.yaml"]
    assert not request.dry_run


def test_flags_without_a_config_change_the_preset(folder: Path) -> None:
    assert read(folder, "--seed", "4").settings == Scan(Optics(power=10, mpp=0.25), seed=4)


def test_a_later_config_wins_and_a_flag_wins_over_both(folder: Path) -> None:
    both = ("--config", str(folder / "preset.yaml"), f"--config={folder / 'second.yaml'}")
    request = read(folder, *both)
    assert request.settings == Scan(Optics(power=11, mpp=0.25), rate=1e-4)
    assert request.configs == [folder / "preset.yaml", folder / "second.yaml"]
    assert read(folder, *both, "--optics.power", "12").settings.optics == Optics(power=12, mpp=0.25)
    assert read(folder, *both, "--optics.power=12").settings.optics.power == 12


def test_a_named_config_replaces_the_preset(folder: Path) -> None:
    assert read(folder, "--config", str(folder / "second.yaml")).settings.optics == Optics(power=11)


def test_an_empty_config_changes_nothing(folder: Path) -> None:
    assert read(folder, *config(folder, "# nothing yet\n")).settings == Scan()


def test_types_are_the_dataclass_own(folder: Path) -> None:
    settings = read(folder, "--optics.stains", "[a, b]", "--optics.mpp", "null", "--optics.flat", "true").settings
    assert isinstance(settings, Scan)
    assert isinstance(settings.optics, Optics)
    assert settings.optics.stains == ["a", "b"]
    assert settings.optics.mpp is None
    assert settings.optics.flat is True
    assert read(folder, "--optics.stains", "a").settings.optics.stains == "a"


@pytest.mark.parametrize(
    ("argv", "wrong", "near"),
    [
        (["--optics.powr", "3"], "--optics.powr", "optics.power"),
        (["--optics.powr=3"], "--optics.powr", "optics.power"),
        (["--power", "3"], "--power", "optics.power"),
        (["--sed", "3"], "--sed", "seed"),
        (["--dry-run"], "--dry-run", "dry_run"),
    ],
)
def test_an_unknown_flag(folder: Path, argv: list[str], wrong: str, near: str) -> None:
    sentence = refusal(folder, *argv)
    assert f"no setting {wrong};" in sentence
    assert f"did you mean {near}?" in sentence


@pytest.mark.parametrize(
    ("content", "wrong", "near"),
    [
        ("optics:\n  powr: 3\n", "optics.powr", "optics.power"),
        ("optcs:\n  power: 3\n", "optcs", "optics"),
        ("power: 3\n", "power", "optics.power"),
    ],
)
def test_an_unknown_key(folder: Path, content: str, wrong: str, near: str) -> None:
    sentence = refusal(folder, *config(folder, content))
    assert f"mine.yaml has the unknown setting {wrong};" in sentence
    assert f"did you mean {near}?" in sentence


def test_an_unknown_flag_that_resembles_nothing(folder: Path) -> None:
    assert "--help" in refusal(folder, "--zzzzzz", "1")


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("optics.power", "abc", "expected a whole number"),
        ("seed", "1.5", "expected a whole number"),
        ("rate", "fast", "expected a number"),
        ("optics.mpp", "fine", "expected a number or null"),
        ("optics.mode", "drak", "expected one of bright, dark"),
        ("optics.flat", "maybe", "expected true or false"),
    ],
)
def test_a_value_of_the_wrong_type(folder: Path, flag: str, value: str, expected: str) -> None:
    group, _, key = flag.rpartition(".")
    content = f"{group}:\n  {key}: {value}\n" if group else f"{key}: {value}\n"
    for argv in (["--" + flag, value], config(folder, content)):
        sentence = refusal(folder, *argv)
        assert f"--{flag} is '{value}', {expected}." in sentence


@pytest.mark.parametrize("content", ["optics: 5\n", "optics: null\n", "optics: [1]\n", "optics: abc\n"])
def test_a_group_that_is_no_group(folder: Path, content: str) -> None:
    assert "optics" in refusal(folder, *config(folder, content))


def test_range_rules_speak_for_themselves(folder: Path) -> None:
    for argv in (["--optics.power", "0"], config(folder, "optics:\n  power: 0\n")):
        assert refusal(folder, *argv) == "optics.power is 0, expected 1 or more."
    assert (
        refusal(folder, "--seed", "13", "--optics.flat", "true")
        == "seed is 13 with optics.flat, expected another seed."
    )


def test_a_missing_config(folder: Path) -> None:
    sentence = refusal(folder, "--config", str(folder / "prset.yaml"))
    assert f"did you mean {folder / 'preset.yaml'}?" in sentence
    assert "name an existing YAML file" in refusal(folder, "--config", str(folder / "nowhere" / "x.yaml"))
    refusal(folder, "--config", str(folder))
    refusal(folder, "--config")


@pytest.mark.parametrize("content", ["optics: [\n", "a: b: c\n", "\t- x\n"])
def test_a_config_that_is_no_yaml(folder: Path, content: str) -> None:
    assert "no valid YAML of plain values at line" in refusal(folder, *config(folder, content))


def test_a_config_of_bytes_or_of_a_list(folder: Path) -> None:
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no valid YAML" in refusal(folder, "--config", str(folder / "bytes.yaml"))
    assert "holds a list" in refusal(folder, *config(folder, "- 1\n"))


@pytest.mark.parametrize(
    "content",
    [
        "name: !!python/object/apply:os.system ['touch PLACE']\n",
        "optics: !!python/object/new:subprocess.Popen [[touch, PLACE]]\n",
        "rate: !!python/name:os.system\n",
    ],
)
def test_yaml_tags_are_refused_and_nothing_runs(folder: Path, content: str) -> None:
    place = folder / "executed"
    assert "plain values" in refusal(folder, *config(folder, content.replace("PLACE", str(place))))
    assert not place.exists()


def test_a_flag_cannot_carry_a_tag_either(folder: Path) -> None:
    place = folder / "executed"
    tag = f"!!python/object/apply:os.system ['touch {place}']"
    for flag in ("--name", "--optics", "--rate"):
        try:
            settings = read(folder, flag, tag).settings
        except InputError:
            continue
        assert settings.name == tag
    assert not place.exists()


@pytest.mark.parametrize("flag", ["--optics.power", "--seed", "--rate"])
def test_a_config_after_a_flag_is_refused(folder: Path, flag: str) -> None:
    sentence = refusal(folder, flag, "3", "--config", str(folder / "second.yaml"))
    assert sentence.startswith(f"{flag} stands before a --config")
    sentence = refusal(
        folder, "--config", str(folder / "preset.yaml"), f"{flag}=3", f"--config={folder / 'second.yaml'}"
    )
    assert sentence.startswith(f"{flag} stands before a --config")


def test_dry_run_and_debug_may_stand_anywhere(folder: Path) -> None:
    for argv in (["--dry_run", "--config", str(folder / "second.yaml")], ["--seed", "1", "--dry_run", "--debug"]):
        assert read(folder, *argv).dry_run


def test_a_missing_value_and_a_stray_word(folder: Path) -> None:
    assert "--optics.power" in refusal(folder, "--optics.power")
    assert "stray" in refusal(folder, "stray")


@pytest.mark.parametrize(
    "settings",
    [
        Scan(),
        Scan(Optics(mpp=0.5, power=3, mode="dark", stains=["a", "µ"], flat=True), 1e-5, "no: 7", 2),
        Scan(Optics(stains=[]), 1e20, "null", -1),
        Scan(name="1.0"),
        Scan(name=""),
    ],
)
def test_as_yaml_is_read_back_alike(folder: Path, settings: Scan) -> None:
    (folder / "saved.yaml").write_text(as_yaml(settings), encoding="utf-8")
    assert read(folder, "--config", str(folder / "saved.yaml")).settings == settings


def test_help_shows_settings_with_their_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read(folder, "--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--optics.power" in shown
    assert "magnification" in shown


SCRIPT = """
import sys
from histo.errors import InputError
from histo.running.settings import run_script

def main(argv):
    if "worker" in argv:
        from torch.utils.data import DataLoader, Dataset
        class Broken(Dataset):
            def __len__(self):
                return 1
            def __getitem__(self, index):
                raise InputError("tile.png is broken, expected an image; delete it.")
        next(iter(DataLoader(Broken(), num_workers=1)))
    if "bug" in argv:
        raise RuntimeError("a programming error")
    if "wrong" in argv:
        print("starting", file=sys.stderr)
        raise InputError("power is 0, expected 1 or more.")

run_script(main)
"""


def run(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, str(script), *argv], capture_output=True, text=True, env=environment)


def test_a_user_mistake_ends_with_one_sentence_and_code_2(tmp_path: Path) -> None:
    done = run(tmp_path, "wrong")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["starting", "error: power is 0, expected 1 or more."]
    assert done.stdout == ""


def test_debug_adds_the_traceback_before_the_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "wrong", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "script.py" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: power is 0, expected 1 or more."


def test_a_mistake_met_in_a_loader_worker_is_the_same_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "worker")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: tile.png is broken, expected an image; delete it."]


def test_success_and_programming_errors_keep_their_own_ways(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    done = run(tmp_path, "bug")
    assert done.returncode == 1
    assert "RuntimeError: a programming error" in done.stderr


def test_print_config_prints_what_would_run_and_checks_it(folder: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        read(folder, "--print_config", "--optics.power", "12")
    assert ended.value.code == 0
    assert "power: 12" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"optics\.power is 0"):
        read(folder, "--print_config", "--optics.power", "0")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_interrupted_before_it_listens(number: signal.Signals) -> None:
    """What must be given back is, and the user reads a sentence."""
    script = (
        "import time\nfrom histo.running.settings import run_script\n"
        "def main(arguments):\n    try:\n        print('here', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        print('given back', flush=True)\nrun_script(main)\n"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert output == "given back\n"
    assert errors.strip() == "Interrupted; what was saved before stays."
    assert process.returncode == 130


def test_a_switch_may_stand_alone(folder: Path) -> None:
    assert read(folder, "--optics.flat").settings.optics.flat
    settings = read(folder, "--optics.flat", "--seed", "4").settings
    assert (settings.optics.flat, settings.seed) == (True, 4)
    assert not read(folder, "--optics.flat", "false").settings.optics.flat
    assert not read(folder, "--optics.flat=false").settings.optics.flat


@pytest.mark.parametrize(
    ("argv", "planes"), [(["0,1,2"], [0, 1, 2]), (["-1, 4"], [-1, 4]), (["3"], [3]), (["[5,6]"], [5, 6])]
)
def test_several_numbers_need_no_brackets(folder: Path, argv: list[str], planes: list[int]) -> None:
    assert read(folder, "--planes", *argv).settings.planes == planes
    assert read(folder, f"--planes={argv[0]}", "--scales", "0.25,1e0").settings.planes == planes
    assert read(folder, "--scales", "0.25,1e0", "--planes", *argv).settings.scales == [0.25, 1.0]
    assert read(folder, "--scales", "null").settings.scales is None
    assert "planes" in refusal(folder, "--planes", "0,x")
    assert "planes" in refusal(folder, "--planes", "0,1.5")


def test_a_list_is_added_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As --help shows; to the config's list, and one after the other."""
    with pytest.raises(SystemExit):
        read(folder, "--help")
    assert "--optics.stains+" in capsys.readouterr().out
    named = config(folder, "optics:\n  stains: ['a=1,2']\n")
    assert read(folder, *named, "--optics.stains+", "b=3").settings.optics.stains == ["a=1,2", "b=3"]
    added = read(folder, *named, "--optics.stains+=b", "--optics.stains+", "[c, d]").settings.optics.stains
    assert added == ["a=1,2", "b", "c", "d"]
    assert "There is no setting --optics.power+;" in refusal(folder, "--optics.power+", "3")
    assert "stands before a --config" in refusal(folder, "--optics.stains+", "e", *named)


def test_without_a_preset_the_defaults_hold() -> None:
    request = read_settings(Scan, "scan", "Scans.", ["--seed", "3"])
    assert (request.settings, request.configs) == (Scan(seed=3), [])
