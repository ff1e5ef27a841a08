"""Links in folders of data: they may lead anywhere inside the folder, and nowhere else."""

import os
from pathlib import Path


def stray_link(path: Path, folder: Path) -> str | None:
    """Why a file or folder found inside `folder` is refused: a sentence if it is a link that leads out, else None.

    The folder itself may be a link.
    """
    if not path.is_symlink():
        return None
    target = Path(os.path.realpath(path))
    if target.is_relative_to(os.path.realpath(folder)):
        return None
    return f"{path} is a link to {target}, outside {folder}; copy what it leads to into the folder, or remove the link."
