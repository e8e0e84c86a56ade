"""Selective optimisation: backpropagation on small images, zeroth-order steps on full-size ones.

Choi et al. 2025 (arXiv:2507.10029), Algorithm 1 and equations 1-5. The printed algorithm has the labels of its two
branches swapped against equations 3 and 5 and the text; here a step is ZO-high when a uniform draw falls below p_zo.
Differs from the paper in what it leaves open: AdamW and gradient clipping for BP, a batch of photos if asked for.

Shapes: B photos of one step, see objective.py for the rest.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from .backprop import backprop_step, checkpointed
from .config import SelectiveConfig
from .lora import Lora, injected
from .memory import PhaseMeter
from .objective import Example, Network, Sample, collate, denoising_loss
from .schedule import zo_probability
from .zero_order import zero_order_step

# A loss this high, and twice that of the first steps, has exploded: predicting nothing scores 1, and the U-Net's last
# GroupNorm keeps even a ruined one from going much beyond 2.
EXPLODED = 1.5
WINDOW = 10  # steps over which losses are averaged for reports and for EXPLODED


class StepReport(NamedTuple):
    """One finished step."""

    step: int  # 1-based
    steps: int
    kind: str  # "bp" or "zo"
    loss: float
    t: int  # timestep
    peak_bytes: int  # of the steps of this kind so far
    elapsed_s: float


class Trained(NamedTuple):
    """What a run leaves behind."""

    lora: dict[str, Tensor]  # kohya keys, float32, on the CPU
    steps: list[StepReport]


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
) -> Trained:
    """Fit a LoRA to the examples; the U-Net is left as it was found, also when on_step or the model raises.

    names maps module names to the names they get in the LoRA's keys. Raises RuntimeError when the loss stops being
    finite or explodes.
    """
    with meter.phase("inference", network.unet.parameters()), torch.inference_mode():
        _Loss(network, [examples[0].high], Draw([], 0, True, 0, []), 0.0)()
    with ExitStack() as stack:
        lora = stack.enter_context(
            injected(network.unet, config.rank, config.lora_alpha, config.target_modules, config.seed)
        )
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(network.unet))
        history: list[StepReport] = []
        run = _Run(network, lora, config, meter)
        generator = torch.Generator().manual_seed(config.seed)
        start = time.perf_counter()
        for step in range(1, config.steps + 1):
            draw = _draw(examples, config, step, network.scheduler.config.num_train_timesteps, generator)
            kind = "zo" if draw.is_zo else "bp"
            loss = run.zo(draw) if draw.is_zo else run.bp(draw)
            report = StepReport(
                step, config.steps, kind, loss, draw.t, meter.peak_bytes(kind), time.perf_counter() - start
            )
            history.append(report)
            _check_loss(history, config)
            on_step(report)
        return Trained(lora.state_dict(names), history)


class _Run:
    """The two kinds of step over one set of factors."""

    def __init__(self, network: Network, lora: Lora, config: SelectiveConfig, meter: PhaseMeter):
        self.network, self.config, self.meter = network, config, meter
        self.params = lora.parameters()
        # foreach would hold a second copy of the moments for the length of a step
        self.optimizer = torch.optim.AdamW(
            self.params, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False
        )
        device = self.params[0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=network.dtype is torch.float16)

    def bp(self, draw: Draw) -> float:
        """BP-low: one AdamW step on the small images, equation 1."""
        full_size = self.config.strategy == "bp_high"
        loss = self._loss([example.high if full_size else example.low for example in draw.examples], draw)
        with self.meter.phase("bp", self._resident(), self._circumstances(loss)):
            return backprop_step(loss, self.params, self.optimizer, self.scaler, self.config.max_grad_norm)

    def zo(self, draw: Draw) -> float:
        """ZO-high: one SGD step along estimated slopes on the full-size images, equation 2."""
        loss = self._loss([example.high for example in draw.examples], draw)

        @torch.inference_mode()
        def value() -> float:
            return loss().item()

        with self.meter.phase("zo", self._resident(), self._circumstances(loss)):
            return zero_order_step(
                value, self.params, draw.probe_seeds, self.config.zo_epsilon, self.config.zo_learning_rate
            )

    def _loss(self, samples: list[Sample], draw: Draw) -> "_Loss":
        return _Loss(self.network, samples, draw, self.config.min_snr_gamma)

    def _circumstances(self, loss: "_Loss") -> tuple:
        """What a step's memory depends on: the photos' shape, and whether AdamW's moments are there yet."""
        return loss.shape, bool(self.optimizer.state)

    def _resident(self) -> list[Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.network.unet.parameters(), *self.network.unet.buffers(), *moments]


class _Loss:
    """The loss of one draw as a function of the network's weights alone: same photo, noise and timestep every call."""

    def __init__(self, network: Network, samples: list[Sample], draw: Draw, min_snr_gamma: float):
        self.network, self.min_snr_gamma = network, min_snr_gamma
        self.x0, self.condition = collate(samples, network.device)
        self.t = torch.full((len(samples),), draw.t, device=network.device)
        generator = torch.Generator().manual_seed(draw.noise_seed)
        self.noise = torch.randn(self.x0.shape, generator=generator).to(network.device)
        self.shape = tuple(self.x0.shape)

    def __call__(self) -> Tensor:
        loss = denoising_loss(self.network, self.x0, self.noise, self.t, self.condition, self.min_snr_gamma)
        return loss.mean()


def _draw(
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


def _check_loss(history: Sequence[StepReport], config: SelectiveConfig) -> None:
    last = history[-1]
    rates = (
        f"learning_rate {config.learning_rate:g}"
        if last.kind == "bp"
        else (f"zo_learning_rate {config.zo_learning_rate:g} or zo_epsilon {config.zo_epsilon:g}")
    )
    where = f"step {last.step} ({last.kind.upper()}, timestep {last.t})"
    if not math.isfinite(last.loss):
        raise RuntimeError(
            f"Selective BP/ZO Trainer: the loss became {last.loss} at {where}; the model you put in is unchanged. "
            f"Lower {rates}, or load the model in float32 or bfloat16 if it runs in float16."
        )
    recent = fmean(report.loss for report in history[-WINDOW:])
    first = fmean(report.loss for report in history[:WINDOW])
    if len(history) > WINDOW and recent > max(EXPLODED, 2 * first):
        raise RuntimeError(
            f"Selective BP/ZO Trainer: the loss exploded at {where}: mean {recent:.3g} over the last {WINDOW} steps, "
            f"{first:.3g} over the first; the model you put in is unchanged. Lower {rates}."
        )


def first_and_last(history: Sequence[StepReport]) -> dict[str, dict[str, float]]:
    """Mean loss of the first and the last WINDOW steps, over all steps ("all") and by kind."""
    groups = {"all": list(history)}
    for kind in ("bp", "zo"):
        groups[kind] = [report for report in history if report.kind == kind]
    return {
        name: {
            "first": fmean(report.loss for report in group[:WINDOW]),
            "last": fmean(report.loss for report in group[-WINDOW:]),
        }
        for name, group in groups.items()
        if group
    }
