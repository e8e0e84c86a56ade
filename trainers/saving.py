"""Points of a run on disk: what was learnt so far, and all it takes to go on from there.

A point is two safetensors files: step_000100.safetensors, a LoRA or an embedding to use as it is, and
step_000100.state.safetensors, the state of the run, with facts about it as JSON in the metadata. Each is whole or not
there, and a point before is removed only once the new one is complete.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .atomic import replacing
from .weight_files import write_safetensors

KEPT_POINTS = 2  # of a run: should the newest have caught the first steps of an explosion, there is one before it
KEPT_RUNS = 10
FACTS = "edgetune.state"  # key of the metadata
STATE = re.compile(r"step_(\d{6,})\.state\.safetensors")
OF_SAFETENSORS = r"\.tmp[A-Za-z0-9]{6}"  # since 0.8 it writes a file under such a name first
UNFINISHED = re.compile(rf"\.step_\d{{6,}}(\.state)?\.safetensors\.part|{OF_SAFETENSORS}")
FILE = re.compile(rf"step_\d{{6,}}(\.state)?\.safetensors|{UNFINISHED.pattern}")  # all that this module ever writes


class Point(NamedTuple):
    """A step of a run that can be gone on from."""

    folder: Path
    step: int

    @property
    def name(self) -> str:
        """As `resume` takes it."""
        return f"{self.folder.name}/step_{self.step:06}"

    @property
    def product(self) -> Path:
        """The LoRA or embedding."""
        return self.folder / f"step_{self.step:06}.safetensors"

    @property
    def state(self) -> Path:
        return self.folder / f"step_{self.step:06}.state.safetensors"


class Product(NamedTuple):
    """A LoRA or embedding as its file has it."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


class Saved(NamedTuple):
    """What a point holds."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]


def write_point(
    point: Point,
    product: Product,
    saved: Saved,
) -> None:
    """Write the point, then remove the run's points that are too many.

    Raises ValueError, and writes nothing, where a number is not finite.
    """
    for key, tensor in (*product.tensors.items(), *saved.tensors.items()):
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{key} is no longer finite")
    point.folder.mkdir(parents=True, exist_ok=True)
    _write(point.product, product.tensors, product.metadata)
    _write(point.state, saved.tensors, {FACTS: json.dumps(saved.facts)})
    for old in points(point.folder)[KEPT_POINTS:]:
        old.state.unlink(missing_ok=True)  # first: a point is there if its state is
        old.product.unlink(missing_ok=True)


def read_point(point: Point) -> Saved:
    """What write_point() wrote. Raises ValueError where the file is damaged or not one of ours."""
    try:
        with safe_open(point.state, "pt") as file:
            facts = json.loads((file.metadata() or {})[FACTS])
            return Saved({key: file.get_tensor(key) for key in file.keys()}, facts)  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"resume: {point.state} cannot be read ({error}); choose another point, or off") from error


def points(folder: Path) -> list[Point]:
    """The points of a run, the newest first."""
    found = (STATE.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted((Point(folder, int(match[1])) for match in found if match), reverse=True)


def all_points(root: Path) -> list[Point]:
    """The points of all runs, those of the run that was written last first."""
    return [point for run in _runs(root) for point in points(run)]


def remove_old_runs(root: Path, current: Path) -> None:
    """Remove what belongs to the oldest runs beyond KEPT_RUNS, current being one of those to keep.

    Files of other names stay, and their folder with them.
    """
    others = [run for run in _runs(root) if run != current]
    for run in others[KEPT_RUNS - 1 :]:
        for path in run.iterdir():
            if FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        if not any(run.iterdir()):
            run.rmdir()


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed had half written."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _runs(root: Path) -> list[Path]:
    folders = [path for path in root.iterdir() if points(path)] if root.is_dir() else []
    return sorted(folders, key=lambda path: (points(path)[0].state.stat().st_mtime_ns, path.name), reverse=True)


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    with replacing(path) as partial:
        write_safetensors(tensors, partial, metadata)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # or the new name could outlive a power cut, and its contents not
