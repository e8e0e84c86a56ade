"""Small pictures while training: what the network draws now, from the same noise each time.

DDIM without noise (Song et al. 2020, arXiv:2010.02502) on the network's own schedule, with classifier-free guidance as
two passes over one image, so that memory stays that of a forward pass. Draws no number from any generator of the run.

Shapes: C latent channels, H and W latent height and width (pixels / 8).
"""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .objective import Condition, Network

STEPS = 15
GUIDANCE = 4.0


@torch.inference_mode()
def draw_latent(
    network: Network, prompt: Condition, empty: Condition, shape: tuple[int, int, int], seed: int = 0
) -> Tensor:
    """What the network draws of the prompt, (1, C, H, W) float32 on its device; empty is the prompt "".

    shape is (C, H, W). The seed is of the noise that the picture starts from.
    """
    # Latents are not pixels, and trailing steps begin at pure noise, where v-prediction wants them to.
    scheduler = DDIMScheduler.from_config(network.scheduler.config, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    latent = noise[None].to(network.device)  # (C, H, W) -> (1, C, H, W)
    for t in scheduler.timesteps:
        now = t[None].to(network.device)
        without = network.predict(latent, now, empty)
        guided = without + GUIDANCE * (network.predict(latent, now, prompt) - without)
        latent = scheduler.step(guided, int(t), latent).prev_sample
    return latent
