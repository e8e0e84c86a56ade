"""One known picture, ways to store it, and the comparison with what comes back; where the DreamBooth photos are."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

HEIGHT, WIDTH = 48, 64
DREAMBOOTH = Path(__file__).resolve().parents[2] / "shared/dreambooth"  # beside the checkout, where it is there


def smooth_rgb() -> np.ndarray:
    """(H, W, 3) uint8, different in every corner and smooth enough for lossy formats."""
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    return np.stack([255 * x, 255 * y, 255 * (1 - x) * (1 - y)], -1).round().astype(np.uint8)


RGB = smooth_rgb()
PICTURE = Image.fromarray(RGB)


def save(folder: Path, name: str, picture: Image.Image = PICTURE, **options) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def assert_pixels(image: torch.Tensor, expected, atol: float = 0) -> None:
    """image is 0-1, expected 0-255, atol in 8-bit steps."""
    expected = torch.from_numpy(np.broadcast_to(np.asarray(expected, np.float32), image.shape) / 255)
    torch.testing.assert_close(image, expected, atol=atol / 255 + 1e-6, rtol=0)
