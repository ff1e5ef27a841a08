"""What `downstream/predict.py` makes of bags: their classes, and of slides where on them the classifier looked."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from downstream.attention import draw_bag, draw_slide
from downstream.bagging import bag_members
from downstream.inference import TrainedTask
from downstream.pieces import slide_names
from downstream.predictions import PARTS, TABLE, read_rows, with_folder, write_picture, write_rows
from histo.errors import InputError
from histo.slides.streaming import SlideEntry
from histo.slides.tables import SlideRow
from histo.tiles import TileSet

ATTENTION = "attention"


class BagClasses:
    """Classes of bags: parts/NUMBER.csv of each, which `conclude` joins to predictions.csv.

    Of a bag that is a slide also attention/NAME.jpg, where on it the classifier looked.

    Args:
        bags: by key, the tiles of each, or the slide that they are cut from in its turn.
        described: one line for people.
    """

    def __init__(self, task: TrainedTask, bags: Mapping[str, SlideRow | TileSet], described: str) -> None:
        self.task, self.bags, self.described = task, list(bags.items()), described
        slides = [key for key, bag in self.bags if isinstance(bag, SlideRow) or isinstance(bag.entries[0], SlideEntry)]
        self.names = dict(zip(slides, slide_names(slides), strict=True))

    @classmethod
    def of_slides(cls, task: TrainedTask, rows: list[SlideRow], mpp: float | None) -> "BagClasses":
        """A bag for each slide.

        Args:
            mpp: µm/px of the finest level of those whose row says none, before what the file says.

        Raises:
            InputError: a network of unknown µm/px, or two slides of one name.
        """
        if task.mpp is None:
            raise InputError(
                f"{task.path.name} does not say at which µm/px it learned, which slides are cut at; name a slides.csv "
                "by --data.tiles, and the µm/px by --data.mpp."
            )
        count = f"{len(rows)} slide{'' if len(rows) == 1 else 's'}"
        bags = {row.key: replace(row, mpp=row.mpp or mpp) for row in rows}
        return cls(task, bags, f"{count}, a bag each, cut at {task.mpp:g} µm/px")

    @classmethod
    def of_tiles(cls, task: TrainedTask, tiles: TileSet) -> "BagClasses":
        """Bags as training makes them: by the slide that tiles are cut from, else by patient.

        Raises:
            InputError: a tile of no slide and unknown patient, or two slides of one name.
        """
        bags = {
            key: TileSet(tiles.entries.take(some), cache_mb=0) for (_, key), some in bag_members(tiles.entries).items()
        }
        return cls(task, bags, f"{tiles.describe()} · in {len(bags)} bag{'' if len(bags) == 1 else 's'}")

    def __len__(self) -> int:
        return len(self.bags)

    def files(self, index: int) -> list[Path]:
        key, _ = self.bags[index]
        pictures = [Path(ATTENTION, f"{self.names[key]}.jpg")] if key in self.names else []
        return [Path(PARTS, f"{index:06d}.csv"), *pictures]

    def make(self, index: int, folder: Path) -> None:
        key, bag = self.bags[index]
        part, *pictures = (with_folder(folder / file) for file in self.files(index))
        if isinstance(bag, SlideRow):
            found = self.task.predict_slide(bag.path, slide_mpp=bag.mpp)
        else:
            found = self.task.predict_bag(bag.image(k) for k in range(len(bag)))
        title = f"{key}: {found.label} {found.probabilities.max():.2f}"
        for path in pictures:
            if isinstance(bag, SlideRow):
                assert found.boxes is not None
                picture = draw_slide(bag, found.boxes.astype(float), None, found.attention, title)
            else:
                picture = draw_bag(bag, found.attention, title)
            write_picture(path, Image.fromarray(picture))
        write_rows(part, [[key, found.label, *(f"{value:.6g}" for value in found.probabilities)]])

    def inputs(self) -> Iterator[str]:
        """The names of what is looked at, which those of the files do not tell."""
        for key, bag in self.bags:
            yield key
            if isinstance(bag, TileSet):
                yield from (entry.key for entry in bag.entries)

    def describe(self) -> str:
        return self.described

    def conclude(self, made: list[int], folder: Path) -> None:
        """Join the parts to the table."""
        rows = read_rows(folder / self.files(index)[0] for index in made)
        write_rows(folder / TABLE, [["bag", "label", *(f"p_{name}" for name in self.task.card["classes"])], *rows])
