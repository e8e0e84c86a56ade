"""Load Subject Images inside ComfyUI's own validation and execution."""

import asyncio
import os

import execution
import folder_paths
import numpy as np
import pytest
import torch
from pack.nodes.host_files import SHIPPED, photo_folder
from pack.nodes.load_subject import IMAGES_INPUT, LoadSubjectImages
from pack.trainers.photos import Subject, SubjectSettings
from PIL import Image

NODE_ID = "EdgeTune_LoadSubjectImages"


@pytest.fixture
def input_dir(tmp_path):
    """An empty ComfyUI input folder with a sub-folder dog, that holds two photos."""
    before = folder_paths.get_input_directory()
    root = tmp_path / "input"
    (root / "dog").mkdir(parents=True)
    for name, colour in {"1.png": "red", "2.png": "blue"}.items():
        Image.new("RGB", (96, 64), colour).save(root / "dog" / name)
    folder_paths.set_input_directory(str(root))
    yield root
    folder_paths.set_input_directory(before)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(execution.nodes.NODE_CLASS_MAPPINGS, NODE_ID, LoadSubjectImages)


def run(folder: str, **options):
    options = {"instance_prompt": "a sks dog", "resolution": 64} | options
    with torch.inference_mode():  # as ComfyUI does
        return LoadSubjectImages.execute(folder=folder, **options)


def validation_errors(folder, **inputs) -> list[str]:
    """What ComfyUI's own prompt validation answers about a prompt with this node in it."""
    inputs = {"folder": folder, "instance_prompt": "a sks dog", "resolution": 64} | inputs
    prompt = {
        "1": {"class_type": NODE_ID, "inputs": inputs},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    }
    _, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "1", {}))
    return [error["details"] for error in errors]


def test_the_schema_offers_the_documented_inputs_and_outputs(input_dir):
    schema = LoadSubjectImages.GET_SCHEMA()
    assert (schema.node_id, schema.display_name, schema.category) == (
        NODE_ID,
        "Load Subject Images",
        "training/EdgeTune",
    )
    required = ["folder", "instance_prompt", "resolution"]
    optional = ["images", "class_prompt", "captions", "crop", "flip", "masks", "background_weight"]
    assert [item.id for item in schema.inputs] == required + optional
    assert [item.id for item in schema.inputs if not item.optional] == required
    assert [(item.id, item.io_type) for item in schema.outputs] == [
        ("subject", "EDGETUNE_SUBJECT"),
        ("images", "IMAGE"),
        ("report", "STRING"),
    ]
    assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])


def test_the_schema_has_the_defaults_of_the_settings(input_dir):
    defaults = {item.id: item.default for item in LoadSubjectImages.define_schema().inputs if hasattr(item, "default")}
    for name, value in vars(SubjectSettings()).items():
        assert defaults[name] == value, name


def test_new_folders_are_offered_without_a_restart(input_dir):
    def options() -> list[str]:
        return LoadSubjectImages.define_schema().inputs[0].options

    assert options() == [IMAGES_INPUT, "dog", *SHIPPED]
    (input_dir / "toys" / "car").mkdir(parents=True)
    assert options() == [IMAGES_INPUT, "dog", "toys", "toys/car", *SHIPPED]


def test_a_folder_becomes_a_subject_a_batch_and_a_report(input_dir):
    output = run("dog", class_prompt="a dog", flip=True)
    subject, images, report = output.result
    assert isinstance(subject, Subject)
    assert (subject.instance_prompt, subject.class_prompt, subject.resolution) == ("a sks dog", "a dog", 64)
    assert subject.flip
    assert [photo.name for photo in subject.photos] == ["1.png", "2.png"]
    assert images.shape == (2, 64, 64, 3) and images.dtype == torch.float32
    assert images[0].flatten(0, 1).unique(dim=0).tolist() == [[1, 0, 0]]
    assert "2 photos from folder dog" in report and "1.png" in report
    assert output.ui["text"] == [report]
    assert len(output.ui["images"]) == len(output.result[1])  # as they are trained on


def test_connected_images_win_over_the_folder_and_the_report_says_so(input_dir):
    batch = torch.full((3, 64, 64, 3), 0.25)
    subject, images, report = run("dog", images=batch).result
    assert len(subject.photos) == 3 and torch.equal(images, batch)
    assert "3 photos from the connected images (folder dog not read)" in report
    assert "not read" not in run(IMAGES_INPUT, images=batch).result[2]


def test_masks_of_the_folder_or_connected_are_taken_along_and_shown(input_dir):
    mask = torch.zeros(64, 96)
    mask[16:48, 32:64] = 1
    Image.fromarray((mask.numpy() * 255).astype(np.uint8)).save(input_dir / "dog" / "1.mask.png")
    subject, images, report = run("dog").result
    assert [photo.mask is None for photo in subject.photos] == [False, True] and len(images) == 2
    assert subject.background_weight == 0.1 and "mask (1.mask.png): 25%" in report
    connected = run("dog", masks=mask.expand(2, -1, -1), background_weight=0.5).result
    assert torch.equal(connected[0].photos[0].mask, subject.photos[0].mask)
    assert "all with masks, which cover 25% on average; the rest counts 0.5 times as much" in connected[2]
    assert torch.equal(connected[1], images)
    with pytest.raises(ValueError, match="masks: got 1 for 2 photos"):
        run("dog", masks=mask)


