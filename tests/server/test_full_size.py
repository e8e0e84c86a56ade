"""Real size, real photos: SD 1.5 with random weights, dog6 at 512 px, through the real server, within our ceiling."""

import json
import shutil
import threading
import time

import psutil
import pytest
from checkpoints import cached_checkpoint
from comfyui import start_server
from pack.workflows.prompts import fill, read_workflow
from pictures import DREAMBOOTH

pytestmark = pytest.mark.slow

PHOTOS = DREAMBOOTH / "dog6"
TRAINER = "EdgeTune_SelectiveTrainer"
MIB = 2**20
WEIGHTS = 859_520_964 * 4  # SD 1.5's U-Net in float32, which it is on a CPU
CEILING = WEIGHTS * 1.1 + 400 * MIB


@pytest.fixture
def big_server(tmp_path):
    folder = tmp_path / "server"
    server = start_server(folder)
    (folder / "models/checkpoints/sd15.safetensors").symlink_to(cached_checkpoint("sd15"))
    with server as running:
        yield running


def test_dog6_trains_within_the_ceiling(big_server):
    if not PHOTOS.is_dir():
        pytest.skip(f"the DreamBooth photos are not at {PHOTOS}")
    shutil.copytree(PHOTOS, big_server.folders["input"] / "my_subject")
    workflow = read_workflow("train_and_save")
    fill(
        workflow,
        {
            ("CheckpointLoaderSimple", "ckpt_name"): "sd15.safetensors",
            (TRAINER, "steps"): 4,
            (TRAINER, "strategy"): "random",
            (TRAINER, "zo_perturbations"): 1,
        },
    )
    process = psutil.Process(big_server.process.pid)
    resident, training = [], threading.Event()

    def watch(kind, data):
        if kind == "edgetune.step":
            resident.append(process.memory_info().rss)
            training.set()

    start = time.perf_counter()
    entry = big_server.client.run(workflow, on_event=watch, timeout_s=900)
    print(f"whole workflow: {time.perf_counter() - start:.0f} s")

    (report,) = next(output["report"] for output in entry["outputs"].values() if "report" in output)
    report = json.loads(report)
    print(json.dumps({key: report[key] for key in ("peak_bytes", "inference_peak_bytes", "phases")}, indent=1))
    assert report["steps_bp"] > 0 and report["steps_zo"] > 0
    assert report["dtype"] == "float32"
    assert WEIGHTS < report["inference_peak_bytes"] < report["peak_bytes"] <= CEILING
    # The process also holds text encoder, VAE, torch and ComfyUI: under 3 GiB in all, less than a second U-Net.
    assert training.is_set() and max(resident) < WEIGHTS + 3 * 1024 * MIB
