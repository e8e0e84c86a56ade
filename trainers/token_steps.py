"""The steps of textual inversion, by estimated gradients and by true ones.

All that belongs to the token is float32; under "zo" it is on the CPU. Shapes: d numbers of a token (all its vectors),
n perturbations, K tokens tried in one step; see objective.py for the rest.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .backprop import backprop_step
from .config import TokenConfig
from .learnt import Learnt
from .memory import LiveBytes, PhaseMeter
from .objective import Condition, Network, denoising_loss
from .ranks import over_ranks, rank_count
from .token_gradient import candidates, estimate, excess_length, perturbations, slopes
from .token_subspace import Subspace
from .token_vectors import Shapes, Vectors, unpacked

ADAM_EPSILON = 1e-3  # the authors' code; at the usual 1e-8 the noise of the estimate would set the pace
HEADROOM = 1.25  # on the memory a batch of candidates is expected to take


class TokenExample(NamedTuple):
    """One photo and the captions it may be learnt with."""

    latent: Tensor  # (C, H, W)
    encoders: Sequence[Callable[[Vectors], Condition]]  # per caption: K tokens -> conditions (K, S, D), (K, A)
    weight: Tensor | None = None  # (H, W) of each place in the loss, 1 on average; None: all alike


class Draw(NamedTuple):
    """The random choices that all forward passes of a step share, and the seed of its perturbations."""

    example: TokenExample
    caption: int
    t: int
    noise_seed: int
    probe_seed: int


class TokenLoss:
    """The loss of a draw as a function of the token."""

    def __init__(self, network: Network, text_encoder: nn.Module, shapes: Shapes, meter: PhaseMeter):
        self.network, self.text_encoder, self.shapes, self.meter = network, text_encoder, shapes, meter

    def __call__(self, draw: Draw, tokens: Tensor) -> Tensor:
        """(K,) losses of K tokens (K, d), run as one batch."""
        latent, device = draw.example.latent, self.network.device
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(draw.noise_seed))
        x0, noise = (x.to(device).expand(len(tokens), *x.shape) for x in (latent, noise))
        t = torch.full((len(tokens),), draw.t, device=device)
        condition = draw.example.encoders[draw.caption](unpacked(tokens, self.shapes))
        weight = None if draw.example.weight is None else draw.example.weight.to(device)  # (H, W)
        return denoising_loss(self.network, x0, noise, t, condition, weight=weight)

    @torch.inference_mode()
    def values(self, draw: Draw, tokens: Tensor, is_batched: bool) -> list[float]:
        """The same as numbers, by forward passes alone; one by one, divided over ranks, unless is_batched."""
        parts = [tokens] if is_batched else tokens.split(1)
        return list(chain.from_iterable(over_ranks([lambda part=part: self(draw, part).tolist() for part in parts])))

    def phase(
        self, name: str, extra: Iterable[Tensor] = (), circumstances: object = None
    ) -> AbstractContextManager[None]:
        """The meter's phase for work on both networks; extra is what else belongs to it."""
        return self.meter.phase(name, chain(self._resident(), extra), circumstances)

    def has_room_for(self, config: TokenConfig, free_bytes: int) -> bool:
        """Whether a step's candidates are to run as one batch, judged by the "inference" phase if it is left open.

        Several ranks share them out one by one.
        """
        if config.candidates != "auto" or rank_count() > 1:
            return config.candidates == "batch"
        resident = LiveBytes(tensor for tensor in self._resident() if tensor.device == self.network.device).live
        activations = max(0, self.meter.peak_bytes("inference") - resident)
        n = config.zo_perturbations
        count = 2 * n if config.difference == "central" else n + 1
        return HEADROOM * count * activations <= free_bytes

    def _resident(self) -> Iterator[Tensor]:
        for module in (self.network.unet, self.text_encoder):
            yield from module.parameters()
            yield from module.buffers()


class ZeroOrderRun:
    """Steps of Adam along estimated gradients."""

    kind = "zo"

    def __init__(self, loss: TokenLoss, token: Tensor, config: TokenConfig, is_batched: bool):
        self.loss, self.config, self.is_batched = loss, config, is_batched
        self.rates = f"learning_rate {config.learning_rate:g} or zo_epsilon {config.zo_epsilon:g}"
        self.token = nn.Parameter(token)
        self.optimizer = torch.optim.Adam([self.token], lr=config.learning_rate, eps=ADAM_EPSILON)
        outside = config.subspace_outside if config.subspace == "confined" else 1.0
        self.subspace = Subspace(config.subspace_size, config.subspace_nu, outside)
        self.learnt, self.parts = Learnt([self.token], self.optimizer), {"subspace": self.subspace}

    @torch.no_grad()
    def step(self, draw: Draw) -> float:
        """One update; returns the loss of the token before it, with central differences the mean of all candidates."""
        before = self.token.detach().clone()
        z = perturbations(self.config.zo_perturbations, len(before), draw.probe_seed)
        if self.config.subspace == "confined":
            z = self.subspace.confine(z)
        losses = self._losses(draw, candidates(before, z, self.config.zo_epsilon, self.config.difference))
        if not math.isfinite(sum(losses)):
            return sum(losses)  # which ends the run; the token is still sound
        self.token.grad = self._gradient(losses, z)
        self.optimizer.step()
        if self.config.subspace == "confined":
            self.token.copy_(before + self.subspace.confine(self.token - before))
        if self.config.subspace != "off":
            self.subspace.add(self.token)
        return sum(losses) / len(losses) if self.config.difference == "central" else losses[0]

    def _losses(self, draw: Draw, tokens: Tensor) -> list[float]:
        with self.loss.phase("zo", circumstances=draw.example.latent.shape):
            return self.loss.values(draw, tokens, self.is_batched)

    def _gradient(self, losses: list[float], z: Tensor) -> Tensor:
        """The estimate as Adam gets it: brought to the length of the gradient, projected if so published."""
        gradient = estimate(slopes(losses, self.config.zo_epsilon, self.config.difference), z)
        gradient /= excess_length(self.subspace.dimensions(z.shape[1]), len(z))
        return self.subspace.confine(gradient) if self.config.subspace == "published" else gradient


class GradientRun:
    """Steps of AdamW along gradients through text encoder and U-Net."""

    kind, is_batched = "bp", False

    def __init__(self, loss: TokenLoss, token: Tensor, config: TokenConfig):
        self.loss, self.rates = loss, f"learning_rate {config.learning_rate:g}"
        network = loss.network
        self.token = nn.Parameter(token.to(network.device))
        self.optimizer = torch.optim.AdamW(
            [self.token], lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False
        )
        self.scaler = torch.amp.GradScaler(network.device.type, enabled=network.dtype is torch.float16)
        self.learnt, self.parts = Learnt([self.token], self.optimizer, self.scaler), {}

    def step(self, draw: Draw) -> float:
        """One update; returns the loss before it."""
        circumstances = draw.example.latent.shape, bool(self.optimizer.state)
        with self.loss.phase("bp", [self.token], circumstances):
            return backprop_step(
                lambda: self.loss(draw, self.token[None]).mean(), [self.token], self.optimizer, self.scaler, 0.0
            )
