"""Where runs are saved, in ComfyUI's output folder, and the button that ends one early and keeps it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event

import folder_paths
from aiohttp import web
from comfy_api.latest import io
from server import PromptServer
from torch import Tensor

from ..trainers.config import HollowConfig, SelectiveConfig, TokenConfig
from ..trainers.photos import Subject, subject_facts
from ..trainers.resume import Saves
from ..trainers.saving import Point, Product, all_points

OFF = "off"
STOP = "/edgetune/stop"  # POST {"node": "7"}

_running: dict[str, Event] = {}  # by node id, of the runs at this moment: a request has to find its run


def inputs() -> list[io.Input]:
    """The inputs of a trainer that saves its runs."""
    return [
        io.Int.Input(
            "save_every",
            default=100,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Steps between two saves of the run into output/edgetune, whence resume can go on. 0 saves only "
            "when the run ends, however it ends. The last two saves of the last ten runs are kept.",
        ),
        io.Combo.Input(
            "resume",
            options=[OFF, *_points()],
            default=OFF,
            optional=True,
            advanced=True,
            tooltip="A saved run to go on from, as if it had never stopped; the newest stands first, press R to see "
            "new ones. Model, photos and settings have to be the same; steps may be more, where the choice of steps "
            "does not depend on it.",
        ),
    ]


@contextmanager
def saved_run(
    node_id: str | None,
    trainer: str,
    config: SelectiveConfig | HollowConfig | TokenConfig,
    subject: Subject,
    save_every: int,
    resume: str,
    as_file: Callable[[Mapping[str, Tensor]], Product],
) -> Iterator[Saves]:
    """For a trainer: where to save its run, or to go on with one. While in the block, /edgetune/stop can end it.

    Raises ValueError where settings or subject are not those of the run to go on from, naming each.
    """
    point, stop = None, Event()
    if resume != OFF:
        known = _points()
        if resume not in known:
            raise ValueError(f"resume: there is no saved run {resume!r}; there are: {', '.join(known) or 'none'}")
        point = known[resume]
    saves = Saves(point.folder if point else _new_folder(trainer), save_every, point, as_file, stop.is_set)
    saves.check("settings", {"trainer": trainer, **config.facts()})
    saves.check("subject", subject_facts(subject))
    if node_id is not None:
        _running[node_id] = stop
    try:
        yield saves
    finally:
        _running.pop(node_id, None)


def _root() -> Path:
    return Path(folder_paths.get_output_directory()) / "edgetune"


def _points() -> dict[str, Point]:
    return {point.name: point for point in all_points(_root())}


def _new_folder(trainer: str) -> Path:
    name = f"{trainer}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    number, folder = 1, _root() / name
    while folder.exists():
        number += 1
        folder = _root() / f"{name}_{number}"
    return folder


def add_routes() -> None:
    """Answer requests to end a run early; to be called once, while ComfyUI starts."""
    PromptServer.instance.routes.post(STOP)(_stop)


async def _stop(request: web.Request) -> web.Response:
    """End the run of a node after the step it is at; its results so far are its results."""
    try:
        node_id = (await request.json())["node"]
    except (ValueError, TypeError, KeyError):
        node_id = None
    if not isinstance(node_id, str):
        return web.Response(status=400, text='needs JSON such as {"node": "7"}, the id of the trainer\'s node')
    if node_id not in _running:
        running = ", ".join(_running) or "none"
        return web.Response(status=404, text=f"no training runs in node {node_id!r}; nodes that train now: {running}")
    _running[node_id].set()
    return web.json_response({"node": node_id})
