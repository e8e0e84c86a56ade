"""Where the subject is in a photo: masks from files, alpha channels and batches, and what they weigh in the loss.

A mask says for every pixel how much of it is the subject: 1 there, 0 elsewhere. The loss is then a mean over the photo
in which what is not the subject counts background_weight times as much as what is.

Shapes: H and W pixels of the photo; masks are (H, W) float32 tensors, 0-1.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .crops import MULTIPLE, resized
from .decoding import decode
from .photo_files import check_inside

MIN_COVERAGE = 0.005  # of a photo at training size; less is a mask of something else, or one upside down


class Mask(NamedTuple):
    """Which pixels of a photo are the subject, and who says so."""

    cover: Tensor  # (H, W)
    source: str  # file name, "alpha channel", or "2 of the masks input"


def mask_of_file(path: Path, root: Path) -> Mask:
    """The file's brightness: white is the subject, black or transparent is not. ValueError names the file."""
    try:
        check_inside(path, root)
        decoded = decode(path)
    except ValueError as error:
        raise ValueError(f"mask {path.name}: {error}") from error
    bright = decoded.image.mean(-1)
    if decoded.alpha is not None:  # which was laid on white
        bright = (bright - (1 - decoded.alpha)).clamp_(0, 1)
    return Mask(bright, path.name)


def masks_of_batch(masks: Tensor, photos: int) -> list[Mask]:
    """Those of a ComfyUI MASK batch, (B, H, W) or (H, W), one for each photo. ValueError names the socket."""
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or 0 in masks.shape:
        raise ValueError(f"masks: got a batch of shape {tuple(masks.shape)}; needs (masks, height, width)")
    if len(masks) != photos:
        raise ValueError(f"masks: got {len(masks)} for {photos} photos; needs one for each, in the order of the photos")
    if not masks.isfinite().all():
        raise ValueError("masks: they hold NaN or infinite values; check the node that made them")
    masks = masks.to("cpu", torch.float32).clamp(0, 1)
    return [Mask(mask, f"{number} of the masks input") for number, mask in enumerate(masks, start=1)]


def sized(mask: Mask, height: int, width: int) -> Mask:
    """The mask at the size of its photo, to which it has to be similar: it may be larger or smaller, not narrower."""
    h, w = mask.cover.shape
    if abs(h * width - height * w) > max(height, width):  # off by more than a pixel of the mask
        raise ValueError(f"mask {mask.source}: it is {w}x{h}; needs the shape of the photo, {width}x{height}")
    return mask._replace(cover=resized(mask.cover[..., None], height, width)[..., 0])


def check_coverage(mask: Mask) -> None:
    """Raises ValueError where hardly anything of the photo, as it is trained on, is left to learn."""
    coverage = mask.cover.mean().item()
    if coverage < MIN_COVERAGE:
        raise ValueError(
            f"mask {mask.source}: it covers {coverage:.1%} of the photo as it is cropped; needs {MIN_COVERAGE:.1%} at "
            "least. White is the subject: is the mask empty or inverted, or does the crop miss the subject?"
        )


def latent_weight(mask: Tensor, background_weight: float) -> Tensor:
    """How much each latent counts in the loss, (H / 8, W / 8): 1 on average, so that losses compare with others."""
    cover = avg_pool2d(mask[None], MULTIPLE)[0]
    weight = background_weight + (1 - background_weight) * cover
    return weight / weight.mean()
