"""What every trainer's run has: AdamW steps on a LoRA, a record of each, and a stop where the loss goes wrong."""

import math
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from statistics import fmean
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .backprop import backprop_step
from .learnt import Learnt
from .memory import PhaseMeter
from .objective import Network
from .ranks import as_on_the_first

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
    t: int  # timestep, of the first photo of a batch
    peak_bytes: int  # of the steps of this kind so far
    elapsed_s: float


class Trained(NamedTuple):
    """What a run leaves behind."""

    lora: dict[str, Tensor]  # kohya keys, float32, on the CPU
    steps: list[StepReport]


class AdamWSettings(Protocol):
    learning_rate: float
    weight_decay: float
    max_grad_norm: float


class Backprop:
    """Steps of backpropagation on the factors of a LoRA, with AdamW's moments between them."""

    def __init__(self, network: Network, params: Sequence[nn.Parameter], settings: AdamWSettings, meter: PhaseMeter):
        self.network, self.params, self.meter, self.max_grad_norm = network, params, meter, settings.max_grad_norm
        # foreach would hold a second copy of the moments for the length of a step
        self.optimizer = torch.optim.AdamW(
            params, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=False
        )
        self.scaler = torch.amp.GradScaler(params[0].device.type, enabled=network.dtype is torch.float16)
        self.learnt = Learnt(params, self.optimizer, self.scaler)

    def step(self, loss: Callable[[], Tensor], shape: Hashable) -> float:
        """One step on a scalar loss of photos of this shape, counted towards phase "bp"; returns the loss."""
        with self.phase("bp", shape):
            value = backprop_step(loss, self.params, self.optimizer, self.scaler, self.max_grad_norm)
        as_on_the_first(self.params)
        return value

    def phase(self, name: str, shape: Hashable) -> AbstractContextManager[None]:
        """The meter's phase for a step on these factors.

        Its memory depends on the photos' shape, and on whether AdamW's moments are there yet.
        """
        return self.meter.phase(name, self._resident(), (shape, bool(self.optimizer.state)))

    def _resident(self) -> list[Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.network.unet.parameters(), *self.network.unet.buffers(), *moments]


class StepLog:
    """All steps of a run so far. Each is checked, then reported."""

    def __init__(self, trainer: str, steps: int, meter: PhaseMeter, on_step: Callable[[StepReport], None]):
        self.trainer, self.steps, self.meter, self.on_step = trainer, steps, meter, on_step
        self.history: list[StepReport] = []
        self._start = time.perf_counter()

    def add(self, kind: str, loss: float, t: int, rates: str) -> None:
        """Take in the next step; rates names the settings to lower where its loss went wrong. Raises RuntimeError."""
        peak, elapsed = self.meter.peak_bytes(kind), time.perf_counter() - self._start
        report = StepReport(len(self.history) + 1, self.steps, kind, loss, t, peak, elapsed)
        self.history.append(report)
        try:
            check_loss(self.history, self.trainer, rates)
        except RuntimeError:
            self.history.pop()  # such a step does not count: it is not to be gone on from
            raise
        self.on_step(report)

    def restore(self, history: Sequence[StepReport]) -> None:
        """Go on after these steps, of a run before."""
        self.history = list(history)
        self._start = time.perf_counter() - (history[-1].elapsed_s if history else 0.0)


def check_loss(history: Sequence[StepReport], trainer: str, rates: str) -> None:
    """Raise RuntimeError when the last loss is not finite, or the last ones have exploded."""
    last = history[-1]
    where = f"step {last.step} ({last.kind.upper()}, timestep {last.t})"
    check_finite(last.loss, f"{trainer}: the loss became {last.loss} at {where}", rates)
    recent = fmean(report.loss for report in history[-WINDOW:])
    first = fmean(report.loss for report in history[:WINDOW])
    if len(history) > WINDOW and recent > max(EXPLODED, 2 * first):
        raise RuntimeError(
            f"{trainer}: the loss exploded at {where}: mean {recent:.3g} over the last {WINDOW} steps, "
            f"{first:.3g} over the first; the model you put in is unchanged. Lower {rates}."
        )


def check_finite(loss: float, told: str, rates: str) -> None:
    """Raise RuntimeError, which begins with what is told, unless the loss is a number; rates are settings to lower."""
    if not math.isfinite(loss):
        raise RuntimeError(
            f"{told}; the model you put in is unchanged. "
            f"Lower {rates}, or load the model in float32 or bfloat16 if it runs in float16."
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
