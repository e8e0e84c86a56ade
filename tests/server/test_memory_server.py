"""VRAM Report behind a trainer on a real ComfyUI, at the pocket model's size."""

import json

import pytest
from pack.workflows.prompts import fill, read_workflow
from test_runs import run

pytestmark = pytest.mark.slow

TRAINER, REPORT = "EdgeTune_SelectiveTrainer", "EdgeTune_VRAMReport"
SMALL = {
    ("EdgeTune_LoadSubjectImages", "resolution"): 64,
    (TRAINER, "steps"): 8,
    (TRAINER, "strategy"): "random",
}


def prompt(format: str) -> dict:
    filled = read_workflow("pocket_memory_report")
    fill(filled, SMALL | {(REPORT, "format"): format})
    return filled


def test_its_text_and_its_json_stand_in_the_history_and_agree_with_the_trainer_s(server):
    """The second run takes the trainer's result from ComfyUI's cache."""
    (first, _), (second, _) = run(server, prompt("text")), run(server, prompt("json"))
    report = json.loads(first[TRAINER][0]["report"][0])
    (text,) = first[REPORT][0]["text"]
    assert first[REPORT][0]["images"] and first["PreviewAny"][0]["text"] == [text]
    assert f"peak {report['peak_bytes'] / 2**20:,.0f} MiB" in text.splitlines()[0]

    record = json.loads(second[REPORT][0]["text"][0])
    assert record.items() >= report.items() and record["published"] is None
    phases = {phase["name"]: phase for phase in record["phases"]}
    assert list(phases)[:2] == ["encode", "inference"] and {"bp", "zo"} <= set(phases)
    assert record["peak_bytes"] == max(phases["bp"]["peak_bytes"], phases["zo"]["peak_bytes"])
    assert [span["phase"] for span in record["timeline"]].count("encode") == 1
    assert {span["phase"] for span in record["timeline"]} == set(phases)
    assert record["process_peak_bytes"] > record["peak_bytes"] > record["inference_peak_bytes"] > 0
    assert all(model.keys() == {"name", "bytes"} and model["bytes"] > 0 for model in record["other_models"])
