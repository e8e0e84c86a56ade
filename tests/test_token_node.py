"""Quantize + ZO Textual Inversion as ComfyUI runs it: outputs plug in, the report tells the run, all else stays."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny
import torch
from comfy import model_management
from comfy_api.latest import io
from node_runs import run_node
from pack.nodes import host, host_preview, host_token
from pack.nodes.host_pocket import load_pocket
from pack.nodes.train_embedding import ZOTextualInversion
from pack.trainers.config import TokenConfig
from pack.trainers.memory import PhaseMeter
from pack.trainers.token_prompts import TEMPLATES
from test_host import assert_same_bits, photo, subject, tiny_clip, tiny_vae, weights

import nodes  # ComfyUI's, not ours

SETTINGS = dict(token="my_dog", initial_word="dog", steps=4, learning_rate=1e-2, zo_epsilon=1e-2, seed=5)
SETTINGS |= dict(eval_every=2, eval_samples=2, captions="one caption")


def run(model, clip, **settings) -> io.NodeOutput:
    photos = subject(photo(0, "a sks dog"), photo(1, "a sks dog asleep", width=96), flip=True)
    return run_on(model, clip, tiny_vae(), photos, **settings)


def run_on(model, clip, vae, photos, **settings) -> io.NodeOutput:
    return run_node(ZOTextualInversion, model=model, clip=clip, vae=vae, subject=photos, **SETTINGS | settings)


def encoded(clip, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0][0][0]


@pytest.mark.parametrize("method", ["zo", "gradient"])
@pytest.mark.parametrize("kind", tiny.SD1_FIRST)
def test_the_node_trains_inside_comfyui_and_its_outputs_plug_in(kind, method):
    model, clip = tiny.tiny_model(kind, v_prediction=kind == "sd2"), tiny.tiny_clip(kind)
    before, words = weights(model), {name: value.clone() for name, value in clip.cond_stage_model.state_dict().items()}
    output = run(model, clip, method=method)
    learnt, embedding, prompt, loss, report = output.result
    assert prompt == "embedding:my_dog" and embedding.name == "my_dog"
    assert (
        replace(embedding.report, saved=report.saved, files=report.files) == report
    )  # told where it was saved at last
    assert len(loss["loss"]) == report.steps == 4
    assert (report.steps_zo, report.steps_bp) == ((4, 0) if method == "zo" else (0, 4))
    assert report.settings == asdict(TokenConfig(**SETTINGS, method=method))
    assert [phase.name for phase in report.phases][:2] == ["encode", "inference"]
    assert output.ui == {"text": [str(report)], "report": [report.to_json()]}
    assert all(not vector.is_inference() and not vector.requires_grad for vector in embedding.vectors.values())
    text = f"a photo of a {prompt} on a table"
    assert not torch.equal(encoded(learnt, text), encoded(clip, text))
    assert torch.equal(encoded(learnt, "a photo of a dog"), encoded(clip, "a photo of a dog"))
    model_management.unload_all_models()
    assert_same_bits(model, before)
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in words.items())


@pytest.mark.slow
def test_it_runs_on_the_pocket_model():
    with torch.inference_mode():
        model, clip, vae = load_pocket()
    photos = subject(photo(0, "a toy"))
    *_, report = run_on(model, clip, vae, photos, initial_word="toy").result
    assert (
        report.base_model == "edgetune_pocket" and report.token.fixed_noise["kept"] <= report.token.fixed_noise["first"]
    )


def test_latents_are_those_of_the_lora_trainers_and_the_vae_leaves():
    model, meter = tiny.tiny_model("sd1"), PhaseMeter(torch.device("cpu"))
    photos = subject(photo(0, "a dog"), photo(1, "a dog", width=96), flip=True)
    vae = tiny_vae()
    with torch.inference_mode():
        latents = host.encode_photos(model, vae, photos, meter)
        expected = host.encode_subject(model, tiny_clip("sd1"), vae, photos, 1.0, meter)
    assert len(latents) == 4 and not any(latent.is_inference() for latent in latents)
    assert all(torch.equal(a, b.high.latent) for a, b in zip(latents, expected, strict=True))
    assert vae.patcher not in [loaded.model for loaded in model_management.current_loaded_models]


@pytest.mark.slow
def test_the_report_says_which_token_was_kept_and_why_it_stopped():
    """Steps as long as these only lead away, so the first token is the best and two looks are enough."""
    output = run(tiny.tiny_model("sd1"), tiny.tiny_clip("sd1"), steps=40, learning_rate=10.0, patience=2)
    report = output.result[4]
    record = json.loads(report.to_json())["token"]
    assert record["stopped_early"] and record["steps_asked"] == 40 and report.steps == record["kept_step"] + 4
    losses = record["fixed_noise"]
    assert losses["kept"] <= losses["first"] and losses["kept"] < losses["last"]
    text = str(report)
    assert "token: embedding:my_dog, 1 vector\n" in text and "stopped before step 40" in text
    assert [line for line in text.splitlines() if len(line) > 120 or line != line.rstrip()] == []
    whole = run(tiny.tiny_model("sd1"), tiny.tiny_clip("sd1"), patience=0, num_vectors=2).result[4]
    assert not whole.token.stopped_early and "stopped" not in str(whole) and "2 vectors" in str(whole)
    unseen = run(tiny.tiny_model("sd1"), tiny.tiny_clip("sd1"), eval_every=0).result[4]
    assert "fixed noise" not in str(unseen) and unseen.token.kept_step == 4


@pytest.mark.parametrize("captions, count", [("templates", len(TEMPLATES)), ("one caption", 1), ("photo captions", 1)])
def test_captions_hold_the_token(captions, count, monkeypatch):
    seen = []
    real = host_token.token_examples

    def looked_at(*arguments):
        seen.extend(arguments[4])  # captions
        return real(*arguments)

    monkeypatch.setattr(host_token, "token_examples", looked_at)
    run(tiny.tiny_model("sd1"), tiny.tiny_clip("sd1"), captions=captions, replaced_words="sks dog")
    assert [len(texts) for texts in seen] == [count] * 4
    assert all("embedding:my_dog" in text.split() for texts in seen for text in texts)
    if captions == "photo captions":
        assert seen == [["a embedding:my_dog"], ["a embedding:my_dog asleep"]] * 2


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"token": "my dog"}, "token: got 'my dog'"),
        ({"initial_word": ""}, "initial_word: got ''"),
        ({"captions": "photo captions", "replaced_words": "cat"}, "captions: 'a sks dog' has no 'cat' in it"),
        ({"t_low": 900}, "t_low: got 900, needs to be 0 or more and below t_high, 900"),
    ],
)
def test_bad_input_is_named(settings, words):
    with pytest.raises(ValueError, match=words):
        run(tiny.tiny_model("sd1"), tiny.tiny_clip("sd1"), **settings)


@pytest.mark.slow
def test_pictures_follow_the_token_and_change_nothing_of_it(monkeypatch):
    drawn = []

    class Seen(host_preview.Previews):
        def __call__(self, step):
            picture = super().__call__(step)
            drawn.append(picture and np.asarray(picture))

    monkeypatch.setattr(host_preview, "Previews", Seen)
    model, clip = tiny.tiny_model("sd1"), tiny.tiny_clip("sd1")
    plain = run(model, clip, learning_rate=1.0).result[1]
    assert drawn == [None] * 4
    pictured = run(model, clip, learning_rate=1.0, preview_every=2)
    _, first, _, last = drawn[4:]
    assert not np.array_equal(first, last)
    assert len(pictured.ui["images"]) == 2
    for name, vector in plain.vectors.items():
        assert torch.equal(vector, pictured.result[1].vectors[name])
