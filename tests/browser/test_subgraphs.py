"""Our sub-graph blueprints: found by search, put onto an empty canvas, opened, wired to the pocket model and run."""

import json
import re

import pytest
from blueprints import ALL

pytestmark = pytest.mark.browser

NODES = """() => {
    const [{ subgraph, title, widgets }] = app.graph.nodes;
    return [title, subgraph.nodes.map(n => n.type), subgraph.nodes.filter(n => n.has_errors).map(n => n.type),
            subgraph.nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type),
            widgets.map(w => w.name)];
}"""
BOXES = """() => app.canvas.graph.nodes.map(node => {
    const size = [0, 1].map(i => Math.max(node.size[i], node.computeSize()[i]));
    return [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, node.pos[0] + size[0], node.pos[1] + size[1]];
})"""
WIRE = """settings => {
    const [blueprint] = app.graph.nodes;
    const [loader, picture] = ["EdgeTune_LoadPocketModel", "PreviewImage"].map(type => LiteGraph.createNode(type));
    app.graph.add(loader);
    app.graph.add(picture);
    for (const [i, { name }] of loader.outputs.entries())
        loader.connect(i, blueprint, blueprint.findInputSlot(name));
    blueprint.connect(blueprint.findOutputSlot("image"), picture, 0);
    for (const [name, value] of settings) {
        const widget = blueprint.widgets.find(w => w.name === name);
        widget.value = value;
        widget.callback?.(value);
    }
    return [String(blueprint.id), String(picture.id)];
}"""
ENTER = "() => { const [node] = app.graph.nodes; app.canvas.openSubgraph(node.subgraph, node); }"
SEARCHED = 32  # letters; the frontend finds nothing for names that are much longer
POCKET = [("folder", "robot [pocket]"), ("resolution", 128), ("width", 128), ("height", 128)]


def ours(canvas) -> dict[str, str]:
    """Name -> id of the pack's blueprints, as the server lists them."""
    listed = canvas.get_json("/api/global_subgraphs")
    return {entry["name"]: key for key, entry in listed.items() if entry["source"] == "custom_node"}


def enter(canvas) -> None:
    """Open the blueprint that stands on the canvas."""
    canvas.page.evaluate(ENTER)
    canvas.wait(lambda: canvas.page.evaluate("() => app.canvas.graph !== app.rootGraph"), timeout_s=10)


def panel(canvas):
    return canvas.page.locator(".edgetune-panel .panel")


def test_the_server_lists_them_and_gives_their_content(canvas):
    listed = ours(canvas)
    assert sorted(listed) == sorted(ALL)
    for key in listed.values():
        nodes = json.loads(canvas.get_json(f"/api/global_subgraphs/{key}")["data"])["nodes"]
        assert len(nodes) == 1


@pytest.mark.parametrize("name", ALL)
def test_it_is_found_by_search_placed_with_the_mouse_and_opens_whole(canvas, name):
    canvas.place_by_search(name[:SEARCHED])
    title, inside, erroneous, unregistered, widgets = canvas.page.evaluate(NODES)
    assert title == name
    assert len(inside) == 8
    assert erroneous == unregistered == []
    assert widgets == list(ALL[name].exposed())

    enter(canvas)
    boxes = canvas.page.evaluate(BOXES)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    assert canvas.complaints() == []
    assert canvas.messages == []


@pytest.mark.slow
def test_it_runs_on_the_pocket_model_and_the_panel_inside_shows_the_run(canvas):
    canvas.place_by_search("Personalise and Generate (LoRA)")
    outer, picture = canvas.page.evaluate(WIRE, [*POCKET, ("steps", 8 + canvas.is_nodes2)])
    trainer = f"{outer}:4"
    assert canvas.export()[trainer]["class_type"] == "EdgeTune_SelectiveTrainer"
    canvas.start()
    enter(canvas)
    canvas.finish(timeout_s=240)
    panel(canvas).get_by_text(re.compile(r"Selective BP/ZO: \d steps")).wait_for()
    assert len(canvas.page.evaluate("id => app.nodeOutputs[id].images", picture)) == 1
    assert canvas.complaints() == []
