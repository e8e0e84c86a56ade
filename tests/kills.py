"""Runs that are killed while they save: python tests/kills.py FOLDER [COUNT]. Prints what was found as JSON.

Each saves after every step, so most of its time goes into saving. It is a program of its own because it forks.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import conftest  # noqa: F401, makes the pack importable
import torch
from every_trainer import SELECTIVE, Trainer
from pack.trainers.resume import Saves
from pack.trainers.saving import all_points, read_point
from safetensors import safe_open

STEPS = 40
TRAINER = Trainer("selective", replace(SELECTIVE, strategy="random", steps=STEPS))


def killed(folder: Path, after_s: float) -> None:
    """One run in a process of its own, killed so long after its first save."""
    child = os.fork()
    if child == 0:
        TRAINER.run(folder, Saves(folder / "runs" / "one", 1))
        os._exit(0)
    while not all_points(folder / "runs"):
        time.sleep(0.001)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def problems(folder: Path, whole: dict) -> list[str]:
    """What is wrong with the files that are left, and with going on from them."""
    found = []
    for path in (folder / "runs" / "one").glob("step_*"):
        with safe_open(path, "pt") as file:
            found += [] if list(file.keys()) else [f"{path.name} is empty"]
    points = all_points(folder / "runs")
    if not points:
        return [*found, "no point is left"]
    for point in points:
        read_point(point)
    resumed, _ = TRAINER.run(folder, Saves(points[0].folder, 0, points[0]))
    same = all(torch.equal(resumed[key], whole[key]) for key in whole)
    left = [path.name for path in points[0].folder.glob(".*")]
    return found + ([] if same else ["other bits"]) + [f"left behind: {name}" for name in left]


def main() -> None:
    base, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    torch.set_num_threads(1)
    whole, _ = TRAINER.run(base / "whole")
    chance, found, steps = random.Random(0), [], []
    for number in range(count):
        folder = base / str(number)
        killed(folder, chance.uniform(0, 0.3))
        steps.append(all_points(folder / "runs")[0].step)
        found += problems(folder, whole)
    print(json.dumps({"kills": count, "at_steps": steps, "problems": found}))


if __name__ == "__main__":
    main()
