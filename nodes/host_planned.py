"""A trainer's run as it is planned: with which settings, against which limits, and what to say if memory runs out."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..trainers.config import OFF, PRESETS
from ..trainers.out_of_memory import explanation, is_out_of_memory
from ..trainers.photos import Subject
from ..trainers.plan import Plan
from ..trainers.planning import TrainerConfig
from ..trainers.presets import settled
from ..trainers.report import Circumstances
from ..trainers.resume import Saves
from ..trainers.run import StepReport
from ..trainers.saving import Product
from . import host, host_plan, host_ranks, host_saves, host_ui

logger = logging.getLogger(__name__)


class PlannedRun(NamedTuple):
    """The settings to train with, and the plan they come from."""

    config: TrainerConfig
    plan: Plan
    planner: host_plan.Planner
    node_id: str | None

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Running out of memory inside the block is told with what was planned and what would need less."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise explanation(error, self.config, self.plan, self.planner) from error

    @contextmanager
    def saved(
        self,
        trainer: str,
        subject: Subject,
        save_every: int,
        resume: str,
        as_file: Callable[[Mapping[str, Tensor]], Product],
    ) -> Iterator[Saves]:
        """explained(), and host_saves.saved_run() of the settings as they were chosen, whatever the budget was."""
        settings = replace(self.config, budget_gb=0.0, preset=OFF)
        with (
            self.explained(),
            host_saves.saved_run(self.node_id, trainer, settings, subject, save_every, resume, as_file) as saves,
        ):
            yield saves

    def on_step(
        self, picture: Callable[[StepReport], Image.Image | None] = lambda step: None
    ) -> Callable[[StepReport], None]:
        """host_ui.step_reporter() of this run."""
        limits = dict(planned_bytes=self.plan.peak_bytes, budget_bytes=self.plan.budget_bytes)
        return host_ui.step_reporter(self.node_id, self.config.steps, picture=picture, **limits)

    def circumstances(self, subject: Subject, waiting_bytes: int) -> Circumstances:
        """host.circumstances() with the plan."""
        given = host.circumstances(self.planner.facts, subject, waiting_bytes)
        return given._replace(planned_peak_bytes=self.plan.peak_bytes, chosen=self.plan.choice)


def planned_run(
    node_id: str | None, config: TrainerConfig, model: ModelPatcher, subject: Subject, clip: CLIP | None = None
) -> PlannedRun:
    """Join the other ranks, plan the run, and tell log and browser; the clip is the one that stays for a token.

    Raises ValueError where the run cannot keep to config.budget_gb or config.preset.
    """
    host_ranks.join()
    facts, size = host_plan.facts_for(model, config), host_plan.largest(subject)
    planner = host_plan.Planner(model, facts, size, subject.resolution, clip, subject.is_masked)
    config, plan = settled(config, planner, len(subject.photos))
    for line in filter(None, (plan.summary(), plan.choice, plan.advice)):
        logger.log(logging.WARNING if plan.fits is False else logging.INFO, line)
    host_ui.send_stage(node_id, plan.summary())
    return PlannedRun(config, plan, planner, node_id)


def preset(settings: str, per_photo: str = "steps from the number of photos, ") -> io.Input:
    """Advanced, the last input of a trainer; settings names those that it sets first."""
    return io.Combo.Input(
        "preset",
        options=list(PRESETS),
        default=OFF,
        optional=True,
        advanced=True,
        tooltip=f"Memory to make the best of: {per_photo}{settings}, and what budget_gb would choose, as far as they "
        "stand at their defaults; the report says what was chosen. On a GPU the memory has its own context in it.",
    )


def budget(settings: str) -> io.Input:
    """Advanced; settings names those the plan may choose."""
    return io.Float.Input(
        "budget_gb",
        default=0.0,
        min=0.0,
        max=1024.0,
        step=0.01,
        optional=True,
        advanced=True,
        tooltip="Memory the run may take, 1 GB being 1,024 MiB; on a GPU its own context counts. 0 sets no limit. The "
        f"plan then chooses among {settings}, as far as they stand at their defaults, what fits in the least time, and "
        "says so in the report; where nothing fits, the run does not start.",
    )
