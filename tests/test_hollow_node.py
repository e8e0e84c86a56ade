"""The Hollowed Net Trainer as ComfyUI runs it: outputs plug in, the report says what was left out, the MODEL stays."""

import json

import folder_paths
import pytest
import tiny
import torch
from comfy import model_management
from comfy_api.latest import io
from node_runs import run_node
from pack.nodes import host
from pack.nodes.train_hollow import HollowedNetTrainer
from pack.trainers.checkpoint import lora_metadata
from pack.trainers.config import HollowConfig
from test_host import assert_same_bits, photo, subject, tiny_clip, tiny_vae, weights

import nodes  # ComfyUI's, not ours

SETTINGS = dict(steps=3, rank=2, learning_rate=1e-2, cache_samples=4, alpha=4.0, seed=5)


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


def run(model, kind: str, **settings) -> io.NodeOutput:
    photos = subject(photo(0, "a sks dog"), photo(1, "a sks dog asleep", width=96), flip=True)
    inputs = dict(model=model, clip=tiny_clip(kind), vae=tiny_vae(), subject=photos)
    return run_node(HollowedNetTrainer, **inputs, **SETTINGS | settings)


def picture(model, kind: str) -> torch.Tensor:
    with torch.inference_mode():
        (cond,) = nodes.CLIPTextEncode().encode(tiny_clip(kind), "a sks dog")
        (empty,) = nodes.EmptyLatentImage().generate(64, 64)
        return nodes.KSampler().sample(model, 3, 2, 2.0, "euler", "normal", cond, cond, empty)[0]["samples"]


@pytest.mark.parametrize("kind", tiny.SD1_FIRST)
def test_the_node_trains_inside_comfyui_and_its_outputs_plug_in(kind, temp):
    model = tiny.tiny_model(kind)
    before = weights(model)
    output = run(model, kind)
    trained, lora, loss, report = output.result
    assert len(loss["loss"]) == report.steps == report.steps_bp == 3 and report.steps_zo == 0
    assert report.settings == vars(HollowConfig(**SETTINGS))
    assert [phase.name for phase in report.phases] == ["encode", "inference", "cache", "bp"]
    assert output.ui == {"text": [str(report)], "report": [report.to_json()]}
    assert len(trained.patches) == len(lora) // 3 and not model.patches
    assert all(not value.is_inference() and not value.requires_grad for value in lora.values())
    cached = temp / "edgetune" / "hollowed_net.bin"
    assert cached.stat().st_size == report.hollow.cache_bytes
    assert torch.equal(picture(trained, kind), picture(host.with_lora(model, lora), kind))
    assert (picture(trained, kind) - picture(model, kind)).abs().max() > 1e-3
    model_management.unload_all_models()
    assert_same_bits(model, before)


@pytest.mark.slow
def test_the_two_path_output_samples_and_differs_from_the_plain_one():
    model = tiny.tiny_model("sd1")
    two_path, lora, *_ = run(model, "sd1", sampling="two-path", steps=20).result
    assert not two_path.patches
    drawn = [picture(patcher, "sd1") for patcher in (model, host.with_lora(model, lora), two_path)]
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(drawn, [*drawn[1:], drawn[0]], strict=True))
    assert torch.equal(picture(model, "sd1"), drawn[0])


@pytest.mark.slow
def test_the_report_and_the_file_say_what_was_left_out():
    model = tiny.tiny_model("sd1")
    fresh, again = run(model, "sd1").result[3], run(model, "sd1").result[3]
    text = str(fresh)
    assert f"left out: {fresh.hollow.left_out}, {fresh.hollow.share:.1%} of the U-Net" in text
    assert "input_blocks 8-11, middle_block, output_blocks 0-3" in fresh.hollow.left_out
    assert f"without {fresh.hollow.share:.1%}" in fresh.summary() and "ZO" not in fresh.summary()
    assert "3 samples" in text and "written in this run" in text and "from a run before" in str(again)
    assert any(line.startswith("cache ") for line in text.splitlines())
    assert all(len(line) <= 120 and line == line.rstrip() for line in text.splitlines())
    lora = run(model, "sd1").result[1]
    record = json.loads(lora_metadata(lora, "dog", fresh)["edgetune.report"])
    assert record["hollow"]["left_out"] == fresh.hollow.left_out and not record["hollow"]["cache_reused"]
    assert record["settings"]["hollow_fraction"] == 0.39 and record["settings"]["mode"] == "absolute"
