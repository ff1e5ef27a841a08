"""From one µm/px to another: how many pixels of an image lie between two pixels of what reads it."""

from histo.errors import InputError

TOLERANCE = 0.02  # scales this near to each other are taken as one, which keeps pixels untouched
FINEST = 1.1  # asking for pixels that many times finer than the image's makes detail that is not there


def step_to(mpp: float | None, own: float | None, name: str) -> float:
    """Pixels of an image from one pixel to the next of a grid laid over it; 1 takes them as they are.

    Args:
        mpp: µm/px of the grid; None: that of the image.
        own: µm/px of the image; name: of the image, for people.

    Raises:
        InputError: the image's µm/px is unknown, or coarser than what is asked for.
    """
    if mpp is None:
        return 1.0
    if own is None:
        raise InputError(f"{name} does not say its µm/px, expected it known to read it at {mpp:g}; give --data.mpp.")
    if mpp * FINEST < own:
        raise InputError(f"{name} has {own:.4g} µm/px, coarser than the {mpp:g} asked for; ask for {own:.4g} or more.")
    return 1.0 if abs(mpp / own - 1) <= TOLERANCE else mpp / own
