"""Many short trainings in one process: python tests/soak.py [COUNT]. Writes a section of tests/RELIABILITY.md.

The three trainers' nodes take turns on tiny models. Counted after a warm-up of a quarter of the runs.
"""

import gc
import sys
import tempfile
import threading
from pathlib import Path

import conftest  # noqa: F401, makes the pack and ComfyUI importable
import folder_paths
from pack.trainers.process_memory import resident_bytes
from page import MACHINE, put
from test_host_untouched import SETTINGS, Ending, Models


def measured(folder: Path) -> dict[str, int]:
    gc.collect()
    files = sum(path.is_file() for path in folder.rglob("*"))
    return {"resident_bytes": resident_bytes(), "threads": threading.active_count(), "files": files}


def soak(count: int) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder_paths.output_directory, folder_paths.temp_directory = str(folder / "output"), str(folder / "temp")
        models, nodes, warm = Models(), list(SETTINGS), None
        for number in range(count):
            models.run(nodes[number % len(nodes)], Ending(), steps=2)
            if number == max(12, count // 4):
                warm = measured(folder)
        models.check()
        return {"trainings": count, "warm": warm, "end": measured(folder)}


def in_words(told: dict) -> str:
    """What was measured after the warm-up and at the end."""
    warm, end = told["warm"], told["end"]
    first, last = (state["resident_bytes"] / 2**20 for state in (warm, end))
    lines = [
        f"{told['trainings']} short trainings, the three trainers in turn, {MACHINE}:\n",
        "| | warm | end |",
        "|---|---|---|",
    ]
    lines.append(f"| resident memory, MiB | {first:,.1f} | {last:,.1f} ({last / first - 1:+.2%}) |")
    counted = [name for name in warm if name != "resident_bytes"]
    return "\n".join([*lines, *(f"| {name.replace('_', ' ')} | {warm[name]} | {end[name]} |" for name in counted)])


if __name__ == "__main__":
    put("soak", in_words(soak(int(sys.argv[1]) if len(sys.argv) > 1 else 120)))
