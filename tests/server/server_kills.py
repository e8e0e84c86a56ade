"""Servers killed (-9) while they save: python tests/server/server_kills.py FOLDER [COUNT]. Prints its findings as JSON.

Trainers take turns. Each is killed at a random save, gone on with in the next server, and compared with a run that was
never killed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401, E402, makes the pack importable
import torch  # noqa: E402
from comfyui import start_server  # noqa: E402
from pack.trainers.saving import all_points, read_point  # noqa: E402
from pack.workflows.client import Server  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from short_runs import PACKS, TWINS, report, training  # noqa: E402

STEPS = 16


def killed(server: Server, prompt: dict, after_saves: int) -> None:
    """The server, in the middle of writing a file after this many saves, or somewhere between two of them."""
    runs = server.folders["output"] / "edgetune"
    server.client.queue(prompt)
    seen, deadline = set(), time.monotonic() + 600
    while time.monotonic() < deadline and server.process.poll() is None:
        seen |= {path.name for path in runs.glob("*/*.part")}
        if len(seen) >= 2 * after_saves and (next(runs.glob("*/*.part"), None) or after_saves % 2):
            break
        time.sleep(0.0005)
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def problems(folder: Path) -> list[str]:
    """Files that are there and not whole, and runs without a point."""
    found = []
    for path in (folder / "output" / "edgetune").glob("*/step_*"):
        if not load_file(path):
            found.append(f"{path} is empty")
    for run in (folder / "output" / "edgetune").iterdir():
        if not [read_point(point) for point in all_points(run.parent) if point.folder == run]:
            found.append(f"{run.name} has no point")
    return found


def product(server: Server, prompt: dict) -> dict[str, torch.Tensor]:
    return load_file(report(server.client.run(prompt, timeout_s=600))["files"][0])


def main() -> None:
    base, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    chance, found, half_written, at_steps, results = random.Random(0), [], 0, [], {}
    waiting: dict | None = None  # the run that was killed last, set to go on
    for number in range(count + 1):
        with start_server(base, custom_nodes=[PACKS]) as server:
            if waiting:
                results[number - 1] = product(server, waiting)
                left = [str(path) for path in (base / "output").rglob(".*")]
                found += [f"left behind: {path}" for path in left]
            if number == count:
                for kill, resumed in results.items():
                    whole = product(server, prompt_of(kill))
                    same = whole.keys() == resumed.keys() and all(
                        torch.equal(whole[key], resumed[key]) for key in whole
                    )
                    found += [] if same else [f"kill {kill}: other bits"]
                break
            before = set((base / "output" / "edgetune").glob("*"))
            waiting = prompt_of(number)
            killed(server, waiting, chance.randint(2, STEPS // 2))
            (run,) = set((base / "output" / "edgetune").glob("*")) - before
            half_written += bool(list(run.glob(".*.part")))
            found += problems(base)
            point = next(point for point in all_points(run.parent) if point.folder == run)
            at_steps.append(point.step)
            waiting["trainer"]["inputs"]["resume"] = point.name
    print(json.dumps({"kills": count, "half_written": half_written, "at_steps": at_steps, "problems": found}))


def prompt_of(number: int) -> dict:
    """Of a kill: the trainers in turn, and a seed that no other has."""
    return training(list(TWINS)[number % len(TWINS)], "mini", steps=STEPS, save_every=1, seed=number)


if __name__ == "__main__":
    main()
