"""LC25000: cancer and normal tissue of lung and colon."""

from pathlib import Path

from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FACTS = Facts(
    title="LC25000: cancer and normal tissue of lung and colon",
    licence="free for research, no formal licence seen",
    noncommercial=None,
    citation="Borkowski et al., arXiv 1912.12142",
    get="github.com/tampapath/lung_colon_image_set: LC25000.zip",
    layout="lung_image_sets/lung_aca/*.jpeg, lung_n, lung_scc, and colon_image_sets/colon_aca, colon_n",
    magnification="not stated",
    mpp=None,
    patients=None,
    classes=dict.fromkeys(("lung_aca", "lung_n", "lung_scc", "colon_aca", "colon_n"), 5000),
    tiles=25_000,
    size=(768, 768),
    notes="Made by turning and mirroring some 250 originals for each class: any random split has copies of one "
    "original on both sides, so figures on it mean little. No official split.",
    unconfirmed=("licence",),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles."""
    tiles: list[TileEntry] = []
    for path in found(folder, "**/*.jpeg"):
        if path.parent.name in FACTS.classes:
            place = (path, path.relative_to(folder).as_posix(), source, None, None)
            tiles.append(PublishedEntry(*place, path.parent.name, None, None))
    return tiles
