"""Gradient estimates from forward passes alone: no activations kept, no second copy of the parameters on the device.

The estimator of Choi et al. 2025 (arXiv:2507.10029), equation 2, which is Algorithm 1 of Malladi et al. 2023 (MeZO,
arXiv:2305.17333) averaged over N perturbations. A perturbation is never stored: it is drawn again from its seed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from .ranks import over_ranks


@torch.no_grad()
def add_perturbation(params: Sequence[Tensor], seed: int, scale: float) -> None:
    """Add scale * z to every parameter in place, z ~ N(0, I) being a function of the seed and the device alone."""
    generators: dict[torch.device, torch.Generator] = {}
    for p in params:
        generator = generators.get(p.device)
        if generator is None:
            generator = generators[p.device] = torch.Generator(p.device).manual_seed(seed)
        p.add_(torch.randn(p.shape, generator=generator, device=p.device), alpha=scale)


@contextmanager
def perturbed(params: Sequence[Tensor], seed: int, scale: float) -> Iterator[None]:
    """Parameters moved by scale * z inside the block and, whatever happens in it, moved back up to rounding."""
    add_perturbation(params, seed, scale)
    try:
        yield
    finally:
        add_perturbation(params, seed, -scale)


@contextmanager
def undoable(params: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Yields what puts the parameters back to the bit, as is done when the block raises. The copy is in CPU memory.

    perturbed() moves them back up to rounding, and a run that is cancelled within it could not go on to the same bits.
    """
    copies = [p.detach().to("cpu", copy=True) for p in params]

    @torch.no_grad()
    def undo() -> None:
        for p, copy in zip(params, copies, strict=True):
            p.copy_(copy)

    try:
        yield undo
    except BaseException:
        undo()
        raise


def central_difference(
    loss: Callable[[], float], params: Sequence[Tensor], seed: int, epsilon: float
) -> tuple[float, float]:
    """The slope of loss along z, (L(theta + eps z) - L(theta - eps z)) / 2 eps, and the mean of the two losses."""
    with perturbed(params, seed, epsilon):
        above = loss()
    with perturbed(params, seed, -epsilon):
        below = loss()
    return (above - below) / (2 * epsilon), (above + below) / 2


def zero_order_step(
    loss: Callable[[], float], params: Sequence[Tensor], seeds: Sequence[int], epsilon: float, learning_rate: float
) -> float:
    """One update theta <- theta - alpha / N * sum_n slope_n z_n, in place; returns the mean loss of its 2 N passes.

    loss must draw the same photo, noise and timestep each time it is called. Parameters change only at the end, once
    all N slopes are known. They are to the bit what they were when anything raises, or when a loss is not finite, and
    before every perturbation: so it makes no difference which of torch.distributed's ranks tries which of them.
    """
    with undoable(params) as undo:

        def slope_along(seed: int) -> tuple[float, float]:
            found = central_difference(loss, params, seed, epsilon)
            undo()
            return found

        pairs = over_ranks([partial(slope_along, seed) for seed in seeds])
        mean_loss = sum(mean for _, mean in pairs) / len(seeds)
        if not math.isfinite(mean_loss):
            undo()
            return mean_loss
        for seed, (slope, _) in zip(seeds, pairs, strict=True):
            add_perturbation(params, seed, -learning_rate * slope / len(seeds))
    return mean_loss
