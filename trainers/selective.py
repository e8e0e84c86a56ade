"""Selective optimisation: backpropagation on small images, zeroth-order steps on full-size ones.

Choi et al. 2025 (arXiv:2507.10029), Algorithm 1 and equations 1-5. The printed algorithm has the labels of its two
branches swapped against equations 3 and 5 and the text; here a step is ZO-high when a uniform draw falls below p_zo.
Differs from the paper in what it leaves open: AdamW and gradient clipping for BP, a batch of photos if asked for.

Shapes: B photos of one step, see objective.py for the rest.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .backprop import checkpointed
from .config import SelectiveConfig
from .lora import Lora, injected
from .memory import PhaseMeter
from .objective import Example, Network, Sample, collate, collated_weights, denoising_loss
from .resume import Saves, keeping
from .run import Backprop, StepLog, StepReport, Trained
from .schedule import zo_probability
from .zero_order import zero_order_step

TRAINER = "Selective BP/ZO Trainer"  # as messages name it


class Draw(NamedTuple):
    """The random choices of one step."""

    examples: list[Example]
    t: int  # one for the whole batch, since the choice between BP and ZO hangs on it
    is_zo: bool
    noise_seed: int
    probe_seeds: list[int]


def train_selective(
    network: Network,
    examples: Sequence[Example],
    config: SelectiveConfig,
    names: Mapping[str, str],
    meter: PhaseMeter,
    on_step: Callable[[StepReport], None],
    saves: Saves | None = None,
    drawing: Callable[..., Draw] | None = None,
) -> Trained:
    """Fit a LoRA to the examples; the U-Net is left as it was found, also when on_step or the model raises.

    names maps module names to the names they get in the LoRA's keys. saves says where the run is kept and what it goes
    on from. drawing makes the choices of each step: planning.py has its own. Raises RuntimeError when the loss stops
    being finite or explodes.
    """
    saves, drawing = saves or Saves(), drawing or choices
    saves.check_model(network.unet)
    with meter.phase("inference", network.unet.parameters()), torch.inference_mode():
        _Loss(network, [examples[0].high], Draw([], 0, True, 0, []), 0.0)()
    with ExitStack() as stack:
        lora = stack.enter_context(
            injected(network.unet, config.rank, config.lora_alpha, config.target_modules, config.seed)
        )
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(network.unet))
        log, run = StepLog(TRAINER, config.steps, meter, on_step), _Run(network, lora, config, meter)
        generator = torch.Generator().manual_seed(config.seed)
        with keeping(saves, log, run.backprop.learnt, partial(lora.state_dict, names), generator) as steps:
            for step in steps:
                draw = drawing(examples, config, step, network.scheduler.config.num_train_timesteps, generator)
                kind = "zo" if draw.is_zo else "bp"
                loss = run.zo(draw) if draw.is_zo else run.bp(draw)
                log.add(kind, loss, draw.t, _rates(config, kind))
        return Trained(lora.state_dict(names), log.history)


class _Run:
    """The two kinds of step over one set of factors."""

    def __init__(self, network: Network, lora: Lora, config: SelectiveConfig, meter: PhaseMeter):
        self.network, self.config, self.params = network, config, lora.parameters()
        self.backprop = Backprop(network, self.params, config, meter)

    def bp(self, draw: Draw) -> float:
        """BP-low: one AdamW step on the small images, equation 1."""
        full_size = self.config.strategy == "bp_high"
        loss = self._loss([example.high if full_size else example.low for example in draw.examples], draw)
        return self.backprop.step(loss, loss.shape)

    def zo(self, draw: Draw) -> float:
        """ZO-high: one SGD step along estimated slopes on the full-size images, equation 2."""
        loss = self._loss([example.high for example in draw.examples], draw)

        @torch.inference_mode()
        def value() -> float:
            return loss().item()

        with self.backprop.phase("zo", loss.shape):
            mean_loss = zero_order_step(
                value, self.params, draw.probe_seeds, self.config.zo_epsilon, self.config.zo_learning_rate
            )
            if math.isfinite(mean_loss):
                self.backprop.learnt.touched.set()
            return mean_loss

    def _loss(self, samples: list[Sample], draw: Draw) -> "_Loss":
        return _Loss(self.network, samples, draw, self.config.min_snr_gamma)


class _Loss:
    """The loss of one draw as a function of the network's weights alone: same photo, noise and timestep every call."""

    def __init__(self, network: Network, samples: list[Sample], draw: Draw, min_snr_gamma: float):
        self.network, self.min_snr_gamma = network, min_snr_gamma
        self.x0, self.condition = collate(samples, network.device)
        self.weight = collated_weights(samples, network.device)
        self.t = torch.full((len(samples),), draw.t, device=network.device)
        generator = torch.Generator().manual_seed(draw.noise_seed)
        self.noise = torch.randn(self.x0.shape, generator=generator).to(network.device)
        self.shape = tuple(self.x0.shape)

    def __call__(self) -> Tensor:
        given = (self.x0, self.noise, self.t, self.condition, self.min_snr_gamma, self.weight)
        return denoising_loss(self.network, *given).mean()


def choices(
    examples: Sequence[Example], config: SelectiveConfig, step: int, timesteps: int, generator: torch.Generator
) -> Draw:
    """The choices of one step. Every step takes as many draws, so all strategies see the same photos and noise."""

    def integers(high: int, count: int) -> list[int]:
        return torch.randint(high, (count,), generator=generator).tolist()

    first = examples[integers(len(examples), 1)[0]]
    alike = [example for example in examples if example.high.latent.shape == first.high.latent.shape]
    picks = integers(len(alike), config.batch_size - 1)
    t = integers(timesteps, 1)[0]
    p_zo = zo_probability(config.strategy, step, config.steps, t, k=config.k, t_mid=config.t_mid, t_max=timesteps)
    is_zo = torch.rand((), generator=generator).item() < p_zo
    noise_seed, *probe_seeds = integers(2**62, 1 + config.zo_perturbations)
    return Draw([first, *(alike[i] for i in picks)], t, is_zo, noise_seed, probe_seeds)


def _rates(config: SelectiveConfig, kind: str) -> str:
    """The settings that are too high where the loss of a step of this kind goes wrong."""
    if kind == "bp":
        return f"learning_rate {config.learning_rate:g}"
    return f"zo_learning_rate {config.zo_learning_rate:g} or zo_epsilon {config.zo_epsilon:g}"
