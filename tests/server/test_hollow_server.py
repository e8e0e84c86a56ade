"""The Hollowed Net Trainer through POST /prompt on a real ComfyUI, at the pocket model's size."""

import json
import threading
import time

import pytest
from pack.workflows.client import PromptFailed, PromptInterrupted
from pack.workflows.prompts import fill, read_workflow
from safetensors import safe_open
from test_runs import lora, node_id, run  # noqa: F401, lora is a fixture

pytestmark = pytest.mark.slow

TRAINER = "EdgeTune_HollowedNetTrainer"
SMALL = {
    ("EdgeTune_LoadSubjectImages", "resolution"): 64,
    (TRAINER, "steps"): 6,
    (TRAINER, "rank"): 4,
    (TRAINER, "cache_samples"): 4,
    ("KSampler", "steps"): 2,
    ("EmptyLatentImage", "width"): 64,
    ("EmptyLatentImage", "height"): 64,
}


def prompt(lora: str, **trainer) -> dict:  # noqa: F811
    filled = read_workflow("pocket_train_hollowed")
    fill(filled, SMALL | {("EdgeTune_SaveLoRA", "filename"): lora} | {(TRAINER, k): v for k, v in trainer.items()})
    return filled


def cache(server):
    return server.folders["temp"] / "temp" / "edgetune" / "hollowed_net.bin"


@pytest.mark.parametrize("sampling", ["plain", "two-path"])
def test_the_workflow_trains_saves_and_draws(server, lora, sampling):  # noqa: F811
    workflow = prompt(lora, sampling=sampling)
    outputs, events = run(server, workflow)
    assert [len(output["images"]) for output in outputs["SaveImage"]] == [4, 4]
    assert outputs["EdgeTune_SaveLoRA"][0]["text"] == [f"{lora}.safetensors"]
    report = json.loads(outputs[TRAINER][0]["report"][0])
    assert report["steps"] == report["steps_bp"] == 6
    assert report["hollow"]["cache_bytes"] == cache(server).stat().st_size
    assert "left out: input_blocks" in outputs["PreviewAny"][0]["text"][0]

    trainer = node_id(workflow, TRAINER)
    progress = [(data["value"], data["max"]) for kind, data in events if kind == "progress" and data["node"] == trainer]
    assert progress[-1] == (6, 6) and (report["hollow"]["cache_reused"] or (4, 4) in progress)
    assert [data["node"] for kind, data in events if kind == "edgetune.done"] == [trainer]
    with safe_open(server.folders["base"] / "models/loras" / f"{lora}.safetensors", "pt") as file:
        saved = json.loads(file.metadata()["edgetune.report"])
    assert saved["hollow"] == report["hollow"] and saved["settings"]["sampling"] == sampling
    log = server.log.read_text(encoding="utf-8", errors="replace")
    assert "left out: input_blocks" in log and "Hollowed Net: 6 steps (without" in log


def test_another_learning_rate_uses_what_is_stored(server, lora):  # noqa: F811
    reused = []
    for settings in ({"seed": 7}, {"seed": 7, "learning_rate": 2e-4}, {"seed": 8}):
        outputs, _ = run(server, prompt(lora, **settings))
        reused.append(json.loads(outputs[TRAINER][0]["report"][0])["hollow"]["cache_reused"])
        (server.folders["base"] / "models/loras" / outputs["EdgeTune_SaveLoRA"][0]["text"][0]).unlink()
    assert reused == [False, True, False]


@pytest.mark.parametrize("stage", [1, 2])
def test_cancel_stops_at_once_and_the_next_run_works(server, lora, stage):  # noqa: F811
    many = {"steps": 100_000, "cache_samples": 100_000 if stage == 1 else 4, "seed": 10 + stage}
    stopped = []

    def cancel(kind, data):
        is_stage = kind == "edgetune.step" if stage == 2 else kind == "progress" and data["max"] == 100_000
        if is_stage and not stopped:
            stopped.append(time.perf_counter())
            threading.Thread(target=server.client.interrupt).start()

    with pytest.raises(PromptInterrupted):
        server.client.run(prompt(lora, **many), on_event=cancel, timeout_s=120)
    assert time.perf_counter() - stopped[0] < 10
    assert cache(server).exists() == (stage == 2)  # half a store is none
    outputs, _ = run(server, prompt(lora))
    assert outputs["EdgeTune_SaveLoRA"]


def test_a_mode_that_cannot_be_had_is_named(server, lora):  # noqa: F811
    with pytest.raises(PromptFailed, match="mode: residual cannot be had without"):
        server.client.run(prompt(lora, mode="residual", hollow_fraction=0.73), timeout_s=120)
