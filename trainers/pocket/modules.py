"""The pocket model's three modules as diffusers and transformers know them, and pictures out of them.

Dimensions: B captions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from . import diffusion
from .autoencoder import decode
from .text import CONFIG, LEVEL, inner, tokens
from .weights import FILE, load_weights


class Modules(NamedTuple):
    """The three networks, on one device."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    autoencoder: AutoencoderTiny


def load_modules(path: Path = FILE) -> Modules:
    """The modules with the file's weights, in float32 on the CPU, for inference.

    A name too many or too few in the file is an error.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it holds the weights that trainers.pocket.pretrain writes")
    states = load_weights(path)
    modules = Modules(
        UNet2DConditionModel(**diffusion.CONFIG), CLIPTextModel(CLIPTextConfig(**CONFIG)), AutoencoderTiny()
    )
    modules.unet.load_state_dict(states["unet"])
    modules.autoencoder.load_state_dict(states["vae"])
    text = {name.removeprefix(LEVEL): tensor for name, tensor in states["text_encoder"].items()}
    inner(modules.text_encoder).load_state_dict(text)
    for module in modules:
        module.eval().requires_grad_(False)
    return modules


@torch.no_grad()
def sampled(
    modules: Modules,
    captions: Sequence[str],
    seed: int,
    guidance: float = diffusion.GUIDANCE,
    steps: int = diffusion.SAMPLING_STEPS,
) -> Tensor:
    """Pictures (B, 3, 128, 128) in [0, 1] of captions made of known words."""
    ids = tokens([*captions, ""]).to(modules.unet.device)
    hidden = modules.text_encoder(ids).last_hidden_state
    latents = diffusion.sample(modules.unet, hidden[:-1], hidden[-1:], seed, guidance, steps)
    return decode(modules.autoencoder, latents).clamp(0, 1).cpu()
