"""Subspace Gradient: the token's own past tells which directions matter, the rest is taken for noise.

Seo et al. 2025 (ZOODiP, arXiv:2503.14868), section 3.2, after the authors' code: the last tau tokens (not gradients)
are standardised and their principal components found every tau steps; those behind a share 1 - nu of the variance
are projected out. That leaves all directions outside the span of the tau tokens as they are, and Adam's scaling by
coordinate leads out of the subspace again; hence a second form:

published: the estimated gradient is projected; Adam's step is taken as it is.
confined:  the perturbations and Adam's step are projected, and what lies outside the span is damped.

Differs from the code in one direction: of tau centred tokens the last component has no variance and could be any. The
authors project it out, here it counts as outside the span.

Shapes: d numbers of the token, tau tokens kept, r = min(tau - 1, d) components.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

SUBSPACES = ("published", "confined", "off")


class Subspace:
    """What the last tokens leave of a direction; until there are tau of them, everything."""

    def __init__(self, size: int, nu: float, outside: float):
        self.size, self.nu, self.outside = size, nu, outside
        self._tokens: list[Tensor] = []  # newest last
        self._count = 0
        self._components: Tensor | None = None  # (r, d)
        self._kept = 0

    def add(self, token: Tensor) -> None:
        """Take in the token after a step, (d,). Every tau-th time the subspace is found anew."""
        self._tokens = [*self._tokens[1 - self.size :], token.clone()]
        self._count += 1
        if self._count % self.size == 0:
            self._components, self._kept = principal_components(torch.stack(self._tokens), self.nu)

    def state(self) -> dict[str, Tensor]:
        """All that add() has made of it; restore() takes it up again."""
        state = {"count": torch.tensor([self._count, self._kept])}
        if self._tokens:
            state["tokens"] = torch.stack(self._tokens)
        if self._components is not None:
            state["components"] = self._components.clone()
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take in what state() gave."""
        self._count, self._kept = state["count"].tolist()
        self._tokens = list(state["tokens"]) if "tokens" in state else []
        self._components = state.get("components")

    def confine(self, directions: Tensor) -> Tensor:
        """The directions (..., d) without their low-variance components; those outside the span times `outside`."""
        if self._components is None:
            return directions
        along = directions @ self._components.T  # (..., r)
        rest = directions - along @ self._components
        return along[..., : self._kept] @ self._components[: self._kept] + self.outside * rest

    def dimensions(self, total: int) -> float:
        """The squared length that confine leaves of an N(0, I) direction of `total` numbers, on average."""
        if self._components is None:
            return float(total)
        return self._kept + self.outside**2 * (total - len(self._components))


def principal_components(tokens: Tensor, nu: float) -> tuple[Tensor, int]:
    """Components (r, d) of standardised tokens (tau, d), high variance first, and how many to keep.

    Kept are as many as it takes for a share above 1 - nu of the variance: all when there is none.
    """
    tokens = tokens.double()
    standardised = tokens - tokens.mean(0)
    deviation = standardised.square().mean(0).sqrt()
    standardised /= torch.where(deviation > 0, deviation, 1.0)
    _, singular, components = torch.linalg.svd(standardised, full_matrices=False)
    components = components[: len(tokens) - 1]
    variance = singular[: len(tokens) - 1].square()
    kept = int((variance.cumsum(0) <= (1 - nu) * variance.sum()).sum()) + 1
    # contiguous, as it is once it was saved and read: products of other strides round otherwise on some processors
    return components.float().contiguous(), min(kept, len(components))
