"""Classifies, segments and aggregates slides with frozen or fine-tuned encoders, and evaluates them.

May import `histo` only; what the other packages learned arrives as an encoder file or an instance file.
`downstream/train.py` is the entry point; `load` is that of notebooks.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downstream.inference import TrainedTask


def load(path: str | Path) -> "TrainedTask":
    """What a training left, ready to predict, on a GPU where there is one.

    Args:
        path: a run of `downstream/train.py` of one seed, the folder of one of several, or an exported file.

    Raises:
        InputError: nothing exported there, networks of several trainings, or a damaged file.
    """
    from downstream.inference import open_task  # imported here: it takes seconds, and a script needs none of it

    return open_task(Path(path))
