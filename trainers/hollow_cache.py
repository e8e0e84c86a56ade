"""Stage 1 of the hollowed trainer: what the centre gives for every photo under noise that stage 2 will see, on disk.

Cho et al. 2024 (Hollowed Net, arXiv:2411.01179). The paper does not say how many samples it stores nor how it draws
them. Here photos take turns, and timesteps are stratified: with as many samples as timesteps, each comes up about once.
Noise is not stored but drawn again from its seed.

A flipped photo, a photo in another size, and a photo with another caption are examples like all others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import Activations, Layout, stored, writing
from .config import HollowConfig
from .fingerprint import fingerprint
from .hollow_cuts import Cut
from .hollow_forward import centre_activation
from .memory import PhaseMeter
from .objective import Condition, Network, Sample, collate, collated_weights


class Noised(NamedTuple):
    """One photo under one noise: all that has to be known to make the network's input again."""

    example: int  # index of the photo
    t: int  # timestep
    noise_seed: int


class Inputs(NamedTuple):
    """What B noised photos come to on the device."""

    x0: Tensor  # (B, C, H, W) latents
    noise: Tensor  # (B, C, H, W)
    t: Tensor  # (B,)
    condition: Condition
    weight: Tensor | None  # (B, 1, H, W) of each place in the loss


class CacheFacts(NamedTuple):
    """What a report says about the cache."""

    samples: int
    file_bytes: int
    is_reused: bool


class HollowCache:
    """The stored activations of all noised photos, to be read in batches of photos of one size."""

    def __init__(
        self, activations: Activations, noised: list[Noised], shapes: list[tuple[int, ...]], facts: CacheFacts
    ):
        self.noised, self.facts = noised, facts
        self._activations, self._shapes = activations, shapes

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The activations of the noised photos with these numbers, (B, C, H, W), on the CPU."""
        return torch.stack([self._read(number) for number in numbers])

    def _read(self, number: int) -> Tensor:
        shape = self._shapes[number]
        return self._activations.read(number)[: prod(shape)].view(shape)


def draw_noised(examples: int, config: HollowConfig, timesteps: int) -> list[Noised]:
    """The noised photos of a run; they depend on the seed and on how many are needed, on nothing else."""
    count = config.samples_needed
    generator = torch.Generator().manual_seed(config.seed)
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator, dtype=torch.float64)
    noise_seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    ts = (strata * timesteps / count).long().clamp(max=timesteps - 1).tolist()
    return [Noised(i % examples, t, noise_seed) for i, (t, noise_seed) in enumerate(zip(ts, noise_seeds, strict=True))]


def batches(
    noised: Sequence[Noised], examples: Sequence[Sample], batch_size: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Numbers of noised photos, batch_size of one latent size at a time, without end; all come up equally often."""
    waiting = defaultdict(list)
    while True:
        for number in torch.randperm(len(noised), generator=generator).tolist():
            batch = waiting[examples[noised[number].example].latent.shape]
            batch.append(number)
            if len(batch) == batch_size:
                yield batch.copy()
                batch.clear()


def network_inputs(network: Network, examples: Sequence[Sample], noised: Sequence[Noised]) -> Inputs:
    """The noised photos as a batch; their latents have to be of one size."""
    samples = [examples[one.example] for one in noised]
    x0, condition = collate(samples, network.device)
    noise = torch.stack([_noise(x0.shape[1:], one.noise_seed) for one in noised]).to(network.device)
    t = torch.tensor([one.t for one in noised], device=network.device)
    return Inputs(x0, noise, t, condition, collated_weights(samples, network.device))


@contextmanager
def hollow_cache(
    network: Network,
    cut: Cut,
    config: HollowConfig,
    examples: Sequence[Sample],
    path: Path,
    meter: PhaseMeter,
    on_cached: Callable[[int, int], None],
) -> Iterator[HollowCache]:
    """The cache of a run inside the block: the file at path where it is this run's, else written anew.

    The file stays, for the next run. on_cached gets how many samples are done, and of how many. Raises RuntimeError
    when the disk has no room. No file is left behind when anything raises while it is written.
    """
    noised = draw_noised(len(examples), config, network.scheduler.config.num_train_timesteps)
    centre = Centre(network, cut, config.mode, examples, meter)
    shapes = _shapes(examples, noised, centre)
    layout = Layout(len(noised), (max(map(prod, shapes)),), config.cache_dtype)  # rows as long as the longest
    mark = _fingerprint(network, cut, config, examples, noised)
    activations = stored(path, mark)
    is_reused = activations is not None
    if not is_reused:
        with writing(path, layout, mark) as writer:
            for number, one in enumerate(noised):
                writer.write(number, _row(centre(one), layout))
                on_cached(number + 1, len(noised))
        activations = stored(path, mark)
    with activations:
        yield HollowCache(activations, noised, shapes, CacheFacts(len(noised), layout.file_bytes, is_reused))


class Centre:
    """The original network, asked what its centre gives; counted towards phase "cache"."""

    def __init__(self, network: Network, cut: Cut, mode: str, examples: Sequence[Sample], meter: PhaseMeter):
        self.network, self.cut, self.mode, self.examples, self.meter = network, cut, mode, examples, meter

    def __call__(self, one: Noised) -> Tensor:
        """The tensor to store for one noised photo, (C, H, W)."""
        x0, noise, t, condition, _ = network_inputs(self.network, self.examples, [one])
        x_t = self.network.scheduler.add_noise(x0, noise, t)
        with self.meter.phase("cache", self.network.unet.parameters(), tuple(x_t.shape)):
            return centre_activation(
                self.network.unet, self.cut, self.mode, lambda: self.network.predict(x_t, t, condition)
            )[0]


def _row(activation: Tensor, layout: Layout) -> Tensor:
    flat = activation.flatten()
    return torch.nn.functional.pad(flat, (0, layout.shape[0] - len(flat)))


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _shapes(
    examples: Sequence[Sample], noised: Sequence[Noised], centre: Callable[[Noised], Tensor]
) -> list[tuple[int, ...]]:
    """(C, H, W) of what is stored for every noised photo, found by one run for each size of photo."""
    sizes = [tuple(examples[one.example].latent.shape) for one in noised]
    found = {size: tuple(centre(one).shape) for size, one in dict(zip(sizes, noised, strict=True)).items()}
    return [found[size] for size in sizes]


def _fingerprint(
    network: Network, cut: Cut, config: HollowConfig, examples: Sequence[Sample], noised: Sequence[Noised]
) -> str:
    settings = {
        "kept": cut.kept,
        "mode": config.mode,
        "cache_dtype": config.cache_dtype,
        "computation": [str(network.dtype), str(network.device)],
        "noised": noised,
    }
    seen = (tensor for photo in examples for tensor in (photo.latent, photo.context, photo.vector))  # not its weight
    tensors = [network.scheduler.alphas_cumprod, *seen]
    return fingerprint(network.unet, tensors, settings)
