"""Evaluate Subject at the end of its workflows, on a real ComfyUI: with pocket judges, and with a CLIP from a file."""

import json

import pytest
from comfy.clip_vision import ClipVisionModel
from pack.workflows.client import PromptRejected
from pack.workflows.prompts import fill, read_workflow
from standin import write_random
from test_evaluate_node import CLIP_VIT
from test_runs import SMALL, SUBJECT, node_id, photos, run  # noqa: F401, a fixture

pytestmark = pytest.mark.slow

EVALUATE = "EdgeTune_EvaluateSubject"
VISION = "clip_vision_h.safetensors"  # as the workflow names it
VIT_L = {  # what Load CLIP Vision takes for a ViT-L by its 23rd layer; the sizes are its configuration's
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "image_size": 224,
    "intermediate_size": 4096,
    "projection_dim": 768,
}


@pytest.fixture
def clip_vision(server):
    """A CLIP ViT-L with random weights in the list of Load CLIP Vision."""
    file = server.folders["base"] / "models/clip_vision" / VISION
    layout = ClipVisionModel(CLIP_VIT | VIT_L).model.state_dict()
    write_random(file, {name: weight.to("meta") for name, weight in layout.items()})
    yield
    file.unlink()


def prompt(name: str, **evaluate) -> dict:
    filled = read_workflow(name)
    settings = {(EVALUATE, key): value for key, value in ({"format": "json"} | evaluate).items()}
    fill(filled, SMALL | {("EmptyLatentImage", "batch_size"): 1} | settings)
    return filled


def scores(outputs: dict) -> dict:
    (output,) = outputs[EVALUATE]
    (text,) = output["text"]
    assert len(output["images"]) == 1  # the sheet
    assert outputs["PreviewAny"][-1]["text"] == [text]
    return json.loads(text)


def test_a_toy_is_learnt_and_measured(server):
    """Few steps at half size learn nothing: what counts is that pictures and photos arrive, and their scores."""
    found = scores(run(server, prompt("pocket_evaluate_subject"))[0])
    assert found["features"] == "pocket judges" and found["photo_count"] == 5
    assert len(found["pictures"]) == 3 and found["prompt"] is None
    assert -1 <= found["subject"]["low"] <= found["subject"]["mean"] <= found["subject"]["high"] < found["photos"] <= 1
    assert {picture["nearest_photo"] for picture in found["pictures"]} <= {f"{i}.png" for i in range(1, 6)}


def test_a_checkpoint_is_measured_without_a_clip(server, checkpoint, photos):  # noqa: F811
    """With Load CLIP Vision removed, as the workflow's note says."""
    workflow = prompt("evaluate_subject")
    loader = node_id(workflow, "CLIPVisionLoader")
    del workflow[loader], workflow[node_id(workflow, EVALUATE)]["inputs"]["clip_vision"]
    found = scores(run(server, workflow)[0])
    assert found["features"] == "EfficientNet-Lite0" and found["photo_count"] == 4
    assert len(found["pictures"]) == 3


def test_a_clip_that_load_clip_vision_loads_compares(server, photos, clip_vision):  # noqa: F811
    """A photo with itself, which takes the large network twice and no training."""
    for path in sorted(photos.iterdir())[1:]:
        path.unlink()
    whole = prompt("evaluate_subject")
    kept = ("EdgeTune_LoadSubjectImages", "CLIPVisionLoader", EVALUATE, "PreviewAny")
    workflow = {key: node for key, node in whole.items() if node["class_type"] in kept}
    del workflow[node_id(workflow, "PreviewAny")]  # of the training
    workflow[node_id(workflow, EVALUATE)]["inputs"]["images"] = [node_id(workflow, kept[0]), 1]
    found = scores(run(server, workflow)[0])
    assert found["features"] == "CLIP-I" and found["subject"]["mean"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"features": "clip vision"}, "connect Load CLIP Vision"),
        ({"prompt": "a toy"}, "clip_vision: nothing is connected"),
    ],
)
def test_what_it_lacks_is_said_before_the_training(server, values, words):
    workflow = prompt("pocket_evaluate_subject", **values)
    with pytest.raises(PromptRejected, match=words) as refused:
        server.client.run(workflow)
    assert set(refused.value.node_errors) == {node_id(workflow, EVALUATE)}
