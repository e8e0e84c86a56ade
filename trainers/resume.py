"""Runs that lose nothing: saved every so many steps, at the end, and whatever ends them; continued to the same bits.

A loop runs inside keeping(), which hands it the numbers of the steps to do. What is saved is the state after the last
finished step: an error in the middle of one does not count it. A state that a broken step has half changed, or that is
not finite, is not saved; then the point before it remains.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from .checks import require
from .fingerprint import fingerprint
from .learnt import Learnt
from .run import StepLog, StepReport
from .saving import Point, Product, Saved, read_point, remove_old_runs, remove_unfinished, write_point

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # relative: a text encoder or VAE may round otherwise on another day, on a GPU
KINDS = ("bp", "zo")


class Part(Protocol):
    """Something that changes from step to step."""

    def state(self) -> dict[str, Tensor]:
        """Copies on the CPU."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take in what state() gave in a run of the same settings."""


@dataclass
class Saves:
    """Where a run is saved, what it continues, and what became of it. Without a folder nothing is saved."""

    folder: Path | None = None
    every: int = 0  # steps; 0 saves at the end alone
    resumed: Point | None = None
    as_file: Callable[[Mapping[str, Tensor]], Product] = lambda learnt: Product(learnt, {})
    should_stop: Callable[[], bool] = lambda: False  # asked after every step
    facts: dict[str, Mapping[str, object]] = field(default_factory=dict)  # what has to be the same to go on
    is_stopped: bool = False  # it said so
    last: Point | None = None  # the newest that is complete
    story: str = ""  # where what was learnt lies, for people

    def check(self, group: str, facts: Mapping[str, object]) -> None:
        """Take in facts of this run. Raises ValueError, naming each, where the point to go on from has others."""
        self.facts[group] = json.loads(json.dumps(facts))
        if self.resumed is None:
            return
        changed = differences(read_point(self.resumed).facts.get(group, {}), self.facts[group])
        if changed:
            raise ValueError(
                f"resume: {self.resumed.name} was made under other conditions:\n" + "\n".join(changed) + "\n"
                "Put back what was, or set resume to off to start anew."
            )

    def check_model(self, unet: nn.Module) -> None:
        """The same for the weights that get the LoRA, before they have it."""
        if self.folder:
            self.check("model", {"weights of the model": fingerprint(unet, [], {})[:16]})


def differences(was: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """A line for every fact that is not as it was. Lists of numbers may differ by rounding."""
    lines = []
    for name in dict.fromkeys([*was, *now]):
        before, after = (facts.get(name, "nothing") for facts in (was, now))
        if isinstance(before, list) and isinstance(after, list):
            if not _alike(before, after):
                lines.append(f"{name}: gives other numbers")
        elif before != after:
            lines.append(f"{name}: was {before!r}, is {after!r}")
    return lines


def _alike(was: list[float], now: list[float]) -> bool:
    return len(was) == len(now) and all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(was, now, strict=True))


@contextmanager
def keeping(
    saves: Saves,
    log: StepLog,
    learnt: Learnt,
    product: Callable[[], Mapping[str, Tensor]],
    generator: torch.Generator | None = None,
    parts: Mapping[str, Part] = MappingProxyType({}),
) -> Iterator[Iterator[int]]:
    """The numbers of the steps to do, each of which has to get into the log.

    log, learnt, generator and further parts are first put where the run stood that is gone on from. product gives what
    the user has so far. Whatever ends the block, the state is saved; an error's message then says where.
    """
    keeper = _Keeper(saves, log, learnt, product, generator, parts)
    try:
        yield keeper.steps()
    except BaseException as error:
        keeper.save_after(error)
        if not saves.story or not isinstance(error, Exception):
            raise
        if error.args != (str(error),):  # such as an OSError, whose words are not its first argument
            raise RuntimeError(f"{type(error).__name__}: {error}\n{saves.story}") from error
        error.args = (f"{error}\n{saves.story}",)  # the type stays: ComfyUI acts on it when memory is full
        raise
    keeper.save()


