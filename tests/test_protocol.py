"""The protocol's parts that need no server: what it asks, which part of a workflow it runs, its table.

tests/server runs it as a whole.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pack.workflows import prompts as pack_prompts
from pack.workflows.sheet import sheet
from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
TRAINING = sorted(
    path.stem
    for path in (WORKFLOWS / "api").glob("*.json")
    if "Trainer" in (text := path.read_text()) or "ZOTextualInversion" in text
)
DRAWING = [name for name in TRAINING if "VAEDecode" in (WORKFLOWS / "api" / f"{name}.json").read_text()]
LIST = """
subject_name,class
backpack,backpack
bear_plushie,stuffed animal
dog6,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""
ROW = {
    "subject": "rex",
    "kind": "dog",
    "prompt": 'a {} in a hat, "wet"',
    "seed": 3,
    "subject_score": "0.500000",
    "nearest": "0.6",
    "nearest_photo": "1.png",
    "prompt_score": "",
    "features": "DINO",
    "training_s": 10,
    "peak_bytes": 2**20,
    "picture": "a.png",
}


@pytest.fixture
def protocol(script):
    """The script, for whose name ComfyUI has a module, too."""
    spec = importlib.util.spec_from_file_location("edgetune_protocol", Path(WORKFLOWS) / "protocol.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def graph(script):
    return script("protocol_graph")


@pytest.fixture
def table(script):
    return script("protocol_table")


def arguments(protocol, *options: str):
    return protocol.parse_arguments(["out", "--subjects", "robot", "--prompts", "p.txt", *options])


def classes(prompt: dict) -> set[str]:
    return {node["class_type"] for node in prompt.values()}


def test_the_script_starts_in_a_python_that_has_nothing_yet():
    """It sets up what it needs, so that may not be needed before."""
    without = "import sys; sys.modules.update(dict.fromkeys(['PIL', 'aiohttp', 'torch', 'numpy'])); import protocol"
    subprocess.run([sys.executable, "-c", without], cwd=WORKFLOWS, check=True)


def test_dreambooth_s_list_is_read_with_its_kinds(table, tmp_path):
    file = tmp_path / "prompts_and_classes.txt"
    file.write_text(LIST)
    questions = table.read_questions(file)
    assert questions.objects == ["a {} in the jungle", "a cube shaped {}"]
    assert questions.live == questions.of("dog") == ["a {} wearing a red hat"]
    assert questions.of("backpack") == questions.objects
    assert questions.kinds["bear_plushie"] == "stuffed animal" and questions.kinds["dog6"] == "dog"


def test_a_text_file_has_a_prompt_a_line(table, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("# ours\na photo of a {} on sand\n\na {} in snow\n")
    assert table.read_questions(file).of("dog") == ["a photo of a {} on sand", "a {} in snow"]
    for text, words in (("a dog\n", "a dog"), ("\n", "no line"), ("{} and {}", "{} and {}")):
        file.write_text(text)
        with pytest.raises(table.SetupError, match="needs one {} for the subject") as refused:
            table.read_questions(file)
        assert words in str(refused.value)


@pytest.mark.parametrize("name", DRAWING)
def test_only_what_draws_with_the_result_of_training_is_run(graph, name):
    whole = pack_prompts.read_workflow(name)
    part = graph.measured(whole, "auto")
    added = {graph.PICTURE, graph.SCORES}
    assert set(part) - added == (graph.needed(part, graph.PICTURE) | graph.needed(part, graph.SCORES)) - added
    assert graph.only(part, graph.TRAINERS) in graph.needed(part, graph.PICTURE)
    assert not classes(part) & {"EdgeTune_SaveLoRA", "EdgeTune_SaveEmbedding", "PreviewAny", "PreviewImage"}
    assert sum("latent_image" in node["inputs"] for node in part.values()) == 1
    assert all(node["inputs"]["batch_size"] == 1 for node in part.values() if node["class_type"] == "EmptyLatentImage")
    assert whole == pack_prompts.read_workflow(name)


@pytest.mark.parametrize("name", sorted(set(TRAINING) - set(DRAWING)))
def test_a_workflow_that_draws_nothing_is_refused(graph, name):
    with pytest.raises(graph.UnfitWorkflow, match="no picture that depends on its trainer"):
        graph.measured(pack_prompts.read_workflow(name), "auto")


def test_a_workflow_without_a_trainer_is_refused(graph):
    with pytest.raises(graph.UnfitWorkflow, match="EdgeTune_SelectiveTrainer.*; it has 0"):
        graph.measured(pack_prompts.read_workflow("dtap_preview"), "auto")


@pytest.mark.parametrize("name", ["train_and_compare", "train_embedding"])
def test_text_and_seed_reach_the_one_sampler(graph, name):
    part = graph.measured(pack_prompts.read_workflow(name), "auto", "v.safetensors", "t.safetensors")
    called = graph.name_subject(part, "rex 2", "stuffed animal", "photos_of_rex")
    is_token = name == "train_embedding"
    assert called == ("embedding:protocol_rex_2" if is_token else "sks stuffed animal")
    graph.ask(part, f"a {called} in snow", "a stuffed animal in snow", 7, scores_prompt=True)
    trainer = part[graph.only(part, graph.TRAINERS)]["inputs"]
    if is_token:
        assert trainer["token"] == "protocol_rex_2" and trainer["initial_word"] == "stuffed animal"
    else:
        loader = part[graph.only(part, {graph.PHOTO_LOADER})]["inputs"]
        assert loader["instance_prompt"] == "a photo of a sks stuffed animal"
    assert pack_prompts.positive(part) == f"a {called} in snow"
    (sampler,) = (node["inputs"] for node in part.values() if "latent_image" in node["inputs"])
    assert sampler["seed"] == 7 and trainer["seed"] == 0
    scores = part[graph.SCORES]["inputs"]
    assert scores["prompt"] == "a stuffed animal in snow"
    assert [part[scores[name][0]]["class_type"] for name in ("clip_vision", "clip")] == [
        "CLIPVisionLoader",
        "CLIPLoader",
    ]


def test_a_row_is_there_once_it_is_written_and_a_torn_one_is_not(table, tmp_path):
    file = tmp_path / "rows.csv"
    table.table(file).add(ROW)
    row = table.Row("rex", ROW["prompt"], 3)
    assert row in table.table(file) and table.Row("rex", ROW["prompt"], 4) not in table.table(file)
    whole = file.read_bytes()
    with file.open("a") as lines:
        lines.write("rex,dog,a {} on sa")  # the process was killed here
    again = table.table(file)
    assert list(again.rows) == [row] and file.read_bytes() == whole
    again.add(ROW | {"seed": 4})
    assert list(table.table(file).rows) == [row, table.Row("rex", ROW["prompt"], 4)]


def test_rows_of_other_settings_do_not_get_into_one_file(table, tmp_path):
    file = tmp_path / "run.json"
    table.check_same_run(file, {"checkpoint": "a", "steps": 1})
    table.check_same_run(file, {"checkpoint": "a", "steps": 1})
    with pytest.raises(table.SetupError, match="with another checkpoint; choose another --out"):
        table.check_same_run(file, {"checkpoint": "b", "steps": 1})


def test_means_are_of_subjects_not_of_pictures(table):
    rows = [ROW | {"subject": "a", "subject_score": "0.2"}] * 3 + [ROW | {"subject": "b", "subject_score": "0.6"}]
    lines = table.summary(rows).splitlines()
    assert lines[2] == "| a | 3 | 0.200 |  | 10 | 1 |" and lines[3] == "| b | 1 | 0.600 |  | 10 | 1 |"
    assert lines[4] == "| mean over subjects | 4 | 0.400 |  | 10 | 1 |"


def test_the_sheet_has_the_photos_and_a_row_for_each_prompt(table, tmp_path):
    for name in ("a.png", "photo.png"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    rows = [ROW, ROW | {"seed": 4}, ROW | {"prompt": "a {}"}]
    path = table.write_sheet(rows, [tmp_path / "photo.png"], tmp_path, "rex")
    one_row = sheet({"Photos": [tmp_path / "photo.png"]}).height
    with Image.open(path) as page:
        assert page.height > 2.5 * one_row


def test_subjects_are_folders_of_a_kind_or_shipped_toys(protocol, table, tmp_path):
    folder = tmp_path / "dog6"
    folder.mkdir()
    (folder / "1.jpg").touch()
    known = table.Questions([], [], {"dog6": "dog"})
    assert protocol.find_subject(str(folder), known) == ("dog6", "dog", [folder / "1.jpg"], False)
    assert protocol.find_subject(f"{folder}=puppy", known).kind == "puppy"
    with pytest.raises(protocol.SetupError, match="say what it is, as in .*dog6=dog"):
        protocol.find_subject(str(folder), table.Questions([], [], {}))
    robot = protocol.find_subject("robot", known)
    assert (robot.kind, robot.is_shipped, len(robot.photos)) == ("toy", True, 5)
    with pytest.raises(protocol.SetupError, match="nowhere is not a folder"):
        protocol.find_subject("nowhere=dog", known)


def test_settings_reach_the_workflow_or_are_refused(protocol, tmp_path):
    options = ("--set", "EdgeTune_SelectiveTrainer.steps=7", "KSampler.cfg=2.5", "Prompt.text=a b")
    part = protocol.read_workflow(arguments(protocol, *options))
    trainer = next(node["inputs"] for node in part.values() if "Selective" in node["class_type"])
    assert trainer["steps"] == 7 and pack_prompts.positive(part) == "a b"
    assert part[protocol.graph.SCORES]["inputs"]["features"] == "pocket judges"
    with pytest.raises(protocol.prompts.UnfitWorkflow, match="no node 'Nobody' with an input 'x'"):
        protocol.read_workflow(arguments(protocol, "--set", "Nobody.x=1"))
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(pack_prompts.read_workflow("train_hollowed")))
    part = protocol.read_workflow(arguments(protocol, "--workflow", str(file), "--features", "efficientnet"))
    assert part[protocol.graph.SCORES]["inputs"]["features"] == "efficientnet"
    assert "EdgeTune_HollowedNetTrainer" in classes(part)
