"""U-Nets and text encoders of the true size without storage: what trainers/fake_tensors.py counts memory on.

Import after ComfyUI is on the path (tests/comfyui.py).
"""

import torch
from checkpoints import FULL_SIZE
from comfy import supported_models
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from pack.nodes import host
from pack.trainers.objective import Network, Sample, noise_scheduler

CPU = torch.device("cpu")
PIXELS_PER_LATENT = 8
ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 1000)  # no tensor's size depends on them


def full_size_model(kind: str, dtype: torch.dtype) -> ModelPatcher:
    """The MODEL of that kind, key of FULL_SIZE, its U-Net on the meta device."""
    name, unet = FULL_SIZE[kind]
    config = getattr(supported_models, name)(unet | {"dtype": dtype})
    config.set_inference_dtype(dtype, None)
    return ModelPatcher(config.get_model({}, device="meta"), CPU, CPU)


def full_size_clip(kind: str, dtype: torch.dtype) -> CLIP:
    """The CLIP that belongs to it, its weights on the meta device."""
    name, unet = FULL_SIZE[kind]
    devices = {"load_device": CPU, "offload_device": CPU, "initial_device": torch.device("meta")}
    target = getattr(supported_models, name)(dict(unet)).clip_target()
    return CLIP(target, model_options=devices | {"dtype": dtype}, disable_dynamic=True)


def full_size_network(kind: str, dtype: torch.dtype, prediction_type: str = "epsilon") -> Network:
    """The U-Net of that kind, key of FULL_SIZE, on the meta device; weights and computation in dtype."""
    patcher = full_size_model(kind, dtype)
    scheduler = noise_scheduler(ALPHAS_CUMPROD, prediction_type)
    return Network(patcher.model.diffusion_model, host._predictor(patcher), scheduler, dtype, CPU)


def blank_photo(kind: str, side_px: int) -> Sample:
    """A square photo with a prompt of one chunk, as the U-Net of that kind takes it."""
    _, unet = FULL_SIZE[kind]
    side = side_px // PIXELS_PER_LATENT
    vector = torch.zeros(unet["adm_in_channels"]) if unet["adm_in_channels"] else None
    return Sample(torch.zeros(4, side, side), torch.zeros(77, unet["context_dim"]), vector)
