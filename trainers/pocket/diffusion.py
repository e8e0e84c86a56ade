"""The U-Net of the pocket model and its objective: SD 1's blocks, schedule and eps-prediction on 16 x 16 latents.

The squared error of eps is weighted with (SNR + 1) / SNR, which makes it the error of v, held below 5 / SNR and 20
(min-SNR, Hang et al. 2023, arXiv 2303.09556): what a picture shows is decided where there is much noise.

Dimensions: B pictures, latents (B, 4, 16, 16), text (B, 77, WIDTH).
"""

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from .seeding import seeded
from .text import WIDTH

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192, 192),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,  # the number of heads, in spite of its name
}
SCHEDULE = {  # of SD 1; the last two make DDIM's steps those of ComfyUI's sampler "ddim" with scheduler "simple"
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}
BATCH = 32
LEARNING_RATE = 1e-3
EMPTY_SHARE = 0.1  # of captions, for classifier-free guidance
MAX_SNR, MAX_WEIGHT = 5.0, 20.0
GUIDANCE, SAMPLING_STEPS = 3.0, 20  # higher guidance costs shape: 85% at 3, 82% at 5


def new_unet(seed: int) -> UNet2DConditionModel:
    with seeded(seed):
        return UNet2DConditionModel(**CONFIG)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULE)


def noise_loss(unet: nn.Module, text: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Weighted mean squared error of the predicted noise at random timesteps."""
    schedule = scheduler()
    t = torch.randint(schedule.config.num_train_timesteps, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    t = t.to(latents.device)
    error = unet(schedule.add_noise(latents, noise, t), t, text).sample - noise
    alpha_bar = schedule.alphas_cumprod.to(latents)[t]
    snr = alpha_bar / (1 - alpha_bar)
    weight = ((snr + 1).clamp(max=MAX_SNR) / snr).clamp(max=MAX_WEIGHT)
    return (weight * error.square().flatten(1).mean(1)).mean()


@torch.no_grad()
def sample(
    unet: nn.Module, text: Tensor, empty: Tensor, seed: int, guidance: float = GUIDANCE, steps: int = SAMPLING_STEPS
) -> Tensor:
    """Latents (B, 4, 16, 16) by DDIM with classifier-free guidance. text is (B, 77, WIDTH), empty (1, 77, WIDTH)."""
    schedule = scheduler()
    schedule.set_timesteps(steps)
    shape = (len(text), CONFIG["in_channels"], CONFIG["sample_size"], CONFIG["sample_size"])
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(text)
    both = torch.cat([empty.expand_as(text), text])
    for t in schedule.timesteps:
        without, conditional = unet(torch.cat([latents, latents]), t, both).sample.chunk(2)
        latents = schedule.step(without + guidance * (conditional - without), t, latents).prev_sample
    return latents


def dropped(captions: Sequence[str], generator: torch.Generator) -> list[str]:
    """The captions, a tenth of them empty."""
    empty = torch.rand(len(captions), generator=generator) < EMPTY_SHARE
    return ["" if drop else caption for caption, drop in zip(captions, empty.tolist(), strict=True)]
