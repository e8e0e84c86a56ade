"""Many short trainings in one server: python tests/server/soak_server.py [COUNT]. Writes a section of RELIABILITY.md.

The three trainers take turns, each run with a seed of its own, so that nothing comes from ComfyUI's cache. Memory,
threads and open files are the server's own, from /proc; counted after a warm-up of a quarter of the runs.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401, E402, makes the pack importable
from comfyui import start_server  # noqa: E402
from pack.workflows.client import Server  # noqa: E402
from page import put  # noqa: E402
from short_runs import PACKS, TWINS, report, training  # noqa: E402
from soak import in_words  # noqa: E402


def measured(server: Server) -> dict[str, int]:
    """Memory after ComfyUI has forgotten results and history, as its own button does."""
    server.client.post("/history", {"clear": True})
    server.client.post("/free", {"free_memory": True})
    report(server.client.run(training(next(iter(TWINS)), "mini"), timeout_s=120))
    status = dict(line.split(":", 1) for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines())
    base = server.folders["base"]
    return {
        "resident_bytes": int(status["VmRSS"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "open_files": len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())),
        "files": sum(path.is_file() and path.suffix not in (".log", ".png") for path in base.rglob("*")),  # no previews
    }


def soak(count: int, folder: Path) -> dict:
    warm, trainers = {}, list(TWINS)
    with start_server(folder, custom_nodes=[PACKS]) as server:
        for number in range(1, count + 1):
            trained = report(server.client.run(training(trainers[number % 3], "mini", seed=number), timeout_s=120))
            if trained["steps"] != 2:
                raise RuntimeError(f"training {number}: {trained['steps']} steps")
            if number == max(30, count // 4):
                warm = measured(server)
        return {"trainings": count, "warm": warm, "end": measured(server)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        told = soak(int(sys.argv[1]) if len(sys.argv) > 1 else 200, Path(scratch))
    put("soak of a server", in_words(told))
