"""The table of bad_inputs.py: each case is refused in words that name the input, and nothing is written."""

import json
from pathlib import Path

import folder_paths
import pytest
import tiny
import torch
from bad_inputs import FOLDERS, NAMES, NUMBERS, SUBJECT, make_folders
from hypothesis import given, settings
from hypothesis import strategies as st
from node_runs import run_node as run
from pack.nodes.dtap_preview import DTAPPreview
from pack.nodes.files import SaveEmbedding, SaveLoRA
from pack.nodes.load_subject import IMAGES_INPUT, LoadSubjectImages
from pack.nodes.train_embedding import ZOTextualInversion
from pack.nodes.train_hollow import HollowedNetTrainer
from pack.nodes.train_selective import SelectiveTrainer
from pack.trainers.crops import CROPS, fitted
from pack.trainers.embedding_file import Embedding
from pack.trainers.saving import STATE, Point
from pack.trainers.token_prompts import check_token_name
from pack.trainers.weight_files import safetensors_name
from test_host import photo, subject

DEFAULTS = {DTAPPreview: {"steps": 10, "t_max": 1000, "t_mid": 750, "k": 0.05}}
TRAINERS = (SelectiveTrainer, HollowedNetTrainer, ZOTextualInversion)


@pytest.fixture(scope="module")
def parts() -> dict:
    model, clip, vae = tiny.tiny_model("mini"), tiny.tiny_clip("mini"), tiny.tiny_vae()
    return dict(model=model, clip=clip, vae=vae, subject=subject(photo(0, "a sks dog")))


@pytest.fixture
def input_folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "input").mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    return tmp_path / "input"


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path, monkeypatch):
    """All of ComfyUI's folders are under tmp_path/home; a file that a case writes anywhere in tmp_path is an error."""
    loras, embeddings = tmp_path / "models" / "loras", tmp_path / "models" / "embeddings"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(loras)], {".safetensors"}))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(embeddings)], {".safetensors"}))
    yield
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "input" not in path.parts]
    assert all("outside" in path.parts for path in written), written


cases = [
    pytest.param(node, name, value, id=f"{node.__name__}-{name}-{value!r:.30}")
    for node, table in NUMBERS.items()
    for name, values in table.items()
    for value in values
]


@pytest.mark.parametrize("node, name, value", cases)
def test_a_setting_is_refused_by_name(node, name, value, parts):
    given_parts = parts if node in TRAINERS else DEFAULTS[node]
    with pytest.raises(ValueError, match=rf"(?s)^{name}: .*"):
        run(node, **given_parts | {name: value})


@pytest.mark.parametrize("node", [SaveLoRA, SaveEmbedding])
@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name!r:.20}")
def test_a_file_name_is_refused(node, name):
    if node is SaveEmbedding and name == "x ":
        pytest.skip("spaces around a token's name are taken off")
    if node is SaveLoRA:
        inputs = {"lora": {"lora_unet_x.lora_down.weight": torch.zeros(1, 4)}}
    else:
        inputs = {"embedding": Embedding("my_dog" if name else "../x", {"clip_l": torch.zeros(1, 4)})}
    with pytest.raises(ValueError, match="(?s)^(filename|token): got .*; .*needs a name"):
        run(node, filename=name, **inputs)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda name: f"{name!r:.20}")
def test_a_folder_is_refused_before_and_while_running(folder, input_folder):
    make_folders(input_folder)
    if FOLDERS[folder] != "no photos in":
        answer = LoadSubjectImages.validate_inputs(folder)
        assert answer is not True and answer.startswith("folder: ") and FOLDERS[folder] in answer
    with pytest.raises(ValueError, match="^folder: ") as refused:
        run(LoadSubjectImages, folder=folder, instance_prompt="a dog", resolution=64)
    assert FOLDERS[folder] in str(refused.value)


def test_photos_and_captions_that_cannot_be_used_are_named(input_folder, record_property):
    folders = make_folders(input_folder)
    record_property("cases", len(folders))
    for folder, words in folders.items():
        with pytest.raises(ValueError, match=f"(?s)^(folder|captions): ?.*{words}"):
            run(LoadSubjectImages, folder=folder, instance_prompt="a dog", resolution=64)


subject_cases = [(name, value) for name, values in SUBJECT.items() for value in values]


@pytest.mark.parametrize("name, value", subject_cases)
def test_what_photos_become_is_refused_by_name(name, value):
    good = dict(folder=IMAGES_INPUT, images=torch.zeros(1, 64, 64, 3), instance_prompt="a dog", resolution=64)
    with pytest.raises(ValueError, match=f"^{name}(: got | is empty)"):
        run(LoadSubjectImages, **good | {name: value})


@pytest.mark.parametrize(
    "images",
    [torch.zeros(64, 64, 3), torch.zeros(0, 64, 64, 3), torch.zeros(1, 64, 64, 2), torch.full((1, 8, 8, 3), torch.nan)],
)
def test_images_that_are_none_are_refused(images):
    with pytest.raises(ValueError, match="^images: "):
        run(LoadSubjectImages, folder=IMAGES_INPUT, images=images, instance_prompt="a dog", resolution=64)


@pytest.mark.slow
@pytest.mark.parametrize("node", TRAINERS, ids=lambda node: node.__name__)
@pytest.mark.parametrize("other, words", [("clip", "^clip: "), ("vae", "^vae: ")])
def test_parts_of_another_family_are_refused(node, other, words, parts):
    if other == "clip":
        wrong = tiny.tiny_clip("sdxl")
    else:
        wrong = tiny.tiny_vae()
        wrong.encode = lambda pixels: torch.zeros(1, 16, 8, 8)  # as Flux's
    with pytest.raises(ValueError, match=words):
        run(node, **parts | {other: wrong})


names = st.text(max_size=12) | st.from_regex(r"[A-Za-z0-9_./\\: -]{0,12}")


@given(names)
@settings(max_examples=150, deadline=None)
def test_a_token_name_that_is_taken_is_one_word_and_one_file(name):
    try:
        check_token_name(name)
    except ValueError as error:
        assert repr(name) in str(error) and "needs a name" in str(error)
    else:
        assert Path(name).name == name and not any(sign.isspace() or sign in ",:()[]{}<>/\\" for sign in name)


@given(names)
@settings(max_examples=150, deadline=None)
def test_a_file_name_that_is_taken_stays_inside(name):
    try:
        path = safetensors_name(name)
    except ValueError as error:
        assert "needs a name" in str(error)
    else:
        inside = Path("/x/loras", path).resolve()
        assert Path("/x/loras") in inside.parents and path.suffix == ".safetensors" and ".." not in path.parts


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from((64, 72, 128)), st.sampled_from(CROPS))
@settings(max_examples=60, deadline=None)
def test_every_photo_comes_to_training_size(height, width, resolution, crop):
    image = fitted(torch.zeros(height, width, 3), resolution, crop).image
    assert image.shape[0] % 8 == image.shape[1] % 8 == 0 and image.isfinite().all()
    if crop != "none":
        assert image.shape[:2] == (resolution, resolution)


@given(st.integers(0, 10**9))
def test_a_point_s_name_leads_back_to_its_step(step):
    point = Point(Path("runs/one"), step)
    assert int(STATE.fullmatch(point.state.name)[1]) == step and json.dumps(point.name)
