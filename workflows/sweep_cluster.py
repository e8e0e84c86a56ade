"""The Ray that a sweep runs on: one that starts here by itself, or a cluster, and the memory its machines offer."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from runtime import SetupError
from sweep_placement import Place, Share

RESOURCE = "edgetune_bytes"  # of a Ray node: memory for workers, in MiB
CONNECT_S = 10
OBJECTS_BYTES = 2**30  # for messages; larger ones go to disk
HOW = (
    "It has to be HOST:PORT as `ray start --head` says it, and this machine has to be one of the cluster's, with the "
    "same ~/.ray/auth_token if it has one"
)
FREE = (
    "import json, torch\nprint(json.dumps([torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]))"
)


def check_ray() -> None:
    """Raise SetupError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise SetupError(f"A sweep runs on Ray, which is not installed here: {sys.executable} -m pip install ray")


def connect(address: str | None, memory_mib: int | None, cpus: int) -> None:
    """Connect to the cluster at HOST:PORT, or start Ray here, with memory_mib, or else what is free, for workers."""
    _check_answer(address)
    _show_token(address)
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        here = {"num_cpus": cpus, "resources": {RESOURCE: float(memory_mib or free_mib())}}
        store = {"object_store_memory": OBJECTS_BYTES, "include_dashboard": False}
        ray.init(address="local", **here, **store, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ValueError, OSError, RuntimeError) as error:
        raise SetupError(f"--address {address}: {error}\n{HOW}") from error


def _show_token(address: str | None) -> None:
    """Let Ray show the token of this machine where a cluster asks for one: by itself it does so only to a local one.

    `ray start --head` of Ray 2.60 asks for the token if there is one, and a local Ray leaves one behind. Shown to a
    cluster that does not ask, it keeps workers from starting.
    """
    if address is None or "RAY_AUTH_MODE" in os.environ or not (Path.home() / ".ray" / "auth_token").exists():
        return
    ask = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    answer = subprocess.run(ask, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True)
    if "AuthenticationError" in answer.stderr:
        os.environ["RAY_AUTH_MODE"] = "token"


def _check_answer(address: str | None) -> None:
    """Raise SetupError where nothing listens: Ray itself would try for minutes."""
    if address in (None, "auto"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (ValueError, OSError) as error:
        raise SetupError(f"--address {address}: no Ray cluster answers there ({error}). {HOW}") from error


def free_mib() -> int:
    """Memory for workers here: of all GPUs, or of the machine where there is none."""
    result = subprocess.run([sys.executable, "-c", FREE], capture_output=True, text=True)
    if result.returncode:
        raise SetupError(f"{sys.executable} cannot import torch:\n{result.stderr.strip().splitlines()[-1]}")
    free = json.loads(result.stdout)
    return (len(free) * min(free) if free else psutil.virtual_memory().available) >> 20


def places(cpus_per_worker: int) -> list[Place]:
    """What the machines that are up offer: each of their GPUs, or the machine."""
    import ray

    found = []
    for node in ray.nodes():
        offered = node["Resources"]
        if not node["Alive"] or not offered.get(RESOURCE):
            continue
        gpus = int(offered.get("GPU", 0))
        slots = int(offered.get("CPU", 0)) // cpus_per_worker
        for gpu in range(gpus) if gpus else (None,):
            parts = max(1, gpus)
            found.append(Place(node["NodeID"], gpu, int(offered[RESOURCE]) // parts, max(1, slots // parts)))
    return found


def start_worker(kind: type, arguments: Sequence, share: Share, cpus: int):
    """An actor of that class on the share's node, which Ray gives so much memory and no more."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return (
        ray.remote(kind)
        .options(
            num_cpus=cpus,
            num_gpus=0 if share.place.gpu is None else -(-10_000 * share.mib // share.place.mib) / 10_000,
            resources={RESOURCE: share.mib},
            scheduling_strategy=NodeAffinitySchedulingStrategy(share.place.node, soft=False),
        )
        .remote(*arguments)
    )


def folder_on_path() -> None:
    """Let the workers that Ray starts here import this folder's files."""
    here = str(Path(__file__).resolve().parent)
    paths = os.environ.get("PYTHONPATH", "")
    if here not in paths.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, paths)))
