"""What an autoencoder and a sampler do to pictures, imitated, so that judges put up with it.

Each picture gets its own strengths: blur, colours coarser than light as in JPEG, contrast, brightness and noise.

Dimensions: B pictures, (B, 3, H, W) in [0, 1].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLUR, COLOUR_BLUR = 2, 4  # pixels
CONTRAST, BRIGHTNESS, NOISE = 0.08, 0.03, 0.025  # the most of each
SHARP = 0.4  # share of pictures that are not blurred
SHIFT, ZOOM, TURN = 6, 0.15, 0.08  # pixels, share, radians: the most to each side


def softened(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures of the same shape, changed a little."""

    def strength(low: float, high: float) -> Tensor:
        return torch.rand(len(pictures), 1, 1, 1, generator=generator) * (high - low) + low

    soft = (strength(0, 1) > SHARP) * strength(0, 1)
    pictures = torch.lerp(pictures, _coarse(pictures, BLUR), soft)
    colour = pictures - pictures.mean(1, keepdim=True)
    pictures = pictures + soft * strength(0, 1) * (_coarse(colour, COLOUR_BLUR) - colour)
    grey = pictures.mean((1, 2, 3), keepdim=True)
    pictures = grey + (pictures - grey) * (1 + strength(-CONTRAST, CONTRAST)) + strength(-BRIGHTNESS, BRIGHTNESS)
    noise = torch.randn(pictures.shape, generator=generator)
    return (pictures + noise * strength(0, NOISE)).clamp(0, 1)


def moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures shifted, half of them mirrored, half turned and zoomed a little. Pixels of the border are repeated."""
    count, size = len(pictures), pictures.shape[-1]

    def strength(most: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * most

    whole = strength(1) < 0  # these are shifted by whole pixels, and so stay as sharp as they are
    zoom = torch.where(whole, 1.0, 1 + strength(ZOOM))
    angle = torch.where(whole, 0.0, strength(TURN))
    mirror = strength(1).sign()
    shift = torch.stack([strength(SHIFT), strength(SHIFT)], 1).round() / size * 2
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    turn = torch.stack([torch.stack([cos * mirror, -sin], 1), torch.stack([sin * mirror, cos], 1)], 1)  # (B, 2, 2)
    grid = F.affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _coarse(pictures: Tensor, pixels: int) -> Tensor:
    """Means of squares of so many pixels, joined smoothly."""
    return F.interpolate(F.avg_pool2d(pictures, pixels), scale_factor=pixels, mode="bilinear", align_corners=False)
