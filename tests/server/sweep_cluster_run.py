"""A sweep on a Ray cluster of several nodes on this machine, one of which is killed: python sweep_cluster_run.py ...

The arguments are the sweep's own, --address excepted. The node is killed once a job on it has been saved on the way.
Prints what sweep.py prints, and at last its exit code.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

SWEEP = Path(__file__).resolve().parents[2] / "workflows/sweep.py"
NODE = {"num_cpus": 1, "resources": {"edgetune_bytes": 4096}, "object_store_memory": 100 * 2**20}
NODE |= {"include_dashboard": False}


def main() -> None:
    out = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "resources": {}})
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    try:
        sweep = subprocess.Popen([sys.executable, str(SWEEP), *sys.argv[1:], "--address", cluster.address])
        deadline = time.monotonic() + 240
        while not (done(out) and saved(out)):
            if sweep.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("no job was saved on the way")
            time.sleep(0.02)
        cluster.remove_node(nodes[0], allow_graceful=False)
        print(f"a node was killed when {len(done(out))} jobs were done", flush=True)
        print(f"exit code {sweep.wait(300)}", flush=True)
    finally:
        if sweep.poll() is None:
            sweep.send_signal(signal.SIGTERM)
            sweep.wait(60)
        cluster.shutdown()


def done(out: Path) -> list[dict]:
    file = out / "rows.csv"
    return list(csv.DictReader(file.open())) if file.exists() else []


def saved(out: Path) -> list[Path]:
    return list((out / "saved").glob("*/point"))


if __name__ == "__main__":
    os.environ["EDGETUNE_PYTHON"] = sys.executable
    main()
