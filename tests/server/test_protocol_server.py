"""The protocol runner against a real ComfyUI: killed, gone on with, and not a picture made twice."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from pack.workflows.runtime import ROOT
from PIL import Image

pytestmark = pytest.mark.slow

SUBJECTS, PROMPTS = ("robot", "clown"), ("a photo of a {} on grass", "a photo of a {} on a carpet")
SETTINGS = (
    "EdgeTune_SelectiveTrainer.steps=6 EdgeTune_SelectiveTrainer.zo_perturbations=1 KSampler.steps=2 "
    "EdgeTune_LoadSubjectImages.resolution=64 EmptyLatentImage.width=64 EmptyLatentImage.height=64"
).split()


def rows(out) -> list[dict]:
    file = out / "rows.csv"
    return list(csv.DictReader(file.open())) if file.exists() else []


def test_two_toys_and_two_prompts_killed_and_gone_on_with(server, tmp_path):
    asked, out = tmp_path / "prompts.txt", tmp_path / "out"
    asked.write_text("\n".join(PROMPTS))
    command = [sys.executable, str(ROOT / "workflows/protocol.py"), str(out), "--server", server.url]
    command += ["--subjects", *SUBJECTS, "--prompts", str(asked), "--seeds", "5", "--set", *SETTINGS]
    environment = os.environ | {"EDGETUNE_PYTHON": sys.executable}  # it is to run in this one
    killed = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 300
    while len(rows(out)) < 1:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = rows(out)
    assert before[0]["subject"] == "robot" and len(before) < 4
    pictures = {row["picture"]: (out / row["picture"]).stat().st_mtime_ns for row in before}
    runs = server.folders["output"] / "edgetune"
    trained = {path.name for path in runs.iterdir()}

    subprocess.run(command, env=environment, check=True, timeout=400)
    after = rows(out)
    assert after[: len(before)] == before
    assert [(row["subject"], row["prompt"], row["seed"]) for row in after] == [
        (subject, prompt, "5") for subject in SUBJECTS for prompt in PROMPTS
    ]
    assert {name: (out / name).stat().st_mtime_ns for name in pictures} == pictures
    assert len({path.name for path in runs.iterdir()} - trained) <= 1  # the clown's: the robot's run was taken up again
    assert all(-1 <= float(row["subject_score"]) <= 1 and row["features"] == "pocket judges" for row in after)
    assert len({(row["subject"], row["training_s"]) for row in after}) == 2  # the robot's pictures are of one training
    assert all(float(row["training_s"]) > 0 and int(row["peak_bytes"]) > 0 for row in after)
    for subject in SUBJECTS:
        with Image.open(out / f"{subject}.jpg") as sheet:
            assert sheet.height > 3 * 256
    assert "| mean over subjects | 4 |" in (out / "summary.md").read_text()

    size = (out / "rows.csv").stat().st_size
    subprocess.run(command, env=environment, check=True, timeout=200)
    assert (out / "rows.csv").stat().st_size == size
    refused = subprocess.run([*command, "KSampler.steps=3"], env=environment, capture_output=True, text=True)
    assert refused.returncode and "choose another --out" in refused.stderr
