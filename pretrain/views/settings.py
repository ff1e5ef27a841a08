"""Settings of augmented views, with SimCLR's strengths as their defaults."""

from dataclasses import dataclass

from histo.errors import InputError


@dataclass
class ViewSettings:
    """How a view of a tile is made: a crop, then changes of stain, of colour and of sharpness."""

    smallest_area: float = 0.2
    """a view shows between this share and all of a tile's area"""
    stretch: float = 4 / 3
    """width over height of the part shown, from 1 / stretch to stretch; 1 keeps shapes"""
    turn: bool = True
    """mirror and rotate by quarter turns, all eight cases equally likely"""
    jitter: float = 0.8
    """probability that brightness, contrast, saturation and hue change; 0 to 1"""
    brightness: float = 0.8
    """factors from 1 - brightness to 1 + brightness; 0 to 1"""
    contrast: float = 0.8
    """factors from 1 - contrast to 1 + contrast; 0 to 1"""
    saturation: float = 0.8
    """factors from 1 - saturation to 1 + saturation; 0 to 1"""
    hue: float = 0.2
    """largest turn of the hue, as share of the colour circle; 0 to 0.5"""
    grey: float = 0.2
    """probability of a view without colour; 0 to 1"""
    blur: float = 0.5
    """probability of a Gaussian blur of 0.1 to 2 px at a side of 224 px, in proportion at others; 0 to 1"""
    hed: float = 0.0
    """HED jitter of every view: amounts of haematoxylin, eosin and DAB change by factors of 1 ± hed and shifts of
    ± hed (optical depth); from 0 to below 1"""
    stain: float = 0.0
    """stain augmentation of every view: as hed, for the view's own two stains, in tissue alone"""

    def __post_init__(self) -> None:
        if not 0 < self.smallest_area <= 1:
            raise InputError(
                f"view.smallest_area is {self.smallest_area}, expected a share above 0 and at most 1; correct it."
            )
        if not 1 <= self.stretch <= 4:
            raise InputError(f"view.stretch is {self.stretch}, expected a ratio of sides from 1 to 4; correct it.")
        for name in ("jitter", "brightness", "contrast", "saturation", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"view.{name} is {getattr(self, name)}, expected a number from 0 to 1; correct it.")
        if not 0 <= self.hue <= 0.5:
            raise InputError(
                f"view.hue is {self.hue}, expected 0 to 0.5, half the colour circle either way; correct it."
            )
        for name in ("hed", "stain"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"view.{name} is {getattr(self, name)}, expected a strength from 0 to below 1; correct it."
                )
