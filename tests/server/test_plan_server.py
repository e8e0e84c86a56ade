"""Plan VRAM and budget_gb through POST /prompt on a real ComfyUI, on the pocket model and the stand-in."""

import json

import pytest
from pack.workflows.client import PromptFailed
from pack.workflows.prompts import fill, read_workflow
from test_runs import lora, run  # noqa: F401, lora is a fixture

pytestmark = pytest.mark.slow

GIB = 2**30
TRAINER = "EdgeTune_SelectiveTrainer"
SMALL = {
    ("EdgeTune_LoadSubjectImages", "resolution"): 128,
    (TRAINER, "steps"): 12,
    (TRAINER, "rank"): 4,
    (TRAINER, "batch_size"): 1,
    (TRAINER, "strategy"): "random",
}


def plan(server, loader: dict, **inputs) -> dict:
    node = {"model": ["1", 0], "method": "Selective BP/ZO Trainer", "resolution": 128, "format": "json"} | inputs
    outputs, _ = run(server, {"1": loader, "2": {"class_type": "EdgeTune_PlanVRAM", "inputs": node}})
    return json.loads(outputs["EdgeTune_PlanVRAM"][0]["text"][0])


def training(lora: str, **trainer) -> dict:  # noqa: F811
    filled = read_workflow("pocket_train_and_save")
    fill(filled, SMALL | {("EdgeTune_SaveLoRA", "filename"): lora} | {(TRAINER, k): v for k, v in trainer.items()})
    return filled


POCKET = {"class_type": "EdgeTune_LoadPocketModel", "inputs": {}}


def test_the_plan_is_what_the_run_takes_and_a_budget_is_kept(server, lora):  # noqa: F811
    planned = plan(server, POCKET, rank=4, low_res_ratio=0.75)
    outputs, _ = run(server, training(lora))
    report = json.loads(outputs[TRAINER][0]["report"][0])
    assert report["planned_peak_bytes"] == report["peak_bytes"] == planned["peak_bytes"]
    assert planned["fits"] is True and planned["inference_peak_bytes"] == report["inference_peak_bytes"]

    budget = 0.97 * planned["needed_bytes"] / GIB
    outputs, _ = run(server, training(lora, budget_gb=budget))
    report = json.loads(outputs[TRAINER][0]["report"][0])
    assert "the cheapest in time that fits" in report["chosen"]
    assert max(phase["peak_bytes"] for phase in report["phases"] if phase["name"] != "encode") <= 1.03 * budget * GIB


def test_an_impossible_budget_is_refused_before_anything_is_encoded(server, lora):  # noqa: F811
    with pytest.raises(PromptFailed, match="budget_gb: got 0.01; .* Set budget_gb to 0.0"):
        run(server, training(lora, budget_gb=0.01))
    told = plan(server, POCKET, rank=4, low_res_ratio=0.75, budget_gb=0.01)
    assert told["fits"] is False and told["advice"].startswith("budget_gb: got 0.01")


def test_a_preset_trains_as_it_was_planned_and_says_with_what(server, lora):  # noqa: F811
    planned = plan(server, POCKET, preset="2 GB")
    outputs, _ = run(server, training(lora, preset="2 GB", strategy="dtap", low_res_ratio=0.5))
    report = json.loads(outputs[TRAINER][0]["report"][0])
    assert report["planned_peak_bytes"] == report["peak_bytes"] == planned["peak_bytes"]
    taken = {"strategy": "bp_high", "rank": 16, "target_modules": "attention and feed-forward", "min_snr_gamma": 5.0}
    assert taken.items() <= report["settings"].items() and report["steps_bp"] == report["steps"] == 12
    assert report["chosen"].startswith("preset 2 GB: rank = 16 instead of 4")
    changed = {change["setting"]: change["chosen"] for change in planned["changes"]}
    assert taken.items() <= changed.items()


@pytest.mark.usefixtures("checkpoint")
def test_a_checkpoint_is_planned_for_as_text(server):
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}}
    node = {"model": ["1", 0], "method": "Hollowed Net Trainer", "resolution": 256}
    outputs, _ = run(server, {"1": loader, "2": {"class_type": "EdgeTune_PlanVRAM", "inputs": node}})
    (text,) = outputs["EdgeTune_PlanVRAM"][0]["text"]
    assert text.startswith("Hollowed Net: planned ") and "\ncache " in text and "hollow_fraction = 0.39" in text
