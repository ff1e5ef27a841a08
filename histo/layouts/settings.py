"""What a layout is made of, in µm and nuclei per mm², so that one description serves every magnification.

The defaults reproduce what can be measured on the masks shown for UNITPathSSL (arXiv 2309.07394) at 0.25 µm/px.
"""

from dataclasses import dataclass, field

from histo.errors import InputError


@dataclass
class ShapeSettings:
    """Sizes and outlines of one kind of nucleus; the outline is the polygon of Hou et al., CVPR 2019."""

    diameter: float
    """median equivalent diameter; µm"""
    spread: float
    """standard deviation of the diameter's natural logarithm"""
    aspect: float
    """median ratio of the axes, 1 for a circle"""
    aspect_spread: float
    """standard deviation of the natural logarithm of aspect - 1"""
    spindles: float
    """share of spindles, whose aspect lies between 3 and 6"""
    irregularity: float = 0.9
    """how uneven the steps between the 10 to 17 corners are; 0 to 1"""
    spike: float = 0.08
    """standard deviation of the corners' distance from the centre, as a share of it"""

    def __post_init__(self) -> None:
        _within(self, "diameter", 1, 40, " µm")
        _within(self, "spread", 0, 1)
        _within(self, "aspect", 1, 3)
        _within(self, "aspect_spread", 0, 2)
        _within(self, "spindles", 0, 1)
        _within(self, "irregularity", 0, 1)
        _within(self, "spike", 0, 0.5)


@dataclass
class LayoutSettings:
    """Where nuclei lie: scattered in stroma, and in rows along arcs and closed ellipses in epithelium."""

    density: float = 4300.0
    """nuclei per mm²"""
    density_spread: float = 0.12
    """standard deviation of the density's natural logarithm from map to map"""
    clustering: float = 0.5
    """standard deviation of the natural logarithm of the stroma's density within a map; 0 scatters it evenly"""
    epithelium: float = 0.6
    """share of nuclei that stand in rows, in maps that have epithelium"""
    without_epithelium: float = 0.15
    """share of maps without epithelium"""
    least_radius: float = 15.0
    """least radius of the arcs and ellipses that rows follow; µm"""
    greatest_radius: float = 50.0
    """greatest radius of them; µm"""
    spacing: float = 1.0
    """distance between the centres of neighbours in a row, as a share of their width; they touch below about 1"""
    stroma: ShapeSettings = field(default_factory=lambda: ShapeSettings(5.2, 0.33, 1.65, 0.5, 0.1))
    """nuclei of the first type"""
    epithelial: ShapeSettings = field(default_factory=lambda: ShapeSettings(7.5, 0.26, 1.65, 0.5, 0.0))
    """nuclei of the second type; their long axis stands across the row"""

    def __post_init__(self) -> None:
        _within(self, "density", 50, 30_000, " nuclei per mm²")
        _within(self, "density_spread", 0, 1.5)
        _within(self, "clustering", 0, 2)
        _within(self, "epithelium", 0, 1)
        _within(self, "without_epithelium", 0, 1)
        _within(self, "least_radius", 5, 500, " µm")
        _within(self, "greatest_radius", self.least_radius, 500, " µm")
        _within(self, "spacing", 0.6, 4)


def _within(settings: ShapeSettings | LayoutSettings, name: str, low: float, high: float, unit: str = "") -> None:
    value = getattr(settings, name)
    if not low <= value <= high:  # NaN compares as outside
        raise InputError(f"the layout's {name} is {value}, expected {low} to {high}{unit}; correct it.")
