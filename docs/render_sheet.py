"""Draws docs/pictures/render.png from a finished run: python docs/render_sheet.py runs/demo/translator

One phantom mask of 256 x 256 px and its tissue in four styles; nothing in it is real.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import translate
from histo.codec import encode
from histo.phantom import PhantomTissue

GAP = 4  # pixels


def main() -> None:
    translator = translate.load(Path(sys.argv[1]))
    tile = PhantomTissue(11, size=256, mpp=translator.mpp or 0.5, count=8)[5]
    assert tile.instances is not None
    tissue = translator.render(tile.instances, styles=4)[:, 0]
    pictures = [encode(tile.instances), *tissue]
    framed = [np.pad(picture, ((0, 0), (0, 0), (0, GAP)), constant_values=255) for picture in pictures]
    sheet = Image.fromarray(np.concatenate(framed, axis=2)[:, :, :-GAP].transpose(1, 2, 0))
    target = Path(__file__).parent / "pictures" / "render.png"
    sheet.quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
