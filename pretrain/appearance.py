"""What tiles look like, by any normaliser: those of `histo.stains`, and Fourier amplitudes."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from histo.stains import Appearance, Normalised, Status, macenko, measure, normalise
from histo.stains.estimation import PIXELS, StainEstimate
from histo.stains.status import usable
from pretrain.fourier import Spectra, spectra, transfer_spectra

NormaliserName = Literal["macenko", "vahadane", "reinhard", "histogram", "fourier"]
Look = Appearance | Spectra


def look(tiles: Tensor, name: NormaliserName) -> tuple[StainEstimate, Look]:
    """Stains of each tile, and its look by a normaliser; the same one where that knows stains.

    Args:
        tiles: uint8 [N, 3, t, t] RGB.
        name: of the normaliser.
    """
    found: Look = spectra(tiles) if name == "fourier" else measure(tiles, name)
    return found if isinstance(found, StainEstimate) else macenko(tiles, PIXELS), found


def rerendered(tiles: Tensor, target: Look, name: NormaliserName, source: Look) -> Normalised:
    """Tiles with the look of a target; never fails on a tile.

    Args:
        tiles: uint8 [N, 3, t, t] RGB.
        name: of the normaliser that both looks are of.
        target: of 1 or N tiles.
        source: of the tiles.
    """
    if name == "fourier":
        assert isinstance(target, Spectra)
        status = torch.where(usable(target.status), int(Status.NORMAL), int(Status.NO_TARGET)).expand(len(tiles))
        changed = usable(status)[:, None, None, None]
        return Normalised(torch.where(changed, transfer_spectra(tiles, target), tiles), status)
    assert not isinstance(target, Spectra)
    assert not isinstance(source, Spectra)
    return normalise(tiles, target, name, source)


def rows(found: Any, index: Tensor) -> Any:
    """Some rows of a look, by int64 [K]."""
    return type(found)(*(field[index] for field in found))


def joined(found: list[Any]) -> Any:
    """Looks by one normaliser, one after the other."""
    return type(found[0])(*(torch.cat(fields) for fields in zip(*found, strict=True)))


def gathered(found: Any, gather: Callable[[Tensor], Tensor]) -> Any:
    """A look of the tiles of all processes, in the order of the processes."""
    return type(found)(*(gather(field.contiguous()) for field in found))
