"""A contact sheet: the photos, and under them the generated pictures with their scores."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from .evaluation import Scores

TILE, GAP, TEXT_PX, COLUMNS = 192, 8, 15, 6
PAPER, INK, FAINT = "#ffffff", "#222222", "#777777"
LINE = TEXT_PX + 6


def contact_sheet(photos: Sequence[Tensor], pictures: Tensor, scores: Scores) -> Tensor:
    """Photos (H, W, 3) and pictures (N, H, W, 3) in [0, 1] as one image, (1, H, W, 3)."""
    best = max(range(len(scores.pictures)), key=lambda i: scores.pictures[i].subject)
    below = [
        f"{i + 1}: {one.subject:.3f}"
        + ("" if one.prompt is None else f", prompt {one.prompt:.3f}")
        + " *" * (i == best)
        for i, one in enumerate(scores.pictures)
    ]
    columns = min(COLUMNS, max(len(photos), len(pictures)))
    rows = [
        _heading("Photos", "" if scores.photos is None else f"{scores.photos:.3f} among themselves", columns),
        _tiles(photos, None, columns),
        _heading("Pictures", f"{scores.features} {scores.subject}", columns),
        _tiles(pictures, below, columns),
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


def _heading(title: str, words: str, columns: int) -> Image.Image:
    row = Image.new("RGB", (_width(columns), LINE + GAP), PAPER)
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(TEXT_PX)
    draw.text((GAP, GAP), title, INK, font)
    draw.text((2 * GAP + draw.textlength(title, font), GAP), words, FAINT, font)
    return row


def _tiles(images: Sequence[Tensor], below: Sequence[str] | None, columns: int) -> Image.Image:
    height = TILE + GAP + (LINE if below else 0)
    grid = Image.new("RGB", (_width(columns), -(-len(images) // columns) * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(TEXT_PX)
    for number, image in enumerate(images):
        left, top = GAP + number % columns * (TILE + GAP), GAP + number // columns * height
        pixels = Image.fromarray((image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        grid.paste(ImageOps.pad(pixels, (TILE, TILE), color=PAPER), (left, top))
        if below:
            draw.text((left, top + TILE + 2), below[number], INK, font)
    return grid


def _width(columns: int) -> int:
    return GAP + columns * (TILE + GAP)