def test_a_mask_that_changes_runs_the_node_again(input_dir):
    before = fingerprint("dog")
    Image.new("L", (96, 64), 255).save(input_dir / "dog" / "1.mask.png")
    assert fingerprint("dog") != before


def test_without_connected_images_the_folder_must_be_one(input_dir):
    with pytest.raises(ValueError, match="folder: got .* nothing is connected to images"):
        run(IMAGES_INPUT)


def test_a_resolution_or_choice_that_slipped_past_the_widgets_is_refused(input_dir):
    for name, value in {"resolution": 100, "crop": "left", "captions": "mine"}.items():
        with pytest.raises(ValueError, match=f"{name}: got .*{value}"):
            run("dog", **{name: value})


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_subject_is_loaded_as_any_folder_is(input_dir, registered, name):
    assert validation_errors(name) == []
    subject, images, report = run(name, resolution=128).result
    assert [photo.name for photo in subject.photos] == [f"{number}.png" for number in range(1, 6)]
    assert images.shape == (5, 128, 128, 3)
    assert f"5 photos from folder {name}" in report and "upscaled" not in report.lower()
    assert fingerprint(name) == fingerprint(name) != ""


def test_a_shipped_subject_gives_way_to_a_folder_of_its_name(input_dir):
    before = fingerprint("robot [pocket]")
    (input_dir / "dog").rename(input_dir / "robot [pocket]")
    offered = LoadSubjectImages.define_schema().inputs[0].options
    assert offered.count("robot [pocket]") == 1 and sorted(offered[1:]) == sorted(SHIPPED)
    assert [photo.name for photo in run("robot [pocket]").result[0].photos] == ["1.png", "2.png"]
    assert fingerprint("robot [pocket]") != before


def test_an_unknown_subject_is_answered_with_those_there_are(input_dir, registered):
    (unknown,) = validation_errors("teapot [pocket]")
    assert "teapot" in unknown and all(name in unknown for name in SHIPPED)


OUTSIDE = ["..", "../private", "dog/../..", "/", "/tmp", ".", "", "dog\0", "a" * 5000, "linked", 7]
OUTSIDE += [
    "../photos [pocket]",
    "../robot [pocket]",
    "clown/../robot [pocket]",
    "/robot [pocket]",
    " [pocket]",
    "robot",
]
OUTSIDE += ["robot [pocket]/..", "robot [pocket]/../clown"]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: repr(name)[:20])
def test_no_name_leads_out_of_the_input_folder(input_dir, name):
    private = input_dir.parent / "private"
    private.mkdir()
    (input_dir / "linked").symlink_to(private)
    with pytest.raises(ValueError, match="^folder: "):
        photo_folder(name)
    with pytest.raises(ValueError, match="^folder: "):
        run(name)


def test_a_folder_is_found_by_any_name_that_stays_inside(input_dir):
    (input_dir / "toys").mkdir()
    assert photo_folder("toys/../dog") == photo_folder("dog") == ((input_dir / "dog").resolve(), input_dir.resolve())


def test_an_input_folder_that_is_itself_a_link_works(input_dir, tmp_path):
    (tmp_path / "link").symlink_to(input_dir)
    folder_paths.set_input_directory(str(tmp_path / "link"))
    assert len(run("dog").result[0].photos) == 2


def test_validation_answers_before_anything_runs(input_dir, registered):
    assert validation_errors("dog") == []
    (missing,) = validation_errors("cat")
    assert "there is no folder 'cat'" in missing
    (outside,) = validation_errors("../private")
    assert "needs a sub-folder of ComfyUI's input folder" in outside
    (nothing,) = validation_errors(IMAGES_INPUT)
    assert "nothing is connected to images" in nothing


def test_validation_lets_connected_images_pass_whatever_the_folder_is(input_dir, registered):
    for folder in (IMAGES_INPUT, "dog", "removed since"):
        assert validation_errors(folder, images=["2", 0]) == []


def test_validation_still_checks_what_is_not_ours(input_dir, registered):
    assert validation_errors("dog", resolution=16) and validation_errors("dog", crop="left")


def fingerprint(folder: str, **inputs):
    """As ComfyUI asks for it: every constant input, None for connected ones."""
    return LoadSubjectImages.fingerprint_inputs(folder=folder, instance_prompt="a", resolution=64, **inputs)


def test_the_fingerprint_follows_the_files_of_the_folder(input_dir):
    before = fingerprint("dog", images=None, flip=True)
    assert fingerprint("dog") == before
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(input_dir / "dog" / "3.png")
    added = fingerprint("dog")
    assert added != before
    os.utime(input_dir / "dog" / "3.png", ns=(1, 1))
    assert fingerprint("dog") not in (before, added)


@pytest.mark.parametrize("name", [IMAGES_INPUT, "cat", "../..", "dog\0", None])
def test_the_fingerprint_never_raises(input_dir, name):
    assert fingerprint(name) == ""
