"""Pixels to the size a network trains on: crop, resize, pad.

Resizing is Lanczos on float32 channels, so nothing is rounded to 8 bits on the way.

Shapes: H and W pixels; images are (H, W, C) float32 tensors, 0-1, of red, green, blue and what else goes with them.
"""

from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CROPS = ("center", "smart", "none")
MULTIPLE = 8  # pixels per latent of every Stable Diffusion VAE

SMART_SIDE = 96  # pixels of the short side at which the smart crop looks for detail
CENTRE_PRIOR = 0.3  # share of its weight that a window loses at either end of the photo


class Fitted(NamedTuple):
    """An image at training size, and how it got there."""

    image: Tensor
    steps: tuple[str, ...]
    upscaled: bool


def fitted(image: Tensor, resolution: int, crop: str) -> Fitted:
    """The image as a square of resolution, or with crop "none" whole, at about the same area."""
    if crop == "none":
        return _whole(image, resolution)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if crop == "smart" and height != width:
        top, left = _busiest_corner(image[..., :3])
    steps = []
    if height != width:
        where = f"at x={left}, y={top}" if crop == "smart" else "at the centre"
        steps.append(f"cropped to {side}x{side} {where}")
    square = image[top : top + side, left : left + side]
    steps += _resize_step(square, resolution, resolution)
    return Fitted(resized(square, resolution, resolution), tuple(steps), side < resolution)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """(H, W, C) resampled to (height, width, C) with an antialiased Lanczos filter."""
    if image.shape[:2] == (height, width):
        return image
    planes = [Image.fromarray(plane.contiguous().numpy()) for plane in image.unbind(-1)]  # C of mode "F"
    planes = [np.array(plane.resize((width, height), Image.Resampling.LANCZOS)) for plane in planes]
    return torch.from_numpy(np.stack(planes, -1)).clamp_(0, 1)  # Lanczos overshoots at edges


def padded(image: Tensor, height: int, width: int) -> Tensor:
    """The image in the middle of (height, width, C), its edge pixels repeated around it."""
    top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    rows = torch.arange(-top, height - top).clamp(0, image.shape[0] - 1)
    columns = torch.arange(-left, width - left).clamp(0, image.shape[1] - 1)
    return image[rows][:, columns]


def _whole(image: Tensor, resolution: int) -> Fitted:
    height, width = image.shape[:2]
    scale = resolution / sqrt(height * width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    pad_height, pad_width = (ceil(side / MULTIPLE) * MULTIPLE for side in (new_height, new_width))
    steps = _resize_step(image, new_height, new_width)
    if (pad_height, pad_width) != (new_height, new_width):
        steps.append(f"edges repeated to {pad_width}x{pad_height}")
    whole = padded(resized(image, new_height, new_width), pad_height, pad_width)
    return Fitted(whole, tuple(steps), scale > 1)


def _resize_step(image: Tensor, height: int, width: int) -> list[str]:
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (height, width):
        return []
    if height * width > old_height * old_width:
        return [f"UPSCALED from {old_width}x{old_height} to {width}x{height}"]
    return [f"resized to {width}x{height}"]


def _busiest_corner(image: Tensor) -> tuple[int, int]:
    """Top and left of the square, as large as the photo allows, that holds most gradient energy.

    Weighted towards the middle, where people put what they photograph.
    """
    height, width = image.shape[:2]
    side, length = min(height, width), max(height, width)
    short = min(SMART_SIDE, side)
    long = round(length * short / side)
    small = resized(image, *((long, short) if height > width else (short, long)))
    if height > width:
        small = small.transpose(0, 1)  # -> (short, long, 3)
    down, right = small.diff(dim=0)[:, :-1], small.diff(dim=1)[:-1]  # both (short - 1, long - 1, 3)
    energy = (down.square() + right.square()).sum((0, 2), dtype=torch.float64)  # -> (long - 1,)
    total = torch.cat([energy.new_zeros(1), energy.cumsum(0)])
    windows = total[short - 1 :] - total[: long - short + 1]  # one per offset
    distance = torch.linspace(-1, 1, len(windows)) if len(windows) > 1 else torch.zeros(1)
    score = (windows + 1e-6) * (1 - CENTRE_PRIOR * distance.square())  # a flat photo is cropped to its centre
    offset = round(int(score.argmax()) * (length - side) / max(1, len(windows) - 1))
    return (offset, 0) if height > width else (0, offset)
