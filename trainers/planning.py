"""What a run will take, counted before it starts: each trainer itself, run for a few steps on fake tensors.

Every kind of step that can occur is taken once with all that stays in memory between steps, so the peaks are those of
a whole run; tests/test_planning.py holds them equal to real ones to the byte. Weights and photos are not needed, only
their sizes. Where a trainer draws numbers to choose, its settings are such that chance has no say.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import DTYPES
from .config import HollowConfig, SelectiveConfig
from .fake_tensors import CPU, faked
from .hollow import train_hollow
from .hollow_cache import CacheFacts, Centre, HollowCache, Noised
from .hollow_cuts import Cut
from .memory import LiveBytes, PhaseMeter
from .objective import Example, Network, Sample
from .plan import STEPS, PlannedPhase
from .quantize import quantized
from .selective import train_selective

Photo = Callable[[float], Sample]  # ratio of a side to the full-size side -> photo of that size, whatever is on it
TrainerConfig = SelectiveConfig | HollowConfig
# Settings that make no tensor larger or smaller, or not one that lasts; plans with other values of them are the same.
WEIGHTLESS = {
    "steps", "seed", "learning_rate", "zo_learning_rate", "zo_epsilon", "zo_perturbations", "k", "t_mid", "alpha",
    "weight_decay", "cache_samples", "sampling",
}  # fmt: skip


def bearing(config: TrainerConfig) -> TrainerConfig:
    """The settings with those that the plan does not depend on at their defaults."""
    return replace(config, **{field.name: field.default for field in fields(config) if field.name in WEIGHTLESS})


def planned_phases(network: Network, photo: Photo, config: TrainerConfig) -> tuple[PlannedPhase, ...]:
    """Peaks of a run with these settings on photos of one size. Takes seconds and no memory; the network is not run."""
    trainers = {SelectiveConfig: _selective, HollowConfig: _hollow}
    meter, quantization = _Meter(), getattr(config, "quantization", "none")
    with faked(network) as fake, quantized([fake.unet], quantization, CPU, CPU):
        other_bytes = trainers[type(config)](fake, photo, config, meter)
    return meter.planned(other_bytes)


class _Meter(PhaseMeter):
    """Also tells what is learnt from what is given: the former asks for gradients, or came while steps ran."""

    def __init__(self):
        super().__init__(CPU)
        self._weights: dict[str, int] = {}

    def phase(self, name: str, resident: Iterable[Tensor], circumstances=None):
        resident = list(resident)
        given = LiveBytes(tensor for tensor in resident if not tensor.requires_grad).live
        self._weights[name] = min(given, self._weights.get(name, given))  # the first step finds no moments of AdamW
        return super().phase(name, resident, circumstances)

    def planned(self, other_bytes: int) -> tuple[PlannedPhase, ...]:
        """All phases; other_bytes is what in the phases of steps belongs to neither the U-Net nor what is learnt."""
        of_steps = min((self._weights[name] for name in STEPS if name in self._weights), default=0)
        found = []
        for phase in self.phases():
            weights = of_steps if phase.name in STEPS else self._weights[phase.name]
            learnt = phase.held_bytes - weights
            other = other_bytes if phase.name in STEPS else 0
            work = phase.peak_bytes - phase.held_bytes - other
            found.append(PlannedPhase(phase.name, phase.peak_bytes, weights, learnt, other, work))
        return tuple(found)


def _selective(network: Network, photo: Photo, config: SelectiveConfig, meter: PhaseMeter) -> int:
    """Numbers drawn on fake tensors are 0, so a schedule this steep takes two BP steps, then a ZO step."""
    if config.strategy in ("bp_high", "bp_low"):
        config = replace(config, steps=2)
    elif config.strategy == "zo_high":
        config = replace(config, steps=1)
    else:
        t_mid = network.scheduler.config.num_train_timesteps * 3 // 8
        config = replace(config, steps=3, strategy="dtap", k=1.0, t_mid=t_mid)
    config = replace(config, zo_perturbations=1)  # one pass after another: more take no more memory
    examples = [Example(photo(1.0), photo(config.low_res_ratio))]
    train_selective(network, examples, config, _own_names(network), meter, _ignore)
    return 0


def _hollow(network: Network, photo: Photo, config: HollowConfig, meter: PhaseMeter) -> int:
    """The file between the stages, which needs values, is left out; nothing else is."""
    config = replace(config, steps=2, cache_samples=config.batch_size)
    places = dict(cache_path=Path(), offload_device=CPU, caching=_blank_cache)
    trained = train_hollow(network, [photo(1.0)], config, _own_names(network), meter, _ignore, **places)
    return trained.cache.file_bytes


@contextmanager
def _blank_cache(
    network: Network,
    cut: Cut,
    config: HollowConfig,
    examples: Sequence[Sample],
    path: Path,
    meter: PhaseMeter,
    on_cached: Callable[[int, int], None],
) -> Iterator[HollowCache]:
    """A hollow_cache() of the first step's photos that has its sizes, and no file."""
    noised = [Noised(0, 0, 0)] * config.samples_needed
    shape = tuple(Centre(network, cut, config.mode, examples, meter)(noised[0]).shape)
    blank = torch.empty(prod(shape), dtype=DTYPES[config.cache_dtype])
    facts = CacheFacts(len(noised), len(noised) * blank.nbytes, False)
    yield HollowCache(_Blank(blank), noised, [shape] * len(noised), facts)


class _Blank(NamedTuple):
    """Stored activations, all alike."""

    activation: Tensor

    def read(self, index: int) -> Tensor:
        return self.activation


def _own_names(network: Network) -> dict[str, str]:
    return {name: name for name, _ in network.unet.named_modules()}


def _ignore(step) -> None:
    pass
