"""A cluster as the README starts it, with Ray's commands and a token; sweeps of the other two trainers on it."""

import csv
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pack.workflows.runtime import ROOT, find_comfyui
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

RAY = Path(sys.executable).with_name("ray")
HOLLOWED = "EdgeTune_HollowedNetTrainer.steps=2 EdgeTune_HollowedNetTrainer.cache_samples=2"
TOKEN = "EdgeTune_ZOTextualInversion.steps=2 EdgeTune_ZOTextualInversion.eval_every=0"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """With a home of its own, where the token is, and a ComfyUI that is not the one the checkout fetches for itself."""
    (tmp_path / "home").mkdir()
    comfyui = tmp_path / "ComfyUI"
    comfyui.symlink_to(find_comfyui(), target_is_directory=True)
    own = {"HOME": str(tmp_path / "home"), "COMFYUI_PATH": str(comfyui), "EDGETUNE_PYTHON": sys.executable}
    return {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | own


@pytest.fixture
def address(tmp_path, environment) -> Iterator[str]:
    """Of a cluster of two nodes, started by the README's commands; in the foreground, to be ended one by one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        first = f"127.0.0.1:{free.getsockname()[1]}"
    make_token, head, other = re.findall(r"^    \.venv/bin/ray (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    subprocess.run([RAY, *make_token.split()], env=environment, check=True, capture_output=True)
    started, log = [], (tmp_path / "ray.log").open("w")
    try:
        for line in (f"{head} --node-ip-address 127.0.0.1", other):
            words = line.replace("FIRST:6379", first).replace("6379", first.rpartition(":")[2]).split(" --resources ")
            resources, *more = words[1].split("' ")
            command = [RAY, *words[0].split(), "--resources", resources.strip("'"), *" ".join(more).split()]
            command += ["--num-cpus", "1", "--object-store-memory", str(100 * 2**20), "--block"]
            mode = environment | {"RAY_AUTH_MODE": "token"}
            started.append(subprocess.Popen(command, env=mode, stdout=log, stderr=log))
            wait_for(tmp_path / "ray.log", len(started))
        yield first
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(60)
        log.close()


def wait_for(log: Path, count: int) -> None:
    """Until so many nodes run."""
    deadline = time.monotonic() + 100
    while log.read_text().count("Ray runtime started") < count:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def sweep(out: Path, toys: list[str], options: list[str], environment: dict) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(ROOT / "workflows/sweep.py"),
        str(out),
        *toys,
        "--models",
        str(out / "models"),
        *options,
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def test_the_readmes_cluster_sweeps_hollowed_nets_and_tokens_for_who_has_its_token(tmp_path, environment, address):
    jobs = [("pocket_train_hollowed", HOLLOWED, ["robot", "clown"]), ("pocket_train_embedding", TOKEN, ["robot"])]
    for workflow, settings, toys in jobs:
        out = tmp_path / workflow
        options = ["--workflow", workflow, "--address", address, "--set", *settings.split()]
        ran = sweep(out, toys, options, environment)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert {row["name"] for row in csv.DictReader((out / "rows.csv").open())} == set(toys)
        learnt = [load_file(file) for file in (out / "models").rglob("*.safetensors")]
        assert len(learnt) == len(toys)
        assert all(("emb_params" in each) == (workflow == "pocket_train_embedding") for each in learnt)

    (tmp_path / "home/.ray/auth_token").unlink()
    ran = sweep(tmp_path / "refused", ["robot"], ["--address", address], environment)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert re.search(rf"--address {address}: .*\n.*auth_token", ran.stdout + ran.stderr), ran.stdout + ran.stderr
