"""A run as people watch it: ComfyUI's progress bar, and events that web/training.js draws."""

import time
from collections.abc import Callable

from comfy import model_management
from comfy.utils import ProgressBar
from PIL import Image
from server import PromptServer

from ..trainers.run import StepReport
from .host_runs import RUNS, current_place

PICTURE_PX = 512  # side of a picture as it is sent, at most
EVENT_INTERVAL_S = 0.1  # at most ten messages a second


def step_reporter(
    node_id: str | None,
    steps: int,
    *,
    picture: Callable[[StepReport], Image.Image | None] = lambda step: None,
    planned_bytes: int | None = None,
    budget_bytes: int | None = None,
) -> Callable[[StepReport], None]:
    """A callback that shows each step and raises ComfyUI's own exception when the user has pressed Cancel.

    picture gives what to show on the node after a step, if there is something new. planned_bytes and budget_bytes are
    what the memory of the run is shown against.
    """
    bar = ProgressBar(steps, node_id=node_id)
    run = RUNS.begin(node_id, steps, planned_bytes, budget_bytes)
    last_sent, told = 0.0, 0

    def report(step: StepReport) -> None:
        nonlocal last_sent, told
        model_management.throw_exception_if_processing_interrupted()
        drawn = picture(step)
        bar.update_absolute(step.step, preview=drawn and ("JPEG", drawn, PICTURE_PX))
        run.add(step)
        now = time.perf_counter()
        if now - last_sent < EVENT_INTERVAL_S and step.step < steps:
            return
        _send("edgetune.step", run.told(told))
        last_sent, told = now, len(run)

    return report


def cache_reporter(node_id: str | None) -> Callable[[int, int], None]:
    """A callback that shows how many samples are stored, of how many; it hears of Cancel as step_reporter() does."""
    bar = ProgressBar(1, node_id=node_id)
    place = current_place(node_id)
    last_sent = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last_sent
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)
        now = time.perf_counter()
        if now - last_sent >= EVENT_INTERVAL_S or done == total:
            last_sent = now
            text = f"stage 1 of 2 \N{MIDDLE DOT} what the centre gives \N{MIDDLE DOT} {done}/{total}"
            _send("edgetune.stage", {**place._asdict(), "text": text})

    return report


def send_stage(node_id: str | None, text: str) -> None:
    """Tell the browser what a run is about."""
    _send("edgetune.stage", {**current_place(node_id)._asdict(), "text": text})


def send_done(node_id: str | None, summary: str) -> None:
    """Tell the browser that the run is over."""
    RUNS.end(node_id, summary)
    _send("edgetune.done", {**current_place(node_id)._asdict(), "summary": summary})


def _send(event: str, data: dict) -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data, server.client_id)
