"""LoRA on a U-Net without its centre, whose output comes from a cache on disk.

Cho et al. 2024 (Hollowed Net, arXiv:2411.01179). Stage 1 (hollow_cache) runs the original network and stores one tensor
per noised photo; stage 2, here, moves the centre off the device and trains a LoRA in what stays. Differs from the paper
in what it leaves open: AdamW, gradient clipping, how samples are drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .backprop import checkpointed
from .config import HollowConfig
from .hollow_cache import CacheFacts, HollowCache, Inputs, Noised, batches, hollow_cache, network_inputs
from .hollow_cuts import Cut, cuts, nearest_cut
from .hollow_forward import Hollow, check_mode, hollowed
from .lora import injected
from .memory import PhaseMeter
from .objective import Network, Sample, denoising_loss
from .offload import offloaded
from .resume import Saves, keeping
from .run import Backprop, StepLog, StepReport

TRAINER = "Hollowed Net Trainer"  # as messages name it


class HollowTrained(NamedTuple):
    """What a run leaves behind."""

    lora: dict[str, Tensor]  # kohya keys, float32, on the CPU; kept layers alone
    steps: list[StepReport]
    cut: Cut
    cache: CacheFacts


def _ignore(done: int, total: int) -> None:
    pass


def train_hollow(
    network: Network,
    examples: Sequence[Sample],
    config: HollowConfig,
    names: Mapping[str, str],
    meter: PhaseMeter,
    on_step: Callable[[StepReport], None],
    *,
    cache_path: Path,
    offload_device: torch.device,
    on_cached: Callable[[int, int], None] = _ignore,
    caching: Callable[..., AbstractContextManager[HollowCache]] = hollow_cache,
    saves: Saves | None = None,
) -> HollowTrained:
    """Fit a LoRA to the examples; the U-Net is left as it was found, also when a callback or the model raises.

    names maps module names to the names they get in the LoRA's keys. The cache is a file at cache_path, kept for the
    next run; on_cached hears of every sample that is written to it. caching opens it: planning.py has one without a
    file. saves says where the run is kept and what it goes on from. Raises ValueError for a hollow_fraction or a mode
    that the U-Net cannot have, RuntimeError when the disk is
    full, or the loss stops being finite or explodes.
    """
    unet, saves = network.unet, saves or Saves()
    saves.check_model(unet)
    cut = nearest_cut(cuts(unet), config.hollow_fraction)
    check_mode(cut, config.mode)
    with meter.phase("inference", unet.parameters()), torch.inference_mode():
        _loss(network, network_inputs(network, examples, [Noised(0, 0, 0)]), 0.0)
    with ExitStack() as stack:
        cache = stack.enter_context(caching(network, cut, config, examples, cache_path, meter, on_cached))
        hollow = stack.enter_context(hollowed(unet, cut, config.mode))
        stack.enter_context(offloaded(hollow.centre, offload_device))
        lora = stack.enter_context(injected(unet, config.rank, config.lora_alpha, config.target_modules, config.seed))
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(unet))
        log = StepLog(TRAINER, config.steps, meter, on_step)
        run = _Run(network, hollow, Backprop(network, lora.parameters(), config, meter), config.min_snr_gamma)
        steps = stack.enter_context(keeping(saves, log, run.backprop.learnt, partial(lora.state_dict, names)))
        order = batches(cache.noised, examples, config.batch_size, torch.Generator().manual_seed(config.seed))
        ahead = read_ahead(islice(order, len(log.history), config.steps), cache.read, network.device.type == "cuda")
        for _, (numbers, activation) in zip(steps, stack.enter_context(ahead), strict=False):
            batch = [cache.noised[number] for number in numbers]
            loss = run.bp(network_inputs(network, examples, batch), activation)
            log.add("bp", loss, batch[0].t, f"learning_rate {config.learning_rate:g}")
        return HollowTrained(lora.state_dict(names), log.history, cut, cache.facts)


class _Run:
    """Steps on the hollowed network."""

    def __init__(self, network: Network, hollow: Hollow, backprop: Backprop, min_snr_gamma: float):
        self.network, self.hollow, self.backprop, self.min_snr_gamma = network, hollow, backprop, min_snr_gamma

    def bp(self, inputs: Inputs, activation: Tensor) -> float:
        """One AdamW step; activation is what the centre gave for these inputs."""

        def loss() -> Tensor:
            self.hollow.activation = activation.to(self.network.device, non_blocking=True)
            return _loss(self.network, inputs, self.min_snr_gamma)

        return self.backprop.step(loss, tuple(inputs.x0.shape))


def _loss(network: Network, inputs: Inputs, min_snr_gamma: float) -> Tensor:
    x0, noise, t, condition, weight = inputs
    return denoising_loss(network, x0, noise, t, condition, min_snr_gamma, weight).mean()


@contextmanager
def read_ahead(
    order: Iterator[list[int]], read: Callable[[list[int]], Tensor], is_pinned: bool
) -> Iterator[Iterator[tuple[list[int], Tensor]]]:
    """Each of the batches in order with what read gives for it, read in a thread while the one before is in use.

    In page-locked memory if so asked: the copy to a GPU then runs beside its work.
    """

    def fetch() -> tuple[list[int], Tensor] | None:
        numbers = next(order, None)
        if numbers is None:
            return None
        tensor = read(numbers)
        return numbers, tensor.pin_memory() if is_pinned else tensor

    with ThreadPoolExecutor(max_workers=1) as thread:

        def results() -> Iterator[tuple[list[int], Tensor]]:
            coming = thread.submit(fetch)
            while (result := coming.result()) is not None:
                coming = thread.submit(fetch)
                yield result

        yield results()
