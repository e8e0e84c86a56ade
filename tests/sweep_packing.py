"""Jobs that only sleep, on a real Ray with a made-up 24 GB: python tests/sweep_packing.py FOLDER. Prints JSON.

What Ray says is reserved is sampled beside it, from another thread: used and waiting MiB, and by how many workers.
"""

import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflows"))

import sweep_cluster

GPU_MIB = 24 * 1024
SIZES = (3_100, 4_700, 7_300, 11_000)  # MiB
JOBS, SECONDS = 48, 0.25
POISONED, DEADLY = "5", "7"


class Sleeper:
    """A worker that makes nothing. One job is of no use, and of another it dies, once."""

    def __init__(self, folder: str):
        self.folder, self.work = Path(folder), None

    def start(self, work) -> None:
        self.work, self.has_begun = work, False

    def messages(self) -> list[tuple[str, dict]]:
        if not self.has_begun:
            self.has_begun = True
            return [("began", {"machine": "here", "gpu": None})]
        if self.work.name == POISONED:
            return [("failed", {"error": "no photos"})]
        lost = self.folder / "lost"
        if self.work.name == DEADLY and not lost.exists():
            lost.touch()
            raise RuntimeError("the server died")
        time.sleep(SECONDS)
        return [("done", {"seconds": SECONDS, "reports": [], "pictures": {}, "files": {}, "models": []})]

    def close(self) -> None:
        pass


def main() -> None:
    folder = Path(sys.argv[1])
    sweep_cluster.folder_on_path()
    sweep_cluster.connect(None, GPU_MIB, 8)
    import ray
    from sweep_jobs import Job, Request
    from sweep_placement import Packing
    from sweep_run import Sweep
    from sweep_table import Kept

    jobs = [Job(f"key{n}", str(n), Request("", None, "", {}), {}, "", []) for n in range(JOBS)]
    kept, packing = Kept(folder, {}), Packing(sweep_cluster.places(1))
    samples, is_over = [], threading.Event()

    def sample() -> None:
        while not is_over.wait(0.05):
            waiting = [mib for mib, queue in list(packing.waiting.items()) for _ in queue]
            free = ray.available_resources().get(sweep_cluster.RESOURCE, 0.0)
            samples.append((GPU_MIB - free, len(waiting), len(packing.shares)))

    watcher = threading.Thread(target=sample)
    watcher.start()
    outcome = Sweep(kept, packing, (Sleeper, (str(folder),))).run([(j, SIZES[n % 4]) for n, j in enumerate(jobs)])
    is_over.set()
    watcher.join()
    ray.shutdown()
    tries = {row["name"]: row["tries"] for row in kept.rows.rows.values()}
    told = {"samples": samples, "done": outcome.done, "failed": outcome.failed, "tries": tries}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
