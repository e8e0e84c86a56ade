"""Many short trainings in one process: python tests/soak.py [COUNT]. Prints memory, threads and files as JSON.

The three trainers' nodes take turns on tiny models. Counted after a warm-up of a quarter of the runs.
"""

import gc
import json
import sys
import tempfile
import threading
from pathlib import Path

import conftest  # noqa: F401, makes the pack and ComfyUI importable
import folder_paths
from pack.trainers.process_memory import resident_bytes
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


if __name__ == "__main__":
    print(json.dumps(soak(int(sys.argv[1]) if len(sys.argv) > 1 else 120)))
