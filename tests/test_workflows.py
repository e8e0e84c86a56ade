"""The workflows we ship: canvas form, API form and thumbnail agree with one another and with the nodes.

Neither a server nor a browser is needed; tests/browser opens the same files in the real canvas.
"""

import asyncio
import itertools
import json
import re
from pathlib import Path

import pytest
from comfy_api.latest import io
from pack.nodes import EdgeTune
from PIL import Image
from pocket_workflows import CHECKPOINT_LOADER, PREFIX, SETTINGS, api_text, api_variant, canvas_text, canvas_variant

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
HELP = FOLDER.parent / "web" / "docs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
SCHEMAS = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in asyncio.run(EdgeTune().get_node_list())}

NOTES = ("MarkdownNote", "Note")  # only in the canvas
TITLE_HEIGHT = 30
THUMBNAIL_WIDTH, THUMBNAIL_BYTES = 640, 80_000

every_workflow = pytest.mark.parametrize("name", NAMES)
every_pocket_workflow = pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(PREFIX)])


def canvas(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def twin(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def as_prompt(workflow: dict) -> dict:
    """The API form of a workflow, as the canvas exports it. A seed's widget is followed by its "control after"."""
    sources = {link: [str(node), slot] for link, node, slot, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values = iter(node.get("widgets_values", []))
        inputs = {}
        for slot in node["inputs"]:
            if "widget" in slot:
                inputs[slot["name"]] = next(values)
                if slot["name"] == "seed":
                    next(values)
            if slot["link"] is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def ours(workflow: dict) -> list[dict]:
    return [node for node in workflow["nodes"] if node["type"].startswith("EdgeTune_")]


def is_widget(item: io.Input) -> bool:
    return isinstance(item, io.WidgetInput)


def test_every_workflow_has_a_twin_and_a_thumbnail_and_the_other_way_round():
    assert NAMES
    assert sorted(path.stem for path in FOLDER.glob("api/*.json")) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == NAMES


@every_workflow
def test_the_thumbnail_is_a_small_jpeg(name):
    path = FOLDER / f"{name}.jpg"
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert image.width <= THUMBNAIL_WIDTH
    assert path.stat().st_size < THUMBNAIL_BYTES


@every_workflow
def test_the_twin_says_what_the_canvas_says(name):
    exported = {node_id: {k: node[k] for k in ("class_type", "inputs")} for node_id, node in twin(name).items()}
    assert exported == as_prompt(canvas(name))


@every_workflow
def test_the_twin_keeps_the_titles(name):
    for node in canvas(name)["nodes"]:
        if node["type"] not in NOTES and "title" in node:
            assert twin(name)[str(node["id"])]["_meta"]["title"] == node["title"]


@every_workflow
def test_the_twin_has_all_required_inputs_of_our_nodes_and_no_unknown_ones(name):
    for node in twin(name).values():
        if node["class_type"].startswith("EdgeTune_"):
            inputs = SCHEMAS[node["class_type"]].inputs
            assert {item.id for item in inputs if not item.optional} <= set(node["inputs"])
            assert set(node["inputs"]) <= {item.id for item in inputs}


@every_workflow
def test_the_canvas_has_the_sockets_and_widgets_of_our_nodes_in_their_order(name):
    for node in ours(canvas(name)):
        schema = SCHEMAS[node["type"]]
        widgets = [slot["name"] for slot in node["inputs"] if "widget" in slot]
        sockets = [(slot["name"], slot["type"]) for slot in node["inputs"] if "widget" not in slot]
        assert widgets == [item.id for item in schema.inputs if is_widget(item)]
        assert sockets == [(item.id, item.io_type) for item in schema.inputs if not is_widget(item)]
        assert [(s["name"], s["type"]) for s in node["outputs"]] == [(o.id, o.io_type) for o in schema.outputs]


@every_workflow
def test_the_values_of_our_nodes_are_their_defaults(name):
    """Except the folder, which has none, and the settings for the pocket model, which stand in one place."""
    for node in twin(name).values():
        tuned = SETTINGS.get(node["class_type"], {}) if name.startswith(PREFIX) else {}
        for item in getattr(SCHEMAS.get(node["class_type"]), "inputs", []):
            if is_widget(item) and item.default is not None and item.id not in tuned:
                assert node["inputs"][item.id] == item.default, (node["class_type"], item.id)


@every_workflow
def test_links_join_sockets_that_are_there(name):
    workflow = canvas(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["last_link_id"] >= len(workflow["links"])
    for link, source, out, target, into, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][into]["link"] == link
        assert kind == nodes[source]["outputs"][out]["type"]
        assert nodes[target]["inputs"][into]["type"] in (kind, "*")


@every_workflow
def test_a_second_run_repeats_the_first(name):
    """A seed that changes after each run would train again, and before and after would differ by more than the LoRA."""
    for node in canvas(name)["nodes"]:
        assert not {"randomize", "increment", "decrement"} & {str(value) for value in node.get("widgets_values", [])}


@every_pocket_workflow
def test_a_pocket_workflow_is_its_original_with_another_model(name):
    original = name.removeprefix(PREFIX)
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == canvas_text(canvas_variant(original))
    assert (FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8") == api_text(api_variant(original))


def test_every_workflow_that_needs_a_checkpoint_has_a_variant_that_needs_nothing():
    loading = {name for name in NAMES if CHECKPOINT_LOADER in (node["class_type"] for node in twin(name).values())}
    assert loading and {PREFIX + name for name in loading} == {name for name in NAMES if name.startswith(PREFIX)}


@pytest.mark.parametrize("name", [name for name in NAMES if "compare" in name])
def test_before_and_after_differ_in_the_model_only(name):
    before, after = (node["inputs"] for node in twin(name).values() if node["class_type"] == "KSampler")
    assert {key for key in before if before[key] != after[key]} == {"model"}


@every_workflow
def test_nodes_do_not_overlap_and_lie_in_their_groups(name):
    workflow = canvas(name)
    boxes = {node.get("title", node["type"]): _box(node) for node in workflow["nodes"]}
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not _overlap(a, b), (one, other)
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    for title, (left, top, right, bottom) in boxes.items():
        touched = [group for group in groups if _overlap(group, (left, top, right, bottom))]
        assert len(touched) <= 1, title
        for x0, y0, x1, y1 in touched:
            assert x0 <= left and y0 <= top and right <= x1 and bottom <= y1, title


@every_workflow
def test_there_is_one_note_and_it_is_short(name):
    notes = [node["widgets_values"][0] for node in canvas(name)["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1
    assert 10 < len(notes[0].split()) < 120


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_the_help_of_a_node_names_all_it_has(node_id):
    schema = SCHEMAS[node_id]
    text = (HELP / f"{node_id}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {schema.display_name}\n")
    assert [item.id for item in [*schema.inputs, *schema.outputs] if f"**{item.id}**" not in text] == []


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_the_help_of_a_node_has_a_picture(node_id):
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (HELP / f"{node_id}.md").read_text(encoding="utf-8"))
    assert pictures and all((HELP / path).is_file() for path in pictures)


def test_there_is_no_help_for_nodes_that_are_gone():
    assert {path.stem for path in HELP.glob("*.md")} <= set(SCHEMAS)


def _box(node: dict) -> tuple[float, float, float, float]:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
