"""The rules of the repository that a reader cannot check at a glance; each is also shown a tree that breaks it."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {"histo": set(), "translate": {"histo"}, "pretrain": {"histo", "translate"}, "downstream": {"histo"}}
VAGUE = {"utils", "misc", "helpers", "common", "core"}
LATE = {"cellpose", "segmentation_models_pytorch", "openslide", "tiffslide"}  # slow to import, or optional
LONGEST = 500  # lines
HOST_PATH = re.compile(r"(?<![\w.~-])/(?:work|home|root|tmp)/[a-z]")


def sources(root):
    """Every module of our packages as (path relative to root, package, syntax tree)."""
    for package in MAY_IMPORT:
        for path in sorted((root / package).rglob("*.py")):
            yield path.relative_to(root), package, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """(line, top-level name) of every import; relative imports have the name "."."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." if node.level else node.module.partition(".")[0]


def imports_against_the_layers(root):
    return [
        f"{path}:{line} imports {name}"
        for path, package, tree in sources(root)
        for line, name in imported(tree)
        if name in MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}
    ]


def relative_imports(root):
    return [f"{path}:{line}" for path, _, tree in sources(root) for line, name in imported(tree) if name == "."]


def shadowing_modules(root):
    """Modules that hide another when a script of their folder runs, since Python then looks there first."""
    foreign = {name for name, owners in packages_distributions().items() if set(owners) - {"nucleate"}}
    return [
        f"{package}/{entry.name}"
        for package in ("translate", "pretrain", "downstream")
        for entry in sorted((root / package).glob("*"))
        if (entry.suffix == ".py" or entry.is_dir()) and entry.stem in foreign | sys.stdlib_module_names
    ]


def vague_names(root):
    return [str(path) for path, _, _ in sources(root) if VAGUE & {path.stem, *(folder.name for folder in path.parents)}]


def long_files(root):
    return [
        str(path.relative_to(root))
        for path in listed_files(root)
        if path.suffix == ".py" and len(path.read_text(encoding="utf-8").splitlines()) > LONGEST
    ]


def unsafe_reads(root):
    """What could run code stored in a file: pickles in any dress, and YAML with objects."""
    found = []
    for path, _, tree in sources(root):
        found += [f"{path}:{line} imports {name}" for line, name in imported(tree) if name in ("pickle", "dill")]
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            values = {word.arg: ast.unparse(word.value) for word in call.keywords}
            unsafe_load = name.endswith("torch.load") and values.get("weights_only") != "True"
            if (
                unsafe_load
                or re.fullmatch(r"yaml\.(unsafe_|full_)?load(_all)?", name)
                or values.get("allow_pickle", "False") != "False"
            ):
                found.append(f"{path}:{call.lineno} calls {name}")
    return found


def early_imports(root):
    """Imports of `LATE` that run when their module is imported: all outside functions."""

    def outside_functions(node):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield child
                yield from outside_functions(child)

    return [
        f"{path}:{line} imports {name}"
        for path, _, tree in sources(root)
        for line, name in imported(ast.Module([n for n in outside_functions(tree) if is_import(n)], []))
        if name in LATE
    ]


def is_import(node):
    return isinstance(node, (ast.Import, ast.ImportFrom))


def listed_files(root):
    """Files that belong to the repository: what git does not ignore; in a plain folder, everything."""
    if not (root / ".git").exists():
        return sorted(path for path in root.rglob("*") if path.is_file())
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    return [root / name for name in sorted(set(names)) if name and (root / name).is_file()]


def host_paths(root):
    """Paths of somebody's machine in text files."""
    found = []
    for path in listed_files(root):
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            lines = content.decode("utf-8", "replace").splitlines()
            found += [f"{path.relative_to(root)}:{k}" for k, line in enumerate(lines, 1) if HOST_PATH.search(line)]
    return found


def missing_targets(root):
    rules = (root / "Makefile").read_text(encoding="utf-8")
    return [name for name in ("demo", "test") if not re.search(rf"^{name}:", rules, re.MULTILINE)]


