"""U-Nets of the true size without storage, as Networks: what trainers/fake_tensors.py counts memory on.

Import after ComfyUI is on the path (tests/comfyui.py).
"""

import torch
from checkpoints import FULL_SIZE
from comfy import supported_models
from comfy.model_patcher import ModelPatcher
from pack.nodes import host
from pack.trainers.objective import Network, Sample, noise_scheduler

CPU = torch.device("cpu")
PIXELS_PER_LATENT = 8
ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 1000)  # no tensor's size depends on them


def full_size_network(kind: str, dtype: torch.dtype, prediction_type: str = "epsilon") -> Network:
    """The U-Net of that kind, key of FULL_SIZE, on the meta device; weights and computation in dtype."""
    name, unet = FULL_SIZE[kind]
    config = getattr(supported_models, name)(unet | {"dtype": dtype})
    config.set_inference_dtype(dtype, None)
    patcher = ModelPatcher(config.get_model({}, device="meta"), CPU, CPU)
    scheduler = noise_scheduler(ALPHAS_CUMPROD, prediction_type)
    return Network(patcher.model.diffusion_model, host._predictor(patcher), scheduler, dtype, CPU)


def blank_photo(kind: str, side_px: int) -> Sample:
    """A square photo with a prompt of one chunk, as the U-Net of that kind takes it."""
    _, unet = FULL_SIZE[kind]
    side = side_px // PIXELS_PER_LATENT
    vector = torch.zeros(unet["adm_in_channels"]) if unet["adm_in_channels"] else None
    return Sample(torch.zeros(4, side, side), torch.zeros(77, unet["context_dim"]), vector)
