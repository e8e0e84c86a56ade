"""A run as people watch it: ComfyUI's progress bar, a line of text on the node, events to the browser."""

import time
from collections.abc import Callable

from comfy import model_management
from comfy.utils import ProgressBar
from server import PromptServer

from ..trainers.run import StepReport

EVENT_INTERVAL_S = 0.1  # at most ten messages a second


def step_reporter(node_id: str | None, steps: int) -> Callable[[StepReport], None]:
    """A callback that shows each step and raises ComfyUI's own exception when the user has pressed Cancel."""
    bar = ProgressBar(steps, node_id=node_id)
    last_sent = 0.0

    def report(step: StepReport) -> None:
        nonlocal last_sent
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(step.step)
        now = time.perf_counter()
        if now - last_sent < EVENT_INTERVAL_S and step.step < steps:
            return
        last_sent = now
        _send_step(node_id, step)

    return report


def cache_reporter(node_id: str | None) -> Callable[[int, int], None]:
    """A callback that shows how many samples are stored, of how many; it hears of Cancel as step_reporter() does."""
    bar = ProgressBar(1, node_id=node_id)
    last_sent = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last_sent
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)
        now = time.perf_counter()
        if now - last_sent >= EVENT_INTERVAL_S or done == total:
            last_sent = now
            _send_text(node_id, f"stage 1 of 2 \N{MIDDLE DOT} what the centre gives \N{MIDDLE DOT} {done}/{total}")

    return report


def send_done(node_id: str | None, summary: str) -> None:
    """Tell the browser, and the line of text on the node, that the run is over."""
    _send("edgetune.done", {"node": node_id, "summary": summary})
    _send_text(node_id, summary)


def _send_step(node_id: str | None, step: StepReport) -> None:
    _send(
        "edgetune.step",
        {
            "node": node_id,
            "step": step.step,
            "steps": step.steps,
            "loss": step.loss,
            "kind": step.kind,
            "t": step.t,
            "bytes": step.peak_bytes,
        },
    )
    per_step = step.elapsed_s / step.step
    left = (step.steps - step.step) * per_step
    _send_text(
        node_id,
        f"step {step.step}/{step.steps} \N{MIDDLE DOT} {step.kind.upper()} \N{MIDDLE DOT} loss {step.loss:.4f} "
        f"\N{MIDDLE DOT} {per_step:.2f} s/step \N{MIDDLE DOT} {left / 60:.1f} min left",
    )


def _send(event: str, data: dict) -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data, server.client_id)


def _send_text(node_id: str | None, text: str) -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id, server.client_id)
