"""Features of pictures that need no download: EfficientNet-Lite0 of ImageNet, and the pocket world's own judges.

For all of the 75 photos of 14 DreamBooth subjects the nearest other photo by EfficientNet-Lite0 is of the same subject
(tests/bench/features.py).

Shapes: N pictures (N, H, W, 3) in [0, 1], D numbers of a feature.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .pocket.judges import SIDE as POCKET_SIDE
from .pocket.judges import identity

SIDE = 224  # of the squares that EfficientNet-Lite0 was trained on
MEAN, STD = 127 / 255, 128 / 255  # as it was trained


@torch.inference_mode()
def efficientnet_features(last_map: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """(N, 1280): means over the last feature map, (N, 1280, h, w), of the square in the middle."""
    x = F.interpolate(_square(pictures), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return last_map((x - MEAN) / STD).mean((2, 3))


def pocket_features(pictures: Tensor) -> Tensor:
    """(N, 64): which object it is, by the judges of the pocket world, who know nothing else."""
    return identity(F.interpolate(_square(pictures), (POCKET_SIDE, POCKET_SIDE), mode="area").clamp(0, 1))


def _square(pictures: Tensor) -> Tensor:
    """The square in the middle, (N, 3, S, S)."""
    height, width = pictures.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pictures[:, top : top + side, left : left + side, :3].permute(0, 3, 1, 2).float()  # (N, H, W, 3) -> NCHW