class _Keeper:
    """One run: its state at the last finished step, and the points it is saved at."""

    def __init__(
        self,
        saves: Saves,
        log: StepLog,
        learnt: Learnt,
        product: Callable[[], Mapping[str, Tensor]],
        generator: torch.Generator | None,
        parts: Mapping[str, Part],
    ):
        self.saves, self.log, self.learnt, self.product, self.generator = saves, log, learnt, product, generator
        self.parts = {"learnt": learnt, **parts}
        if saves.folder:
            remove_unfinished(saves.folder)
        if saves.resumed:
            self._restore(read_point(saves.resumed).tensors)
            saves.last = saves.resumed
        self._begin()

    def steps(self) -> Iterator[int]:
        while len(self.log.history) < self.log.steps:
            self._begin()
            yield len(self.log.history) + 1
            if self.saves.every and len(self.log.history) % self.saves.every == 0:
                self.save()
            if self.saves.should_stop():
                self.saves.is_stopped = True
                break
        self.save()

    def _begin(self) -> None:
        """Remember how the step began: it may not end."""
        self.learnt.touched.clear()
        self._finished = len(self.log.history)
        self._drawn = self.generator.get_state() if self.generator and self.saves.folder else None

    def save(self) -> None:
        """Save the run as it is after the last finished step; a disk that is full ends no training."""
        step, saves = len(self.log.history), self.saves
        if saves.folder is None or not step or (saves.last and saves.last.step == step):
            return
        point = Point(saves.folder, step)
        try:
            write_point(point, saves.as_file(self.product()), Saved(self._state(), saves.facts))
            remove_old_runs(saves.folder.parent, saves.folder)
        except (OSError, ValueError, RuntimeError) as error:
            saves.story = f"Step {step} could not be saved in {saves.folder}: {error}. {self._where()}"
            logger.warning("%s: %s", self.log.trainer, saves.story)
            return
        saves.last, saves.story = point, ""
        saves.story = self._where()

    def save_after(self, error: BaseException) -> None:
        """The same when the loop did not end well, if the state is that of a finished step."""
        if self.saves.folder is None:
            return
        if self.learnt.touched.is_set() and len(self.log.history) == self._finished:
            self.saves.story = f"The step that failed had begun to change the state. {self._where()}"
        else:
            self.save()
        if self.saves.last and not self.saves.story:
            self.saves.story = self._where()
        if not isinstance(error, Exception):  # Cancel, whose message nobody sees
            logger.warning("%s: cancelled. %s", self.log.trainer, self.saves.story)

    def _where(self) -> str:
        last = self.saves.last
        if last is None:
            return "Nothing was saved before."
        return (
            f"What was learnt by step {last.step} of {self.log.steps} is in {last.product}. To go on from there, set "
            f"resume to {last.name} (press R to see it in the list)."
        )

    def _state(self) -> dict[str, Tensor]:
        """The generator as it was before a step that did not end."""
        state = {f"{name}.{key}": x for name, part in self.parts.items() for key, x in part.state().items()}
        if self.generator is not None:
            is_finished = len(self.log.history) > self._finished
            state["generator"] = self.generator.get_state() if is_finished else self._drawn
        return state | {"log": _as_tensor(self.log.history)}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        history = _as_history(tensors["log"], self.log.steps)
        require(
            "steps", self.log.steps, f"at least {len(history)}, which the run is at", self.log.steps >= len(history)
        )
        self.log.restore(history)
        for name, part in self.parts.items():
            prefix = f"{name}."
            part.restore({key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)})
        if self.generator is not None:
            self.generator.set_state(tensors["generator"])


def _as_tensor(history: Sequence[StepReport]) -> Tensor:
    """A row for each step, (steps, 5), float64."""
    rows = [(KINDS.index(one.kind), one.loss, one.t, one.peak_bytes, one.elapsed_s) for one in history]
    return torch.tensor(rows, dtype=torch.float64)


def _as_history(log: Tensor, steps: int) -> list[StepReport]:
    return [
        StepReport(step, steps, KINDS[int(kind)], loss, int(t), int(peak_bytes), elapsed_s)
        for step, (kind, loss, t, peak_bytes, elapsed_s) in enumerate(log.tolist(), start=1)
    ]
