"""Settings: plain dataclasses filled from YAML files and dotted flags, and the way a script ends.

Configs come first and later ones win (`--config a.yaml --config b.yaml --group.key value`); range rules live in the
dataclasses' `__post_init__`. Whatever a user gets wrong becomes one sentence and exit code 2.
"""

import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from histo.errors import InputError
from histo.running.configs import read_config

T = TypeVar("T")
_NUMBERS = re.compile(r"[-+.\deE]+(,\s*[-+.\deE]+)*")
_NO_SETTINGS = ("config", "dry_run", "debug", "help", "print_config")


@dataclass(frozen=True)
class Request(Generic[T]):
    """What a user asked a script to do: the settings, and whether only to check them."""

    settings: T
    dry_run: bool
    configs: list[Path]


def read_settings(
    kind: type[T], program: str, description: str, argv: Sequence[str], preset: Path | None = None
) -> Request[T]:
    """Parse a command line into the dataclass `kind`.

    Args:
        kind: the settings' dataclass; nested dataclasses become groups, field docstrings become help texts.
        program: the name shown in `--help`.
        argv: arguments without the program's name.
        preset: the config used when no `--config` is named; None: the dataclass's own defaults.

    Raises:
        InputError: unknown or misplaced flags, unreadable files, wrong types, values out of range.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, prog=program, description=description, print_config=None)
    default = preset.name if preset else "none"
    parser.add_argument("--config", action="config", help=f"YAML of settings, repeatable; default: {default}")
    parser.add_argument("--dry_run", action="store_true", help="check everything cheap, print the settings, stop")
    parser.add_argument("--print_config", action="store_true", help="print the settings as YAML, stop")
    parser.add_argument("--debug", action="store_true", help="show a traceback with every error")
    parser.add_class_arguments(kind)
    arguments = list(argv)
    _refuse_late_configs(arguments)
    configs = [Path(value) for value in flag_values(arguments, "config")]
    if not configs and preset:
        configs = [preset]
        arguments = ["--config", str(preset), *arguments]
    known = {action.dest for action in parser._actions}
    switches = {action.dest for action in parser._actions if getattr(action, "_typehint", None) is bool}
    arguments = _switched_on(arguments, switches)
    arguments = _bracketed(arguments, {action.dest for action in parser._actions if _numbers(action)})
    empty = [path for path in configs if not _checked_keys(path, known)]
    arguments = _without_configs(arguments, empty)
    _refuse_unknown_flags(arguments, known | _appending(parser))
    try:
        parsed = parser.parse_args(arguments)
        chosen = parser.instantiate(parsed)
    except ArgumentError as error:
        raise InputError(_one_sentence(str(error))) from error
    settings = kind(**{key: value for key, value in vars(chosen).items() if key not in _NO_SETTINGS})
    if chosen.print_config:
        print(as_yaml(settings), end="")
        sys.exit(0)
    return Request(settings, bool(chosen.dry_run), configs)


def flag_values(arguments: Sequence[str], name: str) -> list[str]:
    """The values given to a flag on a command line, as `--name value` or `--name=value`, in order."""
    return [
        token.partition("=")[2] if "=" in token else following
        for token, following in pairwise([*arguments, ""])
        if token.partition("=")[0] == f"--{name}"
    ]


def as_yaml(settings: Any) -> str:
    """A settings dataclass as YAML that `read_settings` reads back."""
    return yaml.safe_dump(_plain(asdict(settings)), sort_keys=False, allow_unicode=True)


def run_script(main: Callable[[list[str]], None]) -> None:
    """Run a script's main function and end the process as users expect.

    InputError: its sentence is the last line on stderr, exit code 2. Ctrl-C: a sentence and 130; a SIGTERM before the
    script listens for one itself counts as Ctrl-C. `--debug` adds the traceback before either.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(sys.argv[1:])
    except InputError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        # A loader worker wraps the error in a report of its own; the sentence is what follows the last name.
        sentence = str(error).rsplit("InputError: ", 1)[-1].strip()
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print("\nInterrupted; what was saved before stays.", file=sys.stderr, flush=True)
        sys.exit(130)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _without_configs(arguments: list[str], left_out: list[Path]) -> list[str]:
    """The arguments without some configs: jsonargparse refuses a file that sets nothing."""
    kept: list[str] = []
    for token in arguments:
        names_one = Path(token.removeprefix("--config=")) in left_out
        if names_one and token.startswith("--config="):
            continue
        if names_one and kept and kept[-1] == "--config":
            kept.pop()
            continue
        kept.append(token)
    return kept


