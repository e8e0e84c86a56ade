"""Whole workflows through POST /prompt on a real ComfyUI, as a person or a script would run them."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pack.workflows.client import PromptFailed, PromptInterrupted, PromptRejected
from pack.workflows.prompts import fill, read_workflow
from pack.workflows.runtime import ROOT
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

TRAINER = "EdgeTune_SelectiveTrainer"
SUBJECT = "my_subject"
SMALL = {
    ("EdgeTune_LoadSubjectImages", "resolution"): 64,
    (TRAINER, "steps"): 8,
    (TRAINER, "zo_perturbations"): 1,
    (TRAINER, "strategy"): "random",
    ("KSampler", "steps"): 2,
    ("EmptyLatentImage", "width"): 64,
    ("EmptyLatentImage", "height"): 64,
}


@pytest.fixture
def photos(server, pictures):
    """Four photos in a fresh input sub-folder, taken away afterwards."""
    folder = server.folders["input"] / SUBJECT
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def lora(server):
    """A file name for a LoRA that no other test uses."""
    name = f"edgetune/test_{time.time_ns()}"
    yield name
    (server.folders["base"] / "models/loras" / f"{name}.safetensors").unlink(missing_ok=True)


def prompt(name: str, lora: str, folder: str = SUBJECT, **trainer) -> dict:
    filled = read_workflow(name)
    names = {("EdgeTune_SaveLoRA", "filename"): lora, ("EdgeTune_LoadSubjectImages", "folder"): folder}
    fill(filled, SMALL | names | {(TRAINER, key): value for key, value in trainer.items()})
    return filled


def run(server, workflow: dict):
    """Outputs by class type, in the order of the workflow's nodes, and the messages on the way."""
    events = []
    entry = server.client.run(workflow, on_event=lambda kind, data: events.append((kind, data)), timeout_s=240)
    outputs = {}
    for node_id, node in workflow.items():
        if node_id in entry["outputs"]:
            outputs.setdefault(node["class_type"], []).append(entry["outputs"][node_id])
    return outputs, events


def node_id(workflow: dict, class_type: str) -> str:
    return next(key for key, node in workflow.items() if node["class_type"] == class_type)


def test_train_and_compare(server, lora):
    workflow = prompt("pocket_train_and_compare", lora, folder="robot [pocket]", preview_every=4)
    outputs, events = run(server, workflow)

    assert [len(output["images"]) for output in outputs["SaveImage"]] == [4, 4]
    assert len(outputs["PreviewImage"][0]["images"]) == 5
    assert outputs["EdgeTune_SaveLoRA"][0]["text"] == [f"{lora}.safetensors"]
    assert len(outputs[TRAINER][0]["images"]) == 2
    (report,) = outputs[TRAINER][0]["report"]
    report = json.loads(report)
    assert report["steps"] == 8 == report["steps_bp"] + report["steps_zo"]
    assert report["steps_bp"] and report["steps_zo"]
    (text,) = outputs["PreviewAny"][0]["text"]
    assert "8 steps" in text and "MiB" in text

    trainer = node_id(workflow, TRAINER)
    progress = [data for kind, data in events if kind == "progress" and data["node"] == trainer]
    assert progress[-1]["value"] == progress[-1]["max"] == 8
    steps = [data for kind, data in events if kind == "edgetune.step"]
    assert steps and steps[-1]["step"] == steps[-1]["steps"] == 8
    assert all(step["node"] == trainer and step["kind"] in ("bp", "zo") and step["bytes"] > 0 for step in steps)
    assert [data["node"] for kind, data in events if kind == "edgetune.done"] == [trainer]
    *_, kept = json.loads(server.client.get("/edgetune/runs"))  # for pages that are opened later
    assert [loss for step in steps for loss in step["losses"]] == kept["losses"]
    assert [kind for step in steps for kind in step["kinds"]] == kept["kinds"]
    assert (kept["step"], len(kept["losses"]), kept["is_running"]) == (8, 8, False)
    assert kept["summary"].startswith("Selective BP/ZO: 8 steps")
    assert "Selective BP/ZO: 8 steps" in server.log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("model", ["", "pocket_"], ids=["checkpoint", "pocket"])
def test_train_and_save_then_load(server, checkpoint, photos, lora, model):
    outputs, _ = run(server, prompt(f"{model}train_and_save", lora))
    assert outputs["LossGraphNode"][0]["images"]
    assert f"{lora}.safetensors" in server.client.options("LoraLoader", "lora_name")

    workflow = prompt(f"{model}use_trained_lora", lora)
    fill(workflow, {("LoraLoader", "lora_name"): f"{lora}.safetensors"})
    log_before = server.log.stat().st_size
    outputs, _ = run(server, workflow)
    assert outputs["SaveImage"][0]["images"]
    log = server.log.read_bytes()[log_before:].decode(errors="replace")
    assert "lora key not loaded" not in log and "NOT LOADED" not in log


