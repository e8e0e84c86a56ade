"""The autoencoder of the pocket model: the architecture of TAESD (github.com/madebyollin/taesd), trained from scratch.

It shrinks 8 times to 4 channels, has no norms, and is known to diffusers as AutoencoderTiny and to ComfyUI as TAESD.
Latents are pulled towards mean 0 and deviation 1, the scale the U-Net works on.

Dimensions: B pictures, H = W = crop pixels while training.
"""

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from .seeding import seeded

CROP = 64
BATCH = 16
LEARNING_RATE = 3e-3  # while the late blocks are out
DECODER_LEARNING_RATE = 1.5e-3
LATENT_NOISE = 0.05  # what the decoder learns to put up with
LATENT_WEIGHT = 0.003
# Blocks that cost most, because they run at a high resolution. They do nothing when they are born: the decoder's wait
# until the rest is trained, the encoder's stay that way.
LATE_BLOCKS = {"encoder": (1, 4, 5), "decoder": (13, 14, 17)}


def new_autoencoder(seed: int) -> AutoencoderTiny:
    """One whose blocks change nothing yet, so that a high learning rate is safe without norms (Fixup, 1901.09321)."""
    with seeded(seed):
        autoencoder = AutoencoderTiny()
        for module in autoencoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for part in (autoencoder.encoder, autoencoder.decoder):
        for layer in part.layers:
            if hasattr(layer, "fuse"):
                nn.init.zeros_(layer.conv[-1].weight)
                nn.init.zeros_(layer.conv[-1].bias)
    return autoencoder


def encode(autoencoder: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Latents (B, 4, H / 8, W / 8) of pictures (B, 3, H, W) in [0, 1]."""
    return autoencoder.encoder(pictures * 2 - 1)


def decode(autoencoder: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pictures in [0, 1], not clamped."""
    return autoencoder.decoder(latents) * 0.5 + 0.5


def reconstruction_loss(autoencoder: AutoencoderTiny, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error, plus what keeps the latents near a unit normal distribution."""
    latents = encode(autoencoder, pictures)
    error = _decoding_loss(autoencoder, latents, pictures, generator)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return error + LATENT_WEIGHT * (mean.square() + (deviation - 1).square()).mean()


def decoder_loss(autoencoder: AutoencoderTiny, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error, of which the encoder learns nothing."""
    with torch.no_grad(), lean(autoencoder):
        latents = encode(autoencoder, pictures)
    return _decoding_loss(autoencoder, latents, pictures, generator)


def _decoding_loss(
    autoencoder: AutoencoderTiny, latents: Tensor, pictures: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of what the decoder makes of the latents with a little noise."""
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    return F.mse_loss(decode(autoencoder, latents + LATENT_NOISE * noise), pictures)


def crops(pictures: Tensor, generator: torch.Generator, count: int = BATCH, size: int = CROP) -> Tensor:
    """Random square crops (count, 3, size, size) in [0, 1] of bytes (N, 3, H, W), half of them mirrored."""
    chosen = torch.randint(len(pictures), (count,), generator=generator)
    top, left = torch.randint(pictures.shape[-1] - size + 1, (2, count), generator=generator).tolist()
    cut = [pictures[i, :, y : y + size, x : x + size] for i, y, x in zip(chosen.tolist(), top, left, strict=True)]
    batch = torch.stack(cut).float() / 255
    return batch.flip(-1) if torch.rand((), generator=generator) < 0.5 else batch


class lean:
    """Within it the late blocks are left out, as if they had not been born."""

    def __init__(self, autoencoder: AutoencoderTiny):
        self.places = [(getattr(autoencoder, part).layers, i) for part, late in LATE_BLOCKS.items() for i in late]
        self.blocks = [layers[i] for layers, i in self.places]

    def __enter__(self) -> None:
        for layers, i in self.places:
            layers[i] = nn.ReLU()

    def __exit__(self, *_) -> None:
        for (layers, i), block in zip(self.places, self.blocks, strict=True):
            layers[i] = block


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Decibels (B,) for pictures in [0, 1]."""
    return -10 * (a - b).square().flatten(1).mean(1).log10()
