"""Objectives of pretraining, one file each: what an encoder is shown, and what its embeddings are compared for.

An objective is a module NAME.py of this package with its settings and a class `Objective`; pretrain/recipe.py has a
field NAME for the settings. Whatever else a run does (data, views, checkpoints, processes, probes, exports) is the same
for all of them, and several can teach one encoder at once.
"""

import difflib
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from histo.errors import InputError

if TYPE_CHECKING:
    from pretrain.objective import Context, Objective

NAMES = tuple(sorted(module.name for module in iter_modules(__path__)))


def open_objectives(names: list[str], context: "Context") -> "dict[str, Objective]":
    """The objectives of a run by name, in the order they were asked for.

    Raises:
        InputError: no such objective, one that is asked for twice, or one that misses what it needs.
    """
    if not names:
        raise InputError(f"--objective names none, expected one or several of {', '.join(NAMES)}.")
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}."
            raise InputError(f"There is no objective {name!r} of pretraining; {hint}")
        if names.count(name) > 1:
            raise InputError(f"--objective names {name} twice, expected each once; give it more weight instead.")
    return {name: import_module(f"{__name__}.{name}").Objective(context) for name in names}