def test_the_demo_ends_with_a_sheet_of_before_and_after(server, tmp_path):
    """The README's first command, with two steps and a server that runs already."""
    options = ["--server", server.url, "--out", str(tmp_path), "--subject", "clown", "--steps", "2"]
    command = [sys.executable, str(ROOT / "workflows/demo.py"), *options]
    demo = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert demo.returncode == 0, demo.stdout + demo.stderr

    assert f"Look at this first: {tmp_path / 'sheet.png'}" in demo.stdout
    assert all(count in demo.stdout for count in ("Photos: 5", "Before: 4", "After: 4"))
    assert [len(list(tmp_path.glob(f"{row}_*.png"))) for row in ("Photos", "before", "after")] == [5, 4, 4]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 3 * 128
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["steps"] == 2
    lora = Path(re.search(r"^  LoRA +(.+)$", demo.stdout, re.MULTILINE)[1])
    assert lora.is_file() and f"edgetune/{lora.name}" in server.client.options("LoraLoader", "lora_name")
    lora.unlink()


def test_dtap_preview(server):
    outputs, _ = run(server, read_workflow("dtap_preview"))
    (preview,) = outputs["EdgeTune_DTAPPreview"]
    assert preview["images"] and "750" in preview["text"][0] and "250" in preview["text"][0]


def test_an_unchanged_graph_is_cached_and_a_changed_photo_retrains(server, photos, lora):
    workflow = prompt("pocket_train_and_save", lora)
    trainer = node_id(workflow, TRAINER)

    def trained():
        _, events = run(server, workflow)
        (cached,) = (data["nodes"] for kind, data in events if kind == "execution_cached")
        return trainer not in cached

    assert trained()
    assert not trained()
    Image.new("RGB", (80, 80), "red").save(photos / "1.png")
    assert trained()
    (photos / "1.txt").write_text("a red photo of a sks dog")
    assert trained()
    assert not trained()


def test_cancel_stops_at_once_and_the_next_run_works(server, photos, lora):
    workflow = prompt("pocket_train_and_save", lora, steps=100_000)
    stopped = []

    def cancel_at_step_3(kind, data):
        if kind == "edgetune.step" and data["step"] >= 3 and not stopped:
            stopped.append(time.perf_counter())
            threading.Thread(target=server.client.interrupt).start()

    with pytest.raises(PromptInterrupted):
        server.client.run(workflow, on_event=cancel_at_step_3, timeout_s=120)
    assert time.perf_counter() - stopped[0] < 10  # a step takes some tenths of a second here
    outputs, _ = run(server, prompt("pocket_train_and_save", lora))
    assert outputs["EdgeTune_SaveLoRA"]


def test_two_prompts_queue_and_both_finish(server, photos, lora):
    client = server.client
    ids = [client.queue(prompt("pocket_train_and_save", lora, seed=seed)) for seed in (1, 2)]
    entries = [client.wait(prompt_id, timeout_s=240) for prompt_id in ids]
    saved = {output["text"][0] for e in entries for output in e["outputs"].values() if "path" in output}
    assert saved == {f"{lora}.safetensors", f"{lora}_2.safetensors"}
    (server.folders["base"] / "models/loras" / f"{lora}_2.safetensors").unlink()


def test_the_same_seed_gives_the_same_file(server, photos, lora):
    """A photo that was touched, not changed, makes ComfyUI train again; the files differ in their dates alone."""
    loras = server.folders["base"] / "models/loras"
    files = []
    for _ in range(2):
        outputs, _ = run(server, prompt("pocket_train_and_save", lora))
        files.append(loras / outputs["EdgeTune_SaveLoRA"][0]["text"][0])
        os.utime(photos / "0.png", ns=(1, 1))
    first, second = map(load_file, files)
    files[1].unlink()
    assert files[0] != files[1] and first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)


BAD = {
    "folder that is not there": ({("EdgeTune_LoadSubjectImages", "folder"): "nowhere"}, "no folder 'nowhere'"),
    "folder outside": ({("EdgeTune_LoadSubjectImages", "folder"): "../.."}, "sub-folder of ComfyUI's input"),
    "LoRA name outside": ({("EdgeTune_SaveLoRA", "filename"): "../../x"}, "without .."),
    "no perturbation": ({(TRAINER, "zo_epsilon"): float("nan")}, "zo_epsilon"),
    "steps below 1": ({(TRAINER, "steps"): 0}, "steps"),
    "strategy": ({(TRAINER, "strategy"): "magic"}, "strategy"),
}


@pytest.mark.parametrize("values, words", BAD.values(), ids=BAD)
def test_bad_input_is_named(server, photos, lora, values, words):
    workflow = prompt("pocket_train_and_save", lora, steps=2)
    fill(workflow, values)
    with pytest.raises((PromptRejected, PromptFailed), match=words):
        server.client.run(workflow, timeout_s=120)


def test_a_broken_photo_is_named_and_good_ones_are_not_dropped_in_silence(server, photos, lora):
    (photos / "2.png").write_bytes(b"not a picture")
    with pytest.raises(PromptFailed, match="2.png"):
        server.client.run(prompt("pocket_train_and_save", lora), timeout_s=120)
