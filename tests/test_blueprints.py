"""The sub-graph blueprints we ship: derived from the workflows, and whole in themselves. tests/browser runs them."""

import asyncio

import pytest
from blueprints import ALL, BLUEPRINTS, INPUT, OUTPUT, blueprint, path, text, widget_value
from comfy_api.latest import io
from pack.nodes import EdgeTune

SCHEMAS = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in asyncio.run(EdgeTune().get_node_list())}

every_blueprint = pytest.mark.parametrize("name", ALL)


def inside(name: str) -> dict:
    (made,) = blueprint(name)["definitions"]["subgraphs"]
    return made


def test_these_are_all():
    assert sorted(file.stem for file in BLUEPRINTS.iterdir()) == sorted(ALL)


def test_there_is_one_for_each_trainer():
    trainers = {node_id for node_id, schema in SCHEMAS.items() if any(out.id == "loss" for out in schema.outputs)}
    assert {node["type"] for name in ALL for node in inside(name)["nodes"]} & trainers == trainers


@every_blueprint
def test_the_file_is_what_the_workflow_makes(name):
    assert path(name).read_text(encoding="utf-8") == text(name)


@every_blueprint
def test_widgets_and_sockets_are_those_of_the_schemas(name):
    ours = [node for node in inside(name)["nodes"] if node["type"] in SCHEMAS]
    assert len(ours) == 3
    for node in ours:
        schema = SCHEMAS[node["type"]]
        widgets = [item.id for item in schema.inputs if isinstance(item, io.WidgetInput)]
        assert [slot["name"] for slot in node["inputs"] if "widget" in slot] == widgets
        assert [(slot["name"], slot["type"]) for slot in node["outputs"]] == [(o.id, o.io_type) for o in schema.outputs]
        for item in schema.inputs:
            if isinstance(item, io.WidgetInput) and item.default is not None:
                assert widget_value(node, item.id) == item.default, (node["type"], item.id)


@every_blueprint
def test_links_join_sockets_that_are_there(name):
    made = inside(name)
    nodes = {node["id"]: node for node in made["nodes"]}
    for link in made["links"]:
        source, target = link["origin_id"], link["target_id"]
        gives = made["inputs"] if source == INPUT else nodes[source]["outputs"]
        takes = made["outputs"] if target == OUTPUT else nodes[target]["inputs"]
        given, taken = gives[link["origin_slot"]], takes[link["target_slot"]]
        assert given["type"] == taken["type"] == link["type"]
        assert link["id"] in given["linkIds" if source == INPUT else "links"]
        assert link["id"] == taken["link"] if target != OUTPUT else link["id"] in taken["linkIds"]


@every_blueprint
def test_no_required_socket_inside_is_left_open(name):
    for node in inside(name)["nodes"]:
        for slot in node["inputs"]:
            if "widget" not in slot and slot.get("shape") != 7:  # of optional ones
                assert slot["link"] is not None, (node["type"], slot["name"])


@every_blueprint
def test_what_is_shown_outside_is_what_is_set_inside(name):
    (outer,) = blueprint(name)["nodes"]
    nodes = {node["id"]: node for node in inside(name)["nodes"]}
    shown = [slot["name"] for slot in outer["inputs"] if "widget" in slot]
    assert shown == list(ALL[name].exposed())
    values = [widget_value(nodes[node], widget) for node, widget in ALL[name].exposed().values()]
    assert outer["widgets_values"] == values
