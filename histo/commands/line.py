"""The console entry `nucleate`: it finds the verb and hands over the remaining arguments."""

import difflib
import sys
from collections.abc import Callable
from importlib import import_module

from histo.errors import InputError

# verb: (help, "module:function"); the function takes the arguments after the verb and returns the exit code.
VERBS = {
    "demo": ("the whole way on phantom tissue in minutes: translate, pretrain, use the encoder", "demo:main"),
    "pack": ("pack a folder of tiles into shards, or check shards for damage", "pack:main"),
    "tile": ("cut whole slides into shards of tiles that hold tissue", "tile:main"),
    "phantom": ("draw labelled tiles of synthetic tissue, or slides with planted tumour", "phantom:main"),
    "layout": ("fit the layout prior, masks drawn without tissue, to given instance maps", "layout:main"),
    "check": ("look at a folder of tiles: what it is, what is wrong with it, and what to do", "check:main"),
    "encoder": ("convert encoder files from and to other libraries, show one, or compare two", "encoder:main"),
    "compare": ("what encoders reach with how many labels, from finished downstream runs", "compare:main"),
    "datasets": ("list published data sets that open by name, or check one", "datasets:main"),
    "doctor": ("say whether this machine is ready, how fast it will be, and what is missing", "doctor:main"),
}

# Entry points of the packages beside `histo`: package: (help, scripts).
SCRIPTS = {
    "translate": ("masks to tissue and back, without pairs", ("train", "generate", "pseudomask", "score")),
    "pretrain": ("encoders from unlabelled tiles", ("train", "probe", "wilds")),
    "downstream": ("classes, regions, nuclei and slides from few labels", ("train", "predict", "score")),
}


def main() -> None:
    """Run one verb; mistakes end as one sentence on stderr and exit code 2."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    try:
        code = _verb(arguments[0])(arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {sentence}" for verb, (sentence, _) in VERBS.items())
    scripts = "\n".join(
        f"  {'  '.join(f'{package}/{script}.py' for script in names)}\n      {sentence}"
        for package, (sentence, names) in SCRIPTS.items()
    )
    return (
        f"usage: nucleate VERB [options]\n\nLearn from H&E histology without labels.\n\n{verbs}\n\n"
        "`nucleate VERB --help` lists a verb's options. Learning and predicting are scripts with settings, which\n"
        f"`python downstream/train.py --help` lists:\n\n{scripts}"
    )


def _verb(name: str) -> Callable[[list[str]], int]:
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}."
        raise InputError(f"There is no verb {name!r}; {hint}")
    # Only the chosen verb is imported, so that help appears at once.
    module, _, function = VERBS[name][1].partition(":")
    run: Callable[[list[str]], int] = getattr(import_module(f"histo.commands.{module}"), function)
    return run


if __name__ == "__main__":
    main()
