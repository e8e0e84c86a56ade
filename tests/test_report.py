"""The report of a run: complete as JSON, readable as text."""

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from pack.trainers.config import SelectiveConfig
from pack.trainers.memory import PhaseMeter
from pack.trainers.report import Circumstances, LoadedModel, Report, selective_report
from pack.trainers.run import StepReport

MIB = 2**20
CONFIG = SelectiveConfig(steps=30, seed=2**63)
GIVEN = Circumstances("sd_v1", "epsilon", 'a photo of a "sks" 犬', 512, "cpu", "bfloat16")
KEYS = {"method", "device", "dtype", "steps", "steps_bp", "steps_zo", "seconds", "peak_bytes", "planned_peak_bytes"}
KEYS |= {"inference_peak_bytes", "phases", "loss", "settings", "files"}


def history(kinds: str) -> list[StepReport]:
    """One step per letter, b or z; losses fall from 1.0 by 0.01."""
    names = {"b": "bp", "z": "zo"}
    steps = enumerate(kinds, start=1)
    return [StepReport(i, len(kinds), names[kind], 1.01 - 0.01 * i, 500, 0, float(i)) for i, kind in steps]


def report(kinds: str = "b" * 20 + "z" * 10) -> Report:
    """From real phases of known size: 1 MiB of inference, 3 MiB of bp, 2 MiB of zo."""
    meter = PhaseMeter(torch.device("cpu"))
    for name, mib in (("encode", 5), ("inference", 1), ("bp", 3), ("zo", 2)):
        if name in ("encode", "inference") or name[0] in kinds:
            with meter.phase(name, []):
                torch.zeros(mib * MIB, dtype=torch.int8)
    return selective_report(CONFIG, history(kinds), meter, GIVEN)


def test_json_has_what_the_design_promises():
    record = json.loads(report().to_json())
    assert record.keys() >= KEYS
    assert (record["steps"], record["steps_bp"], record["steps_zo"]) == (30, 20, 10)
    assert (record["device"], record["dtype"]) == ("cpu", "bfloat16")
    assert record["settings"] == asdict(CONFIG)
    assert record["files"] == [] and record["planned_peak_bytes"] is None


def test_json_has_the_first_and_the_last_loss():
    """Means of ten steps, over all of them; a reader of the report finds them at loss.first and loss.last."""
    loss = json.loads(report().to_json())["loss"]
    assert loss["first"] == pytest.approx(0.955) and loss["last"] == pytest.approx(0.755)


def test_losses_are_kept_by_kind():
    """20 BP steps from 1.0, then 10 ZO steps from 0.8."""
    loss = json.loads(report().to_json())["loss"]
    assert loss["bp"] == pytest.approx({"first": 0.955, "last": 0.855})
    assert loss["zo"] == pytest.approx({"first": 0.755, "last": 0.755})


@pytest.mark.parametrize("kinds, missing", [("b" * 5, "zo"), ("z" * 5, "bp"), ("b", "zo")])
def test_a_kind_that_never_ran_is_left_out(kinds, missing):
    made = report(kinds)
    record = json.loads(made.to_json())
    assert missing not in record["loss"] and record[f"steps_{missing}"] == 0
    assert f"loss {missing}" not in str(made)
    assert missing not in [phase["name"] for phase in record["phases"]]


def test_json_has_the_phases_as_objects_and_peaks_in_bytes():
    record = json.loads(report().to_json())
    assert all(phase.keys() >= {"name", "seconds", "peak_bytes"} for phase in record["phases"])
    peaks = {phase["name"]: phase["peak_bytes"] for phase in record["phases"]}
    assert peaks == {"encode": 5 * MIB, "inference": MIB, "bp": 3 * MIB, "zo": 2 * MIB}
    assert record["peak_bytes"] == 3 * MIB  # of training, not of encoding
    assert record["inference_peak_bytes"] == MIB
    assert sum(phase["seconds"] for phase in record["phases"]) <= record["seconds"]


def test_json_has_a_time_line_and_the_process():
    """Four spans in their order, within the run; the process holds them and more."""
    record = json.loads(report().to_json())
    assert [span["phase"] for span in record["timeline"]] == ["encode", "inference", "bp", "zo"]
    assert [span["bytes"] for span in record["timeline"]] == [5 * MIB, MIB, 3 * MIB, 2 * MIB]
    edges = [time for span in record["timeline"] for time in (span["start"], span["end"])]
    assert edges == sorted(edges) and 0 <= edges[0] and edges[-1] <= record["seconds"]
    assert record["process_peak_bytes"] == max(span["process_bytes"] for span in record["timeline"]) > 5 * MIB
    assert "counted once" in record["measurement"]


def test_other_models_are_named():
    given = GIVEN._replace(other_models=(LoadedModel("AutoencoderKL", 160 * MIB),))
    made = selective_report(CONFIG, history("b"), PhaseMeter(torch.device("cpu")), given)
    assert json.loads(made.to_json())["other_models"] == [{"name": "AutoencoderKL", "bytes": 160 * MIB}]
    assert "loaded when the run began: AutoencoderKL, 160 MiB" in str(made)


def test_json_keeps_prompts_and_large_seeds_exactly():
    record = json.loads(report().to_json())
    assert record["instance_prompt"] == 'a photo of a "sks" 犬' and record["settings"]["seed"] == 2**63


def test_text_says_the_same_to_people():
    made = report()
    lines = str(made).splitlines()
    summary = f"Selective BP/ZO: 30 steps (20 BP, 10 ZO) in {made.seconds:.1f} s on cpu in bfloat16, peak 3 MiB"
    assert lines[0] == summary and made.summary() == f"{summary}, loss 0.9550 -> 0.7550"
    assert "loss all  0.9550 -> 0.7550" in lines
    assert 'prompt: a photo of a "sks" 犬' in lines and "base model: sd_v1" in lines
    assert "one forward pass needs 1 MiB: training took 3.00 times that" in lines
    assert "loss bp   0.9550 -> 0.8550" in lines
    assert any(re.fullmatch(r"encode +\d+\.\d s +peak 5 MiB", line) for line in lines)
    assert "steps = 30" in lines and "strategy = dtap" in lines
    assert all(len(line) <= 120 and line == line.rstrip() for line in lines)


def test_what_was_not_measured_is_not_claimed():
    text = str(replace(report(), inference_peak_bytes=None))
    assert "forward pass" not in text and "None" not in text


def test_files_are_named_where_there_are_some():
    made = replace(report(), files=("edgetune/dog.safetensors",))
    assert json.loads(made.to_json())["files"] == ["edgetune/dog.safetensors"]
