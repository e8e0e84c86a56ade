"""Rows of pictures under captions, in one picture: what to look at first after a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE, GAP, CAPTION = 256, 8, 40  # px; height of a caption
PAPER, INK = "white", "black"
FONT_SIZE = 22
MAX_COLUMNS = 6  # further pictures of a row are left out


def sheet(rows: Mapping[str, Sequence[Path]]) -> Image.Image:
    """The pictures of each row, as large as TILE allows, under the row's caption."""
    rows = {caption: files[:MAX_COLUMNS] for caption, files in rows.items()}
    columns = max(len(files) for files in rows.values())
    width, height = columns * (TILE + GAP) + GAP, len(rows) * (CAPTION + TILE) + GAP
    page = Image.new("RGB", (width, height), PAPER)
    font = ImageFont.load_default(FONT_SIZE)
    for number, (caption, files) in enumerate(rows.items()):
        top = number * (CAPTION + TILE)
        middle = (GAP, top + CAPTION // 2)
        ImageDraw.Draw(page).text(middle, _cut(caption, font, width - 2 * GAP), INK, font, anchor="lm")
        for column, file in enumerate(files):
            page.paste(_tile(file), (GAP + column * (TILE + GAP), top + CAPTION))
    return page


def _tile(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return ImageOps.pad(picture.convert("RGB"), (TILE, TILE), color=PAPER)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    while font.getlength(text) > width:
        text = text.removesuffix("...")[:-1] + "..."
    return text
