"""Gradients of a token from forward passes alone: random Gaussian estimates, one- and two-sided.

Seo et al. 2025 (ZOODiP, arXiv:2503.14868), section 3. All candidates of a step are known before the first forward pass,
so they can run as one batch. The estimate is shortened as in the authors' code (github.com/ignoww/ZOODiP), which their
learning rate and Adam's epsilon of 1e-3 belong to, and not as in the paper, where it is the plain mean.

Shapes: n perturbations, d numbers of the token (all its vectors), K candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DIFFERENCES = ("forward", "central")


def perturbations(count: int, dimensions: int, seed: int) -> Tensor:
    """z (n, d), each row N(0, I), a function of the seed alone; on the CPU, so that all devices see the same."""
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def candidates(token: Tensor, z: Tensor, epsilon: float, difference: str) -> Tensor:
    """The tokens to try, (K, d): the token and token + eps z, K = n + 1; or token ± eps z, K = 2 n."""
    first = token - epsilon * z if difference == "central" else token[None]
    return torch.cat([first, token + epsilon * z])


def slopes(losses: Sequence[float], epsilon: float, difference: str) -> list[float]:
    """The loss's slope along each of the n perturbations, from the losses of the K candidates, in their order."""
    if difference == "central":
        n = len(losses) // 2
        return [(above - below) / (2 * epsilon) for below, above in zip(losses[:n], losses[n:], strict=True)]
    return [(above - losses[0]) / epsilon for above in losses[1:]]


def estimate(along: Sequence[float], z: Tensor) -> Tensor:
    """The gradient (d,): the mean of slope * z, which is unbiased as epsilon goes to 0."""
    return torch.tensor(along, dtype=z.dtype) @ z / len(along)


def excess_length(dimensions: float, n: int) -> float:
    """How many times longer than the gradient an estimate from n perturbations is, root mean square.

    dimensions are those that the perturbations fill and that are kept.
    """
    return ((dimensions + n - 1) / n) ** 0.5
