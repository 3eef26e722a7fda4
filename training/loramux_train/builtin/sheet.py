"""Contact sheets: many pictures on one.

Takes pictures in [-1, 1]; gives one image. Knows nothing of where they came from.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from loramux_train.builtin.pictures import SIZE, to_image

LABEL = 12  # pixels of text above a picture


def contact_sheet(pictures: Tensor, columns: int, labels: Sequence[str] = ()) -> Image.Image:
    """Row by row, each with its label above it if there are labels."""
    height = SIZE + (LABEL if labels else 0)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * SIZE, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        left, top = index % columns * SIZE, index // columns * height
        sheet.paste(to_image(picture.numpy()), (left, top + height - SIZE))
        if labels:
            pen.text((left + 2, top), labels[index], fill="black")
    return sheet
