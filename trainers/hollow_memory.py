"""What a hollowed run will take, counted before it starts: the steps of both stages on fake tensors (fake_tensors.py).

Cho et al. 2024 (Hollowed Net, arXiv:2411.01179). The parts are train_hollow's own, in its order, less the file between
the stages, which needs values; tests/test_hollow_memory.py holds the two equal to the byte.
"""

from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import DTYPES
from .backprop import checkpointed
from .config import HollowConfig
from .fake_tensors import faked
from .hollow_cache import Inputs, Noised, network_inputs
from .hollow_cuts import Cut, cuts, nearest_cut
from .hollow_forward import centre_activation, hollowed
from .lora import injected
from .memory import PhaseMeter
from .objective import Network, Sample, denoising_loss
from .run import Backprop

ONE = Noised(example=0, t=0, noise_seed=0)


class HollowMemory(NamedTuple):
    """Peak bytes of tensors on the training device, by phase; those of stage 2's steps also by what they are."""

    cut: Cut
    inference: int  # one forward pass of the whole network
    cache: int  # stage 1
    bp: int  # stage 2
    weights: int  # of bp: what stays of the U-Net
    lora: int  # of bp: the factors and AdamW's two moments

    @property
    def work(self) -> int:
        """Of bp: activations, gradients, and what else a step makes."""
        return self.bp - self.weights - self.lora


def hollow_memory(network: Network, photo: Sample, config: HollowConfig) -> HollowMemory:
    """What train_hollow would take with photos of this size. No arithmetic runs: takes seconds and no memory."""
    with faked(network) as network:
        meter = PhaseMeter(network.device)
        cut = nearest_cut(cuts(network.unet), config.hollow_fraction)
        weights = sum(parameter.nbytes for parameter in network.unet.parameters()) - cut.leaving_bytes
        with meter.phase("inference", network.unet.parameters()), torch.inference_mode():
            _loss(network, network_inputs(network, [photo], [ONE]), 0.0)
        activation = _stage_1(network, cut, photo, config, meter)
        lora = _stage_2(network, cut, photo, activation, config, meter)
        return HollowMemory(cut, *map(meter.peak_bytes, ("inference", "cache", "bp")), weights, lora)


def _loss(network: Network, inputs: Inputs, min_snr_gamma: float) -> Tensor:
    return denoising_loss(network, inputs.x0, inputs.noise, inputs.t, inputs.condition, min_snr_gamma).mean()


def _stage_1(network: Network, cut: Cut, photo: Sample, config: HollowConfig, meter: PhaseMeter) -> Tensor:
    """What one noised photo leaves on the disk, (C_out, H, W)."""
    x0, noise, t, condition = network_inputs(network, [photo], [ONE])
    x_t = network.scheduler.add_noise(x0, noise, t)
    with meter.phase("cache", network.unet.parameters()):
        (row,) = centre_activation(network.unet, cut, config.mode, lambda: network.predict(x_t, t, condition))
    return row.to(DTYPES[config.cache_dtype])


def _stage_2(
    network: Network, cut: Cut, photo: Sample, activation: Tensor, config: HollowConfig, meter: PhaseMeter
) -> int:
    """Bytes of the LoRA and its moments; meters the first steps."""
    with ExitStack() as stack:
        hollow = stack.enter_context(hollowed(network.unet, cut, config.mode))
        lora = stack.enter_context(
            injected(network.unet, config.rank, config.lora_alpha, config.target_modules, config.seed)
        )
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(network.unet))
        backprop = Backprop(network, lora.parameters(), config, meter)
        hollow.activation = torch.stack([activation] * config.batch_size)
        inputs = network_inputs(network, [photo], [ONE] * config.batch_size)
        for _ in range(2):  # AdamW's moments are there from the second on
            backprop.step(lambda: _loss(network, inputs, config.min_snr_gamma), None)
        return 3 * sum(factor.nbytes for factor in lora.parameters())