def loose_constraints(root):
    """Lines of constraints.txt that pin nothing or name more than a version: an index, a URL, a local build."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and line[0] != "#" and not re.fullmatch(r"[\w.-]+==[\w.]+", line)]


# rule → (a file that breaks it, its content)
BROKEN = {
    imports_against_the_layers: ("histo/tiles/__init__.py", "def f():\n    from translate.engine import train\n"),
    relative_imports: ("translate/engine.py", "from . import comod\n"),
    shadowing_modules: ("translate/logging.py", ""),
    vague_names: ("histo/utils/colours.py", ""),
    long_files: ("tests/test_all.py", "x = 1\n" * (LONGEST + 1)),
    unsafe_reads: ("histo/files.py", "import torch\ntorch.load('a')\n"),
    early_imports: ("histo/slides.py", "try:\n    import openslide\nexcept ImportError:\n    pass\n"),
    host_paths: ("configs/a.yaml", "data: /home" + "/ada/tiles\n"),
    missing_targets: ("Makefile", "demo:\n\techo\n# test: later\n"),
    loose_constraints: ("constraints.txt", "torch==2.6.0\nnumpy>=2\n"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_the_repository_keeps_the_rule(rule):
    assert rule(ROOT) == []


@pytest.mark.parametrize("rule", BROKEN)
def test_the_rule_sees_a_breach(rule, tmp_path):
    name, content = BROKEN[rule]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert len(rule(tmp_path)) == 1


def missing_paths(root):
    """Files and folders that a page of ours names in backquotes and that do not exist."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"docs"}
    return [
        f"{page.relative_to(root)} names {name}"
        for page in [*root.glob("*.md"), *root.glob("docs/*.md")]
        for name in re.findall(r"`([\w./-]+)`", page.read_text(encoding="utf-8"))
        if name.partition("/")[0] in folders - {"runs"} and "/" in name and not (root / name).exists()
    ]


def test_pages_name_files_that_exist(tmp_path):
    assert missing_paths(ROOT) == []
    (tmp_path / "A.md").write_text("see `histo/nowhere.py` and `runs/first`", encoding="utf-8")
    assert missing_paths(tmp_path) == ["A.md names histo/nowhere.py"]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_the_layers(package, tmp_path):
    (tmp_path / package).mkdir()
    for other in MAY_IMPORT:
        (tmp_path / package / f"takes_{other}.py").write_text(f"import {other}.tiles\n", encoding="utf-8")
    refused = {line.rpartition(" ")[2] for line in imports_against_the_layers(tmp_path)}
    assert refused == MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}


@pytest.mark.parametrize(
    ("line", "safe"),
    [
        ("torch.load(path, weights_only=True)", True),
        ("torch.load(path, weights_only=False)", False),
        ("torch.load(path)", False),
        ("np.load(path, allow_pickle=False)", True),
        ("np.load(path, allow_pickle=True)", False),
        ("np.load(path, allow_pickle=flag)", False),
        ("yaml.load(text, Loader=yaml.SafeLoader)", False),
        ("yaml.unsafe_load(text)", False),
        ("yaml.safe_load(text)", True),
        ("import pickle", False),
        ("from pickle import loads", False),
    ],
)
def test_unsafe_reads_one_by_one(line, safe, tmp_path):
    (tmp_path / "histo").mkdir()
    (tmp_path / "histo" / "files.py").write_text(line, encoding="utf-8")
    assert (unsafe_reads(tmp_path) == []) is safe


def test_an_installed_librarys_name_shadows_too_and_late_imports_are_fine(tmp_path):
    (tmp_path / "downstream" / "numpy").mkdir(parents=True)
    assert shadowing_modules(tmp_path) == ["downstream/numpy"]
    (tmp_path / "histo").mkdir()
    (tmp_path / "histo" / "slides.py").write_text("def read():\n    import openslide\n", encoding="utf-8")
    assert early_imports(tmp_path) == []
    (tmp_path / "histo" / "slides.py").write_text("class A:\n    from cellpose import models\n", encoding="utf-8")
    assert len(early_imports(tmp_path)) == 1