def _switched_on(arguments: list[str], switches: set[str]) -> list[str]:
    """The arguments with `true` behind every flag of a true-or-false setting that stands alone."""
    return [
        part
        for token, following in pairwise([*arguments, "--"])
        for part in ([token, "true"] if token.removeprefix("--") in switches and following[:2] == "--" else [token])
    ]


def _numbers(action: Any) -> bool:
    """Whether a setting takes several numbers."""
    hint = getattr(action, "_typehint", None)
    return any(one in (list[int], list[float]) for one in (hint, *get_args(hint)))


def _bracketed(arguments: list[str], lists: set[str]) -> list[str]:
    """The arguments with `[0,1,2]` for the `0,1,2` of every setting that takes several numbers."""
    made: list[str] = []
    for token in arguments:
        flag, equals, value = token.partition("=") if token.startswith("--") else (made[-1] if made else "", "", token)
        if flag.removeprefix("--") in lists and _NUMBERS.fullmatch(value):
            token = f"{flag}=[{value}]" if equals else f"[{value}]"
        made.append(token)
    return made


def _appending(parser: ArgumentParser) -> set[str]:
    """Names of the flags that add to a list instead of replacing it, as `--name+ value`."""
    flags = (flag for action in parser._actions for flag in action.option_strings)
    return {flag.removeprefix("--") for flag in flags if flag.endswith("+")}


def _refuse_late_configs(arguments: list[str]) -> None:
    flags = [token.partition("=")[0] for token in arguments if token.startswith("--")]
    settings = [k for k, flag in enumerate(flags) if flag.removeprefix("--") not in _NO_SETTINGS]
    configs = [k for k, flag in enumerate(flags) if flag == "--config"]
    if settings and configs and settings[0] < configs[-1]:
        raise InputError(
            f"{flags[settings[0]]} stands before a --config that would undo it: name every --config first."
        )


def _suggestion(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        leaf = name.rpartition(".")[2]
        near = [key for key in sorted(known) if key.rpartition(".")[2] == leaf][:1]
    return f"did you mean {near[0]}?" if near else "--help lists all settings."


def _refuse_unknown_flags(arguments: list[str], known: set[str]) -> None:
    for token in arguments:
        name = token.partition("=")[0].removeprefix("--")
        if token.startswith("--") and name not in known and name != "help":
            raise InputError(f"There is no setting --{name}; {_suggestion(name, known)}")


def _checked_keys(path: Path, known: set[str]) -> dict[str, Any]:
    """The content of a config whose every key is a setting."""
    try:
        content = read_config(path) or {}
    except OSError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "name an existing YAML file."
        raise InputError(f"Config {path} cannot be read ({error.strerror}); {hint}") from error
    if not isinstance(content, dict):
        raise InputError(f"Config {path} holds a {type(content).__name__}; expected groups of `key: value`.")

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name not in known:
                raise InputError(f"Config {path} has the unknown setting {name}; {_suggestion(name, known)}")
            is_group = any(other.startswith(f"{name}.") for other in known)
            if is_group and not isinstance(value, dict):
                raise InputError(
                    f"Config {path} sets the group {name} to {value!r}; expected `{name}: {{key: value}}`."
                )
            if isinstance(value, dict):
                walk(value, f"{name}.")

    walk(content, "")
    return content


def _one_sentence(message: str) -> str:
    """Turn jsonargparse's report on a value into "--key is 'value', expected …"."""
    found = re.search(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if not found:
        return re.sub(r"\s+", " ", message).strip().rstrip(".") + "; --help lists all settings."
    key, problem = found.groups()
    value = re.search(r"(?:Got value|Given value): (.*)", problem)
    wanted = re.findall(r"Expected an? ([^\n]*?)(?:\. Got value|\n|$)", problem)
    if value is None or not wanted:
        return f"--{key}: {' '.join(problem.split())}."
    kinds = " or ".join(dict.fromkeys(_kind_name(kind) for kind in wanted))
    return f"--{key} is {value.group(1).strip()!r}, expected {kinds}."


def _kind_name(kind: str) -> str:
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]\.?", kind)
    if choices:
        return f"one of {choices.group(1).replace(chr(39), '')}"
    bare = kind.strip("<>. ").removeprefix("class ").strip("'")
    return {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "NoneType": "null",
        "str": "text",
    }.get(bare, bare)
