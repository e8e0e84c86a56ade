"""What a denoiser is trained to predict: noised latents, targets and losses.

A model reaches a trainer as a Network: its U-Net module (where the LoRA goes) and a callable that predicts. The noise
schedule is a diffusers DDPMScheduler with the model's own betas, so that eps- and v-prediction, and schedules the user
patched, need no code of ours. Latents are scaled as the U-Net expects them (ComfyUI: process_latent_in).

Shapes: B images, C latent channels, H and W latent height and width (pixels / 8), S tokens, D token width, A width of
the pooled and size conditioning (SDXL). t is 0 = data, T - 1 = noise.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn


class Condition(NamedTuple):
    """What the U-Net is told beside the noised latents."""

    context: Tensor  # (B, S, D) text tokens
    vector: Tensor | None = None  # (B, A) pooled text and sizes, for models that take them


class Sample(NamedTuple):
    """One photo at one resolution, encoded."""

    latent: Tensor  # (C, H, W)
    context: Tensor  # (S, D)
    vector: Tensor | None = None  # (A,)
    weight: Tensor | None = None  # (H, W) of each place in the loss, 1 on average; None: all alike


class Example(NamedTuple):
    """One photo at the two resolutions a run uses."""

    high: Sample
    low: Sample


class Network(NamedTuple):
    """A denoiser ready to train: weights frozen and on the device, no copy made."""

    unet: nn.Module
    predict: Callable[[Tensor, Tensor, Condition], Tensor]  # (x_t, t, condition) -> raw output, float32 (B, C, H, W)
    scheduler: DDPMScheduler
    dtype: torch.dtype  # of the U-Net's computation
    device: torch.device  # where its weights are
    waiting_bytes: int = 0  # of its own weights, off the device while quantised ones stand in for them


def noise_scheduler(alphas_cumprod: Tensor, prediction_type: str) -> DDPMScheduler:
    """The DDPMScheduler with these cumulative products of alpha, (T,); prediction_type in diffusers' words."""
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1].double()])
    betas = 1 - alphas_cumprod.double() / previous
    return DDPMScheduler(
        num_train_timesteps=len(betas), trained_betas=betas.tolist(), prediction_type=prediction_type, clip_sample=False
    )


def denoising_loss(
    network: Network,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Condition,
    min_snr_gamma: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Squared error of each image against the model's own target (eps or v), (B,); min-SNR weighted if gamma > 0.

    x0 and noise are (B, C, H, W), t is (B,) integers; weight is (B, 1, H, W), by which each place counts.
    """
    scheduler = network.scheduler
    x_t = scheduler.add_noise(x0, noise, t)
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x0, noise, t) if v_prediction else noise
    error = (network.predict(x_t, t, condition).float() - target).square()
    error = (error if weight is None else error * weight).flatten(1).mean(1)
    return error * _min_snr_weight(scheduler, t, min_snr_gamma, v_prediction) if min_snr_gamma > 0 else error


def _min_snr_weight(scheduler: DDPMScheduler, t: Tensor, gamma: float, v_prediction: bool) -> Tensor:
    alphas_cumprod = scheduler.alphas_cumprod.to(t.device)[t]
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr)


def collate(samples: Sequence[Sample], device: torch.device | None = None) -> tuple[Tensor, Condition]:
    """Latents (B, C, H, W) and their condition, on the device.

    Prompts of unequal length are repeated, as ComfyUI's sampler does.
    """
    length = math.lcm(*(len(sample.context) for sample in samples))
    context = torch.stack([sample.context.repeat(length // len(sample.context), 1) for sample in samples])
    vectors = [sample.vector for sample in samples if sample.vector is not None]
    vector = torch.stack(vectors).to(device) if vectors else None
    latents = torch.stack([sample.latent for sample in samples])
    return latents.to(device), Condition(context.to(device), vector)


def collated_weights(samples: Sequence[Sample], device: torch.device | None = None) -> Tensor | None:
    """By how much each place of the photos counts, (B, 1, H, W), on the device; None where all count alike."""
    if all(sample.weight is None for sample in samples):
        return None
    given = [torch.ones(s.latent.shape[1:]) if s.weight is None else s.weight for s in samples]
    return torch.stack(given)[:, None].to(device)  # (B, H, W) -> (B, 1, H, W)
