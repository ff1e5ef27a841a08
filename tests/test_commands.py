"""The `nucleate` command: its verbs, the demo's subprocess, the doctor's findings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from histo.commands import demo, doctor, line
from histo.commands.demo import run_demo
from histo.commands.doctor import Findings, meets, split_requirement
from histo.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def nucleate(*arguments, path=(ROOT,), **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "histo.commands.line", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


def test_help_lists_the_verbs():
    for arguments in ((), ("--help",)):
        result = nucleate(*arguments)
        assert result.returncode == 0
        assert "demo " in result.stdout
        assert "doctor " in result.stdout


def test_help_names_every_script():
    shown = nucleate("--help").stdout
    files = [file for package in line.SCRIPTS for file in (ROOT / package).glob("*.py")]
    scripts = [file for file in files if "run_script(main)" in file.read_text()]
    assert len(scripts) == 10
    for path in scripts:
        assert f" {path.relative_to(ROOT).as_posix()}" in shown


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; sys.argv = ['nucleate', '--help']; from histo.commands.line import main; main(); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_an_unknown_verb_is_one_sentence_with_a_suggestion():
    result = nucleate("docter")
    assert result.returncode == 2
    assert result.stderr == "error: There is no verb 'docter'; did you mean doctor?\n"
    assert "expected one of demo" in nucleate("xyz").stderr


SCRIPT = """
import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[sys.argv.index("--run.dir") + 1])
run.mkdir(parents=True, exist_ok=True)
mode = pathlib.Path(sys.argv[2]).read_text()
def saved(number, frame):
    (run / "saved").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, saved)
(run / "started").touch()
if mode == "slow":
    time.sleep(60)
if mode == "fail":
    sys.exit(3)
(run / "report.html").write_text("done")
"""


SCRIPTS = [stage for stage in demo.STAGES if stage.script is not None]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A stand-in for the repository, whose training script does what its config says."""
    monkeypatch.setattr(demo, "write_page", lambda folder, commands: (folder / "report.html").write_text("done"))
    for stage in SCRIPTS:
        for path, content in ((stage.script, SCRIPT), (stage.config, "finish")):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
    return tmp_path


def test_the_demo_shows_its_command_and_where_the_report_is(checkout, capfd, monkeypatch):
    monkeypatch.chdir(checkout)
    assert run_demo(Path("runs/demo"), checkout) == 0
    shown = capfd.readouterr().out
    tissue = "--data.tissue runs/demo/tiles"
    assert "$ nucleate phantom tiles --count 320 --out runs/demo/tiles\n" in shown
    assert f"translate/train.py --config configs/translate/demo.yaml {tissue} --run.dir runs/demo/translator\n" in shown
    assert f"demo.yaml {tissue} --translator runs/demo/translator --run.dir runs/demo/encoder\n" in shown
    assert (
        "--data.tiles runs/demo/tiles --encoder.source runs/demo/encoder --run.dir runs/demo/nuclei/pretrained" in shown
    )
    assert "The report: runs/demo/report.html" in shown
    assert "tensorboard --logdir runs/demo" in shown


def test_a_finished_demo_says_so_and_is_left_alone(checkout, capfd):
    folder = checkout / "runs"
    run_demo(folder, checkout)
    (folder / "translator" / "started").unlink()
    capfd.readouterr()
    assert run_demo(folder, checkout) == 0
    assert "already finished" in (shown := capfd.readouterr().out)
    assert "To start afresh, delete" in shown
    assert not (folder / "translator" / "started").exists()


def test_the_scripts_failure_is_the_demos(checkout, capfd):
    (checkout / SCRIPTS[1].config).write_text("fail")
    assert run_demo(checkout / "runs", checkout) == 3
    assert "encoder/report.html (exit code 3); the same command continues it" in capfd.readouterr().err
    (checkout / SCRIPTS[1].config).write_text("finish")
    assert run_demo(checkout / "runs", checkout) == 0
    assert capfd.readouterr().out.count("$ ") == len(SCRIPTS) - 1, "the finished translator was trained again"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_reaches_the_script_which_may_save(checkout, number):
    (checkout / SCRIPTS[0].config).write_text("slow")
    code = (
        "import sys; from pathlib import Path; from histo.commands.demo import run_demo; "
        "sys.exit(run_demo(Path(sys.argv[1]) / 'runs', Path(sys.argv[1])))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(checkout)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60  # phantom tiles are drawn first
        while not (checkout / "runs/translator/started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=15) == 128 + number
    finally:
        process.kill()
    assert (checkout / "runs/translator/saved").read_text() == "SIGTERM"


def test_without_a_checkout_the_demo_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"lacks 8 of the demo's 8 .*, first translate/train\.py; .* clone"):
        run_demo(tmp_path / "runs", tmp_path)


def test_the_doctor_finds_this_environment_ready(tmp_path):
    result = nucleate("doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for said in ("torch ", str(ROOT / "histo"), str(ROOT / "translate"), "CPU: ", "avx512_bf16", "OMP_NUM_THREADS=1"):
        assert said in result.stdout
    assert "cellpose weights" in result.stdout
    assert "!!" not in result.stdout
    assert result.stdout.endswith("Training can run here; try `nucleate demo`.\n")


def test_the_doctor_warns_of_a_stranger_named_translate(tmp_path, monkeypatch, capsys):
    (tmp_path / "translate").mkdir()
    (tmp_path / "translate" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "translate", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    owners = {"translate": ["translate-toolkit"], "histo": ["nucleate"]}
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: owners)
    findings = Findings()
    doctor.look_at_packages(findings)
    assert not findings.ready
    assert "translate is another package of that name, installed by translate-toolkit" in capsys.readouterr().out


def test_the_doctor_names_missing_and_old_libraries(monkeypatch, capsys):
    wanted = ["numpy>=999", "no-such-library[extra]>=1,<2", "pytest"]
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    findings = Findings()
    doctor.look_at_libraries(findings)
    shown = capsys.readouterr().out
    assert not findings.ready
    assert "does not meet >=999" in shown
    assert 'no-such-library is missing (>=1,<2); pip install "no-such-library[extra]>=1,<2"' in shown
    assert "ok  pytest" in shown


def test_an_unready_machine_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "requirements", lambda: ["no-such-library"])
    for look in ("look_at_packages", "look_at_devices", "look_at_extras"):
        monkeypatch.setattr(doctor, look, lambda findings: None)
    assert doctor.main([]) == 1
    assert "cannot run yet" in capsys.readouterr().out


def test_the_doctor_sees_cellpose_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path))
    doctor.look_at_extras(Findings())
    assert f"cellpose weights are not in {tmp_path}" in capsys.readouterr().out
    (tmp_path / "cpsam").touch()
    doctor.look_at_extras(Findings())
    assert f"cellpose weights: {tmp_path / 'cpsam'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "wanted", "met"),
    [
        ("2.6.0", ">=2.6", True),
        ("2.6", ">=2.6.0", True),
        ("2.15.0+cu130", ">=2.6", True),
        ("2.5.9", ">=2.6", False),
        ("10.0", ">=9", True),
        ("5.0", ">=4.49,<5", False),
        ("4.53.0", ">=4.49,<5", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_by_number(version, wanted, met):
    assert meets(version, wanted) is met


def test_requirements_are_taken_apart():
    assert split_requirement("jsonargparse[signatures]>=4.49,<5") == ("jsonargparse", ">=4.49,<5")
    assert split_requirement("scipy") == ("scipy", "")
    with pytest.raises(ValueError, match="==1"):
        meets("1", "==1")
