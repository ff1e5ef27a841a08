"""Methods of unpaired translation, one file each: what a method trains, in which step, and with which settings.

A method is a module of this package with two classes: `Recipe`, its settings, and `Method`, its step. Whatever else a
run does (data, checkpoints, averages, panels, scores, exports) is the same for all of them.
"""

import difflib
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import cast

from accelerate import Accelerator

from histo.errors import InputError
from histo.running.configs import read_config
from histo.running.settings import flag_values
from translate.engine import Translator
from translate.recipe import Recipe


def names() -> list[str]:
    """The methods there are."""
    return sorted(module.name for module in iter_modules(__path__))


def recipe_kind(method: str) -> type[Recipe]:
    """The settings of a method.

    Raises:
        InputError: no such method.
    """
    if method not in names():
        near = difflib.get_close_matches(method, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}."
        raise InputError(f"There is no method {method!r} of translation; {hint}")
    return cast(type[Recipe], import_module(f"{__name__}.{method}").Recipe)


def asked_kind(argv: Sequence[str], preset: Path | None = None) -> type[Recipe]:
    """The settings of the method that a command line asks for, by `--method`, its last config that says, or `preset`.

    Raises:
        InputError: no such method.
    """
    asked = Recipe.method
    for path in [Path(value) for value in flag_values(argv, "config")] or ([preset] if preset else []):
        with suppress(OSError, InputError):  # reading the settings will say what is wrong with the file
            content = read_config(path)
            asked = str(content.get("method", asked)) if isinstance(content, dict) else asked
    return recipe_kind((flag_values(argv, "method") or [asked])[-1])


def open_method(recipe: Recipe, accelerator: Accelerator) -> Translator:
    """The networks of a recipe's method at their start, ready to train."""
    method = import_module(f"{__name__}.{recipe.method}").Method
    return cast(Translator, method(recipe, accelerator))
