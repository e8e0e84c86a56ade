"""Pictures side by side in one file, and back from a file."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """Pictures (N, 3, H, W) in [0, 1], row by row; the last row is filled up with black."""
    rows = -(-len(pictures) // columns)
    filled = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, rows * columns - len(pictures)))
    _, channels, height, width = filled.shape
    grid = filled.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)  # rows, H, columns, W, C
    image = grid.reshape(rows * height, columns * width, channels)
    return Image.fromarray((image * 255).round().to(torch.uint8).numpy())


def picture(file: Path | BinaryIO) -> Tensor:
    """An image file as (3, H, W) in [0, 1]."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def save_sheet(pictures: Tensor, columns: int, path: Path) -> None:
    sheet(pictures, columns).save(path)
