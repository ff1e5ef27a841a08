"""Learns mask ⇄ tissue from unpaired tiles, and hands on what it learned as files.

May import `histo` only. `translate/train.py` is the entry point; `load` is that of notebooks.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from translate.inference import TrainedTranslator


def load(path: str | Path) -> "TrainedTranslator":
    """What a training left, ready to render masks and to find nuclei, on a GPU where there is one.

    Args:
        path: a run folder of `translate/train.py`, or its `export/` folder.

    Raises:
        InputError: no such folder, no exports in it yet, or damaged ones.
    """
    from translate.inference import open_translator  # imported here: it takes seconds, and a script needs none of it

    return open_translator(Path(path))
