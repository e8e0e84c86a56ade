"""Training runs as the browser draws them: events while a page is open, and the whole story for one that opens later.

ComfyUI sends a message once, to the page that started the run. A page that was reloaded asks GET /edgetune/runs.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from aiohttp import web
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..trainers.run import StepReport

KEPT = 8  # runs; one of 100,000 steps takes 0.9 MB
KINDS = ("bp", "zo")


class Place(NamedTuple):
    """Where a run takes place. None where there is no server, and for prompts that no canvas sent."""

    node: str | None  # colon-joined ids inside sub-graphs, as ComfyUI has it
    workflow: str | None  # id of the graph it was started from
    prompt_id: str | None


class Run:
    """What is known of one run so far."""

    def __init__(self, place: Place, steps: int, planned_bytes: int | None, budget_bytes: int | None):
        self.place, self.steps = place, steps
        self.limits = {"planned_bytes": planned_bytes, "budget_bytes": budget_bytes}
        self.summary: str | None = None  # there when the run is over
        self._losses, self._kinds = array("d"), bytearray()
        self._last: tuple[StepReport | None, int] = (None, 0)  # and how many there are; one value, as threads differ

    def add(self, step: StepReport) -> None:
        """Take in the next step."""
        self._losses.append(step.loss)
        self._kinds.append(KINDS.index(step.kind))
        self._last = (step, len(self._kinds))

    def __len__(self) -> int:
        return self._last[1]

    def told(self, first: int = 0) -> dict:
        """The last step, and losses and kinds of all that were taken in, but the first few."""
        step, count = self._last
        latest = {} if step is None else {"loss": step.loss, "kind": step.kind, "t": step.t, "bytes": step.peak_bytes}
        return {
            **self.place._asdict(),
            "step": 0 if step is None else step.step,
            "first": 1 if step is None else step.step - count + 1,  # not 1 where a run was resumed
            "steps": self.steps,
            **latest,
            **self.limits,
            "elapsed_s": 0.0 if step is None else step.elapsed_s,
            "losses": [round(loss, 6) for loss in self._losses[first:count]],
            "kinds": [KINDS[kind] for kind in self._kinds[first:count]],
        }


class Runs:
    """The last run of each node, the newest KEPT of them."""

    def __init__(self):
        self._runs: dict[tuple, Run] = {}

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def begin(
        self, node: str | None, steps: int, planned_bytes: int | None = None, budget_bytes: int | None = None
    ) -> Run:
        """A new run in the place of the node's last one."""
        run = Run(current_place(node), steps, planned_bytes, budget_bytes)
        key = run.place[:2]
        self._runs.pop(key, None)
        self._runs[key] = run
        while len(self._runs) > KEPT:
            del self._runs[next(iter(self._runs))]
        return run

    def end(self, node: str | None, summary: str) -> None:
        """The node's run has come to its end."""
        run = self._runs.get(current_place(node)[:2])
        if run is not None:
            run.summary = summary


RUNS = Runs()  # one for the process, as there is one server


def current_place(node: str | None) -> Place:
    """Where the node that executes now stands."""
    context = get_executing_context()
    if context is None:
        return Place(node, None, None)
    for _, prompt_id, _, extra, *_ in _running():
        if prompt_id == context.prompt_id:
            graph = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
            return Place(node, graph.get("id"), prompt_id)
    return Place(node, None, context.prompt_id)


def add_routes() -> None:
    """GET /edgetune/runs: the last runs, oldest first, each as its events told it and whether it still goes on."""

    @PromptServer.instance.routes.get("/edgetune/runs")
    async def runs(request: web.Request) -> web.Response:
        running = {prompt_id for _, prompt_id, *_ in _running()}
        return web.json_response(
            [
                {
                    **run.told(),
                    "summary": run.summary,
                    "is_running": run.summary is None and run.place.prompt_id in running,
                }
                for run in RUNS
            ]
        )


def _running() -> list[tuple]:
    server = getattr(PromptServer, "instance", None)
    return [] if server is None else server.prompt_queue.get_current_queue_volatile()[0]
