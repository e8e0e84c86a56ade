"""Sweeps with real ComfyUIs on a real Ray: stopped and gone on with, a bad subject, a cluster that loses a machine."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pack.workflows.runtime import ROOT, find_comfyui
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SWEEP, CLUSTER = ROOT / "workflows/sweep.py", Path(__file__).with_name("sweep_cluster_run.py")
TRAINER, LOADER = "EdgeTune_SelectiveTrainer", "EdgeTune_LoadSubjectImages"
TOYS, SEEDS = ("robot", "clown", "tower", "trophy"), (1, 2)
SETTINGS = f"{TRAINER}.steps=5 {TRAINER}.save_every=1 {TRAINER}.rank=4 {TRAINER}.batch_size=1 {LOADER}.resolution=64"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """In which a sweep runs in this Python, and in a ComfyUI that is not the one the checkout fetches for itself."""
    comfyui = tmp_path / "ComfyUI"
    comfyui.symlink_to(find_comfyui(), target_is_directory=True)
    return os.environ | {"COMFYUI_PATH": str(comfyui), "EDGETUNE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def options(tmp_path: Path, out: Path, *subjects: str) -> list[str]:
    table = tmp_path / "jobs.csv"
    lines = [f"{toy},{seed}" for seed in SEEDS for toy in TOYS]
    table.write_text(f"subject,{TRAINER}.seed\n" + "\n".join(lines))
    asked = [str(out), str(table), *subjects, "--workflow", "pocket_train_and_save", "--models", str(out / "models")]
    return [*asked, "--set", *SETTINGS.split()]


def rows(out: Path) -> list[dict]:
    file = out / "rows.csv"
    return list(csv.DictReader(file.open())) if file.exists() else []


def loras(out: Path) -> dict[str, dict]:
    return {path.name: load_file(path) for path in (out / "models/loras" / out.name).iterdir()}


def test_a_cluster_that_loses_a_machine_learns_what_one_machine_learns(tmp_path, environment):
    one, cluster = tmp_path / "one", tmp_path / "cluster"
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "1.jpg").write_bytes(b"no picture")
    command = [sys.executable, str(SWEEP), *options(tmp_path, one, str(bad)), "--workers", "1"]

    stopped = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 200
    while not rows(one):
        assert stopped.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(stopped.pid, signal.SIGINT)
    assert stopped.wait(100) != 0
    before = rows(one)
    assert len(before) < 8 and len(list((one / "saved").glob("*/point"))) <= 1  # of the job that was under way

    went_on = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert went_on.returncode == 1 and re.search(
        r"^FAILED bad: .*\n1\.jpg: not a picture", went_on.stdout, re.MULTILINE
    )
    assert "No machine" not in went_on.stdout and rows(one)[: len(before)] == before and len(rows(one)) == 8
    assert {row["steps"] for row in rows(one)} == {"5"} and not list((one / "saved").iterdir())

    cluster.mkdir()
    shutil.copy(one / "plans.json", cluster)
    command = [sys.executable, str(CLUSTER), *options(tmp_path, cluster)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert "exit code 0" in ran.stdout, ran.stdout + ran.stderr
    killed_at = int(re.search(r"killed when (\d+) jobs", ran.stdout)[1])
    assert killed_at < 8 and "its worker was lost" in ran.stdout
    again = [row["name"] for row in rows(cluster) if row["tries"] == "2"]
    assert len(rows(cluster)) == 8 and 1 <= len(again) <= 2
    alone, together = loras(one), loras(cluster)
    assert alone.keys() == together.keys() and len(alone) == 8
    for name, learnt in alone.items():
        assert learnt.keys() == together[name].keys()
        assert all(learnt[key].equal(together[name][key]) for key in learnt), name
    assert json.loads((one / "plans.json").read_text()) == json.loads((cluster / "plans.json").read_text())
