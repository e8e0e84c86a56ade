"""Quantize + ZO Textual Inversion and Save Embedding through POST /prompt on a real ComfyUI."""

import io
import json
import shutil
import time

import pytest
from checkpoints import cached_checkpoint
from pack.workflows.client import PromptFailed, PromptRejected
from pack.workflows.prompts import fill, read_workflow
from pictures import DREAMBOOTH
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_runs import node_id, run

pytestmark = pytest.mark.slow

TRAINER = "EdgeTune_ZOTextualInversion"
SMALL = {
    ("EdgeTune_LoadSubjectImages", "resolution"): 64,
    (TRAINER, "steps"): 6,
    (TRAINER, "eval_every"): 3,
    (TRAINER, "eval_samples"): 2,
    (TRAINER, "learning_rate"): 0.3,
    ("KSampler", "steps"): 2,
    ("EmptyLatentImage", "width"): 64,
    ("EmptyLatentImage", "height"): 64,
    ("EmptyLatentImage", "batch_size"): 1,
}


@pytest.fixture
def name(server):
    """A token that no other test has; its files are taken away."""
    token = f"test_{time.time_ns()}"
    yield token
    for path in (server.folders["base"] / "models/embeddings").rglob(f"{token}*"):
        path.unlink()


@pytest.fixture
def real_photos(server, pictures):
    """Photos of a dog where there are some, or else noise, in a fresh input sub-folder."""
    folder = server.folders["input"] / "token_test"
    folder.mkdir(parents=True)
    found = sorted((DREAMBOOTH / "dog6").glob("*.jpg"))[:3]
    for path in found:
        shutil.copy(path, folder)
    for i, picture in enumerate(pictures if not found else ()):
        picture.save(folder / f"{i}.png")
    yield "token_test"
    shutil.rmtree(folder)


def prompt(workflow: str, name: str, **trainer) -> dict:
    filled = read_workflow(workflow)
    text = f"a photo of a embedding:{name} on grass"
    settings = {(TRAINER, key): value for key, value in ({"token": name} | trainer).items()}
    fill(filled, SMALL | {("Prompt with the token", "text"): text} | settings)
    return filled


def drawn(server, outputs) -> list[Image.Image]:
    """What the two Save Image nodes wrote: without the token, with it."""
    views = [output["images"][0] for output in outputs["SaveImage"]]
    return [Image.open(io.BytesIO(server.client.download(view))).convert("RGB") for view in views]


def is_same(a: Image.Image, b: Image.Image) -> bool:
    return ImageChops.difference(a, b).getbbox() is None


@pytest.mark.parametrize("model", ["pocket_", ""], ids=["pocket", "checkpoint"])
def test_a_token_is_learnt_saved_and_the_same_from_its_file(server, checkpoint, real_photos, name, model):
    """The running server knows the file at once: the checkpoint's own CLIP draws with it what the trained one drew."""
    workflow = prompt(f"{model}train_embedding", name)
    if not model:
        fill(workflow, {("EdgeTune_LoadSubjectImages", "folder"): real_photos})
    outputs, events = run(server, workflow)
    without, with_token = drawn(server, outputs)
    assert outputs["EdgeTune_SaveEmbedding"][0]["text"] == [f"{name}.safetensors", f"embedding:{name}"]
    assert name in json.loads(server.client.get("/embeddings"))

    report = json.loads(outputs[TRAINER][0]["report"][0])
    assert report["steps"] == report["steps_zo"] == 6 and report["settings"]["quantization"] == "int8"
    assert report["token"]["prompt"] == f"embedding:{name}" and report["waiting_bytes"] > 0
    assert report["token"]["fixed_noise"]["kept"] <= report["token"]["fixed_noise"]["first"]
    trainer = node_id(workflow, TRAINER)
    progress = [data for kind, data in events if kind == "progress" and data["node"] == trainer]
    assert progress[-1]["value"] == progress[-1]["max"] == 6
    assert [data["node"] for kind, data in events if kind == "edgetune.done"] == [trainer]
    with safe_open(server.folders["base"] / f"models/embeddings/{name}.safetensors", "pt") as file:
        assert set(file.keys()) == {"emb_params"}
        assert json.loads(file.metadata()["edgetune.report"])["token"] == report["token"]

    stock = node_id(workflow, {"pocket_": "EdgeTune_LoadPocketModel", "": "CheckpointLoaderSimple"}[model])
    for node in workflow.values():
        if node.get("_meta", {}).get("title") == "Prompt with the token":
            node["inputs"]["clip"] = [stock, 1]
    for gone in (node_id(workflow, "EdgeTune_SaveEmbedding"), node_id(workflow, "PreviewAny"), trainer):
        del workflow[gone]
    again, from_file = drawn(server, run(server, workflow)[0])
    assert is_same(without, again) and is_same(with_token, from_file)


def test_candidates_at_once_and_one_by_one_learn_the_same(server, name):
    losses = []
    for _ in range(2):
        workflow = prompt("pocket_train_embedding", name, candidates=("batch", "one_by_one")[len(losses)])
        report = json.loads(run(server, workflow)[0][TRAINER][0]["report"][0])
        losses.append(report["token"]["fixed_noise"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.fixture
def unet_file(server) -> str:
    """The stand-in's U-Net alone, in the list of Load Diffusion Model."""
    prefix = "model.diffusion_model."
    weights = load_file(cached_checkpoint("standin"))
    unet = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    path = server.folders["base"] / "models/diffusion_models/edgetune_standin.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(unet, path)
    yield path.name
    path.unlink()


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_model_the_stock_loader_made_float8_is_taken(server, checkpoint, real_photos, unet_file, name, quantization):
    workflow = prompt("train_embedding", name, quantization=quantization)
    fill(workflow, {("EdgeTune_LoadSubjectImages", "folder"): real_photos})
    workflow["8bit"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": unet_file, "weight_dtype": "fp8_e4m3fn"},
    }
    for node in workflow.values():
        if "model" in node["inputs"]:
            node["inputs"]["model"] = ["8bit", 0]
    outputs, _ = run(server, workflow)
    without, with_token = drawn(server, outputs)
    assert not is_same(without, with_token)
    report = json.loads(outputs[TRAINER][0]["report"][0])
    assert report["steps"] == 6
    assert report["peak_bytes"] == pytest.approx(report["planned_peak_bytes"], rel=0.05)


BAD = {
    "name that breaks prompts": ({(TRAINER, "token"): "my dog"}, "token: got 'my dog'"),
    "no word": ({(TRAINER, "initial_word"): " "}, "initial_word: got ' '"),
    "file outside": ({("EdgeTune_SaveEmbedding", "filename"): "../x"}, "filename: got '../x'"),
    "timesteps": ({(TRAINER, "t_low"): 950}, "t_low: got 950"),
}


@pytest.mark.parametrize("values, words", BAD.values(), ids=BAD)
def test_bad_input_is_named(server, name, values, words):
    workflow = prompt("pocket_train_embedding", name, steps=1)
    fill(workflow, values)
    with pytest.raises((PromptRejected, PromptFailed), match=words):
        server.client.run(workflow, timeout_s=120)
