"""Ctrl-C between a result and the next job, on a real Ray: python tests/sweep_ctrl_c.py FOLDER. Prints JSON.

Each job's result says whose it is. The sweep is run again until all jobs are done.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflows"))

import sweep_cluster

JOBS, MIB = 4, 100


class Signer:
    """A worker whose results have its job's number for seconds."""

    def start(self, work) -> None:
        self.untold = [("began", {"machine": "here", "gpu": None}), ("done", result(float(work.name)))]

    def messages(self) -> list[tuple[str, dict]]:
        told, self.untold = self.untold, []
        return told

    def stop(self) -> None:
        self.untold.append(("stopped", {}))

    def close(self) -> None:
        pass


def result(seconds: float) -> dict:
    return {"seconds": seconds, "reports": [], "pictures": {}, "files": {}, "models": []}


def main() -> None:
    stops = 0
    folder = Path(sys.argv[1])
    sweep_cluster.folder_on_path()
    sweep_cluster.connect(None, MIB, 2)
    import ray
    from sweep_jobs import Job, Request
    from sweep_placement import Packing
    from sweep_run import Sweep
    from sweep_table import Kept

    class Interrupted(Kept):
        def point(self, job: Job) -> None:
            """Asked for when a worker that has told a result is given its next job."""
            if self.rows.rows and not stops:
                os.kill(os.getpid(), signal.SIGINT)

    jobs = [Job(f"key{n}", str(n), Request("", None, "", {}), {}, "", []) for n in range(JOBS)]
    while True:
        kept = Interrupted(folder, {})
        missing = [(job, MIB) for job in jobs if job.key not in kept.rows]
        if not missing:
            break
        try:
            Sweep(kept, Packing(sweep_cluster.places(1)), (Signer, ())).run(missing)
        except KeyboardInterrupt:
            stops += 1
    ray.shutdown()
    print(json.dumps({"stops": stops, "seconds": {row["name"]: row["seconds"] for row in kept.rows.rows.values()}}))


if __name__ == "__main__":
    main()
