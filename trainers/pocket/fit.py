"""The loop both parts of pretraining run in: seeded by the step, resumable, with an average of the weights."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic import replacing

log = logging.getLogger(__name__)

SAVE_EVERY_S = 500
LOG_EVERY = 50
EMA_DECAY = 0.998
MAX_GRADIENT_NORM = 1.0
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def fit(
    modules: nn.ModuleDict,
    loss_of: Callable[[int, torch.Generator], Tensor],
    steps: int,
    learning_rate: float,
    state_file: Path,
    seed: int,
    warm_up: int = 200,
    on_save: Callable[[int], None] = lambda step: None,
) -> None:
    """Train modules for that many steps of Adam and leave the average of their weights in them.

    loss_of gets the step and the generator that everything random of this step comes from. A run that was stopped goes
    on from state_file, with the same result as if it had not been.
    """
    parameters = {name: p for name, p in modules.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    first = _resume(state_file, parameters, average, optimizer)
    started = saved = time.monotonic()
    recent: list[float] = []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_at(step, steps, warm_up)
        loss = loss_of(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
        recent.append(loss.item())
        if (step + 1) % LOG_EVERY == 0:
            elapsed = time.monotonic() - started
            mean = sum(recent) / len(recent)
            log.info("%s: step %d of %d, loss %.5f, %.0f s", state_file.stem, step + 1, steps, mean, elapsed)
            recent.clear()
        if time.monotonic() - saved > SAVE_EVERY_S or step + 1 == steps:
            _save(state_file, step + 1, parameters, average, optimizer)
            on_save(step + 1)
            saved = time.monotonic()
    for name, p in parameters.items():
        p.data.copy_(average[name])


def rate_at(step: int, steps: int, warm_up: int) -> float:
    """Share of the learning rate: linear warm-up, then down to nothing along half a wave of a cosine."""
    progress = torch.tensor(step / steps)
    return min(1.0, (step + 1) / warm_up) * float(0.5 + 0.5 * torch.cos(torch.pi * progress))


def _save(path: Path, step: int, parameters, average, optimizer) -> None:
    """Write everything a run needs to go on, under names that say what belongs to which parameter."""
    kinds = {"weights": parameters, "average": average}
    for kind in MOMENTS:
        kinds[kind] = {name: optimizer.state[p][kind] for name, p in parameters.items()}
    tensors = {f"{kind}/{name}": t.detach().contiguous() for kind, of in kinds.items() for name, t in of.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, {"step": str(step)})


def _resume(path: Path, parameters, average, optimizer) -> int:
    """The step to go on with."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        for name, p in parameters.items():
            p.data.copy_(file.get_tensor(f"weights/{name}"))
            average[name].copy_(file.get_tensor(f"average/{name}"))
            moments = {kind: file.get_tensor(f"{kind}/{name}").to(p.device) for kind in MOMENTS}
            optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}
    log.info("%s: goes on from step %d", path.name, step)
    return step
