"""The demo's options become values in a workflow, and its pictures one sheet. tests/server runs it as a whole."""

import json

import pytest
from pack.nodes.host_files import SHIPPED
from pack.workflows import prompts
from pack.workflows.sheet import CAPTION, GAP, MAX_COLUMNS, TILE, sheet
from PIL import Image

TRAINER, LOADER = "EdgeTune_SelectiveTrainer", "EdgeTune_LoadSubjectImages"


@pytest.fixture
def demo(script):
    return script("demo")


@pytest.fixture
def photos(script):
    return script("photos")


def filled(demo, *options: str, checkpoint: str | None = None, folder: str | None = None) -> dict:
    arguments = demo.parse_arguments(options)
    prompt = demo.choose_workflow(arguments)
    demo.fill(prompt, arguments, checkpoint, folder)
    return prompt


def inputs(prompt: dict, name: str) -> dict:
    """Of the node with this class or title."""
    return next(node["inputs"] for node in prompt.values() if name in (node["class_type"], prompts.title(node)))


def test_without_options_the_pocket_model_learns_what_the_workflow_names(demo):
    arguments = demo.parse_arguments([])
    assert demo.choose_photos(None, arguments, "run", is_pocket=True) is None
    assert filled(demo) == prompts.read_workflow("pocket_train_and_compare")


def test_a_checkpoint_s_run_says_nothing_of_the_pocket_model(demo):
    prompt = filled(demo, "--checkpoint", "a.safetensors", checkpoint="a.safetensors", folder="run")
    assert "pocket" not in json.dumps(prompt).lower()
    assert inputs(prompt, "CheckpointLoaderSimple")["ckpt_name"] == "a.safetensors"
    assert inputs(prompt, LOADER)["folder"] == "run"
    untouched = prompts.read_workflow("train_and_compare")
    assert inputs(prompt, TRAINER) == inputs(untouched, TRAINER)
    assert inputs(prompt, "Prompt") == inputs(untouched, "Prompt")


@pytest.mark.parametrize("model", [[], ["--checkpoint", "a.safetensors"]], ids=["pocket", "checkpoint"])
def test_the_options_reach_the_nodes_they_are_for(demo, model):
    prompt = filled(demo, *model, "--steps", "7", "--resolution", "64", "--token", "xyz cat")
    assert inputs(prompt, TRAINER)["steps"] == 7 and inputs(prompt, "KSampler")["steps"] == 20
    assert inputs(prompt, LOADER)["resolution"] == 64
    assert (inputs(prompt, "EmptyLatentImage")["width"], inputs(prompt, "EmptyLatentImage")["height"]) == (64, 64)
    assert inputs(prompt, LOADER)["instance_prompt"] == "a photo of a xyz cat"
    assert prompts.positive(prompt).startswith("a photo of a xyz cat on ") and "sks" not in json.dumps(prompt)
    prompt = filled(demo, *model, "--token", r"\1 cat", "--prompt", "a sks dog {}")
    assert prompts.positive(prompt) == "a sks dog {}"
    assert inputs(prompt, LOADER)["instance_prompt"] == r"a photo of a \1 cat"


def test_a_shipped_subject_is_named_as_the_node_names_it(demo, photos):
    assert {photos.shipped_folder(name) for name in photos.shipped_subjects()} == set(SHIPPED)
    arguments = demo.parse_arguments(["--subject", "clown"])
    folder = demo.choose_photos(None, arguments, "run", is_pocket=True)  # no client: nothing is uploaded
    assert folder == "clown [pocket]"
    assert inputs(filled(demo, "--subject", "clown", folder=folder), LOADER)["folder"] == folder


@pytest.mark.parametrize("options", [["--subject", "teapot"], ["--subject", "clown", "--photos", "."]])
def test_options_that_mean_nothing_together_are_refused(demo, options, capsys):
    with pytest.raises(SystemExit):
        demo.parse_arguments(options)
    assert "clown" in capsys.readouterr().err


def test_a_checkpoint_for_a_workflow_that_loads_none_is_refused(demo):
    arguments = demo.parse_arguments(["--checkpoint", "a.safetensors", "--workflow", "pocket_train_and_save"])
    with pytest.raises(demo.SetupError, match="pocket_train_and_save loads no checkpoint"):
        demo.choose_workflow(arguments)


def test_a_checkpoint_needs_photos_that_are_there(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "EXAMPLES", tmp_path / "nowhere")
    with pytest.raises(photos.SetupError, match="name a folder with --photos"):
        photos.find_photos(None)
    with pytest.raises(photos.SetupError, match="nowhere is not a folder"):
        photos.find_photos(tmp_path / "nowhere")
    with pytest.raises(photos.SetupError, match="no photos in"):
        photos.find_photos(tmp_path)
    (tmp_path / "1.JPG").touch()
    (tmp_path / "notes.txt").touch()
    assert photos.find_photos(tmp_path) == [tmp_path / "1.JPG"]
    (tmp_path / "1.mask.png").touch()
    assert [path.name for path in photos.find_photos(tmp_path)] == ["1.JPG", "1.mask.png"]
    (tmp_path / "1.JPG").unlink()
    with pytest.raises(photos.SetupError, match="no photos in"):
        photos.find_photos(tmp_path)


def test_the_sheet_has_every_picture_in_the_row_it_belongs_to(tmp_path):
    sizes = {"red": (128, 128), "green": (512, 512), "blue": (40, 30), "black": (300, 900)}
    files = {colour: tmp_path / f"{colour}.png" for colour in sizes}
    for colour, size in sizes.items():
        Image.new("RGB", size, colour).save(files[colour])
    rows = {"photos": [files["red"], files["green"], files["blue"]], "before " * 100: [files["black"]]}
    page = sheet(rows)
    assert page.size == (3 * TILE + 4 * GAP, 2 * (CAPTION + TILE) + GAP)
    middles = [
        page.getpixel((GAP + column * (TILE + GAP) + TILE // 2, (row + 1) * CAPTION + row * TILE + TILE // 2))
        for row, column in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    ]
    assert middles == [(255, 0, 0), (0, 128, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)]
    assert sheet({"many": [files["red"]] * 20}).width == MAX_COLUMNS * (TILE + GAP) + GAP
    margins = [page.crop((0, 0, GAP, page.height)), page.crop((page.width - GAP, 0, page.width, page.height))]
    assert all(margin.getextrema() == ((255, 255),) * 3 for margin in margins)  # captions stay inside
