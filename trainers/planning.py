"""What a run will take, counted before it starts: each trainer itself, run for a few steps on fake tensors.

Every kind of step that can occur is taken once with all that stays in memory between steps, so the peaks are those of
a whole run; tests/test_planning.py holds them equal to real ones to the byte. Weights and photos are not needed, only
their sizes. (For small networks a run on real zeros was no quicker: the time goes into counting operations.)
"""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .activations import DTYPES
from .config import HollowConfig, SelectiveConfig, TokenConfig
from .fake_tensors import CPU, faked
from .hollow import train_hollow
from .hollow_cache import CacheFacts, Centre, HollowCache, Noised
from .hollow_cuts import Cut
from .memory import LiveBytes, PhaseMeter
from .objective import Condition, Example, Network, Sample
from .plan import STEPS, PlannedPhase
from .quantize import quantized
from .ranks import alone
from .selective import Draw, train_selective
from .token_inversion import train_token
from .token_steps import TokenExample
from .token_vectors import Vectors

Photo = Callable[[float], Sample]  # ratio of a side to the full-size side -> photo of that size, whatever is on it
TrainerConfig = SelectiveConfig | HollowConfig | TokenConfig
# Settings that make no tensor larger or smaller, or none that lasts: plans with other values of them are the same.
WEIGHTLESS = {"steps", "seed", "learning_rate", "weight_decay", "alpha", "budget_gb", "save_every", "resume"} | {
    "preset", "zo_learning_rate", "zo_epsilon", "k", "t_mid", "cache_samples", "sampling",
    "token", "initial_word", "captions", "replaced_words", "t_low", "t_high", "subspace", "subspace_size",
    "subspace_nu", "subspace_outside", "eval_samples", "patience",
}  # fmt: skip
TOKEN_WIDTH = 768  # of a text encoder's vectors; a token weighs next to nothing, whatever its width


def bearing(config: TrainerConfig) -> TrainerConfig:
    """The settings with those that the plan does not depend on at their defaults."""
    weightless = WEIGHTLESS | ({"zo_perturbations"} if isinstance(config, SelectiveConfig) else set())
    return replace(config, **{field.name: field.default for field in fields(config) if field.name in weightless})


def planned_phases(
    network: Network,
    photo: Photo,
    config: TrainerConfig,
    text_encoder: nn.Module | None = None,
) -> tuple[PlannedPhase, ...]:
    """Peaks of a run with these settings on photos of one size. Takes seconds and no memory; the network is not run.

    text_encoder is one of the same tensors as the one that stays on the device while a token is learnt; None leaves it
    out. Candidates that are to run as one batch if there is room are taken to run as one.
    """
    trainers = {SelectiveConfig: _selective, HollowConfig: _hollow, TokenConfig: _token}
    text_encoder = nn.Module() if text_encoder is None else text_encoder
    with alone(), faked(network, text_encoder) as fake:
        with quantized([fake.unet, text_encoder], config.quantization, CPU, CPU):
            meter = _Meter(text_encoder)
            trainers[type(config)](fake, photo, config, meter)
            return meter.planned()


class _Meter(PhaseMeter):
    """Also tells what is learnt from what is given: the former asks for gradients, or came while steps ran."""

    def __init__(self, text_encoder: nn.Module):
        super().__init__(CPU)
        self.text_encoder = text_encoder
        self.stored_bytes = 0  # of what a step takes from the disk
        self._given: dict[str, int] = {}

    def phase(self, name: str, resident: Iterable[Tensor], circumstances: Hashable = None):
        resident = list(resident)
        given = LiveBytes(tensor for tensor in resident if not tensor.requires_grad).live
        self._given[name] = min(given, self._given.get(name, given))  # the first step finds no moments of AdamW
        return super().phase(name, resident, circumstances)

    def planned(self) -> tuple[PlannedPhase, ...]:
        """All phases."""
        text = LiveBytes((*self.text_encoder.parameters(), *self.text_encoder.buffers())).live
        of_steps = min(self._given[name] for name in STEPS if name in self._given)
        found = []
        for phase in self.phases():
            given, stored = (of_steps, self.stored_bytes) if phase.name in STEPS else (self._given[phase.name], 0)
            learnt, work = phase.held_bytes - given, phase.peak_bytes - phase.held_bytes - stored
            found.append(PlannedPhase(phase.name, phase.peak_bytes, given - text, learnt, text + stored, work))
        return tuple(found)


def _selective(network: Network, photo: Photo, config: SelectiveConfig, meter: _Meter) -> None:
    kinds = {"bp_high": ("bp", "bp"), "bp_low": ("bp", "bp"), "zo_high": ("zo",)}.get(
        config.strategy, ("bp", "bp", "zo")
    )

    def drawing(examples: Sequence[Example], config: SelectiveConfig, step: int, *_) -> Draw:
        return Draw([*examples] * config.batch_size, t=0, is_zo=kinds[step - 1] == "zo", noise_seed=0, probe_seeds=[0])

    config = replace(config, steps=len(kinds))
    examples = [Example(photo(1.0), photo(config.low_res_ratio))]
    train_selective(network, examples, config, _own_names(network), meter, _ignore, drawing=drawing)


def _hollow(network: Network, photo: Photo, config: HollowConfig, meter: _Meter) -> None:
    """The file between the stages, which needs values, is left out; nothing else is."""
    config = replace(config, steps=2, cache_samples=config.batch_size)
    places = dict(cache_path=Path(), offload_device=CPU, caching=_blank_cache)
    trained = train_hollow(network, [photo(1.0)], config, _own_names(network), meter, _ignore, **places)
    meter.stored_bytes = trained.cache.file_bytes


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
    blank = _Blank(prod(shape), DTYPES[config.cache_dtype])
    facts = CacheFacts(len(noised), len(noised) * blank.size * blank.dtype.itemsize, False)
    yield HollowCache(blank, noised, [shape] * len(noised), facts)


class _Blank(NamedTuple):
    """Stored activations, all alike. Real ones: they are read in a thread, and fake tensors know only their own."""

    size: int
    dtype: torch.dtype

    def read(self, index: int) -> Tensor:
        return torch.zeros(self.size, dtype=self.dtype)


def _token(network: Network, photo: Photo, config: TokenConfig, meter: _Meter) -> None:
    """Prompts come encoded: text encoders take less for one prompt than the U-Net does, and give it back before."""
    latent, context, vector, weight = photo(1.0)

    def encoder(vectors: Vectors) -> Condition:
        count = len(next(iter(vectors.values())))
        repeated = (None if one is None else one.expand(count, *one.shape) for one in (context, vector))
        learnt = sum(tensor.sum() for tensor in vectors.values())  # so that gradients come to the token
        return Condition(next(repeated) + learnt, next(repeated))

    config = replace(config, steps=2, eval_every=min(1, config.eval_every), eval_samples=1, patience=0)
    initial = {"clip_l": torch.zeros(config.num_vectors, TOKEN_WIDTH)}
    examples = [TokenExample(latent, [encoder], weight)]
    train_token(network, meter.text_encoder, examples, initial, config, meter, _ignore, lambda: sys.maxsize)


def _own_names(network: Network) -> dict[str, str]:
    return {name: name for name, _ in network.unet.named_modules()}


def _ignore(step) -> None:
    pass
