"""Where the nodes of our workflows lie once they show what a run leaves in them: panels, photos and pictures.

The pocket variants lie as the workflows that they are made from.
"""

import itertools
import json
from pathlib import Path

import pytest
from frontend import step_message

pytestmark = pytest.mark.browser

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json") if not path.stem.startswith("pocket_"))
PICTURES = ("EdgeTune_LoadSubjectImages", "EdgeTune_VRAMReport", "LossGraphNode", "SaveImage", "PreviewImage")

# Boxes with their title bars, and the groups, in the coordinates of the graph.
BOXES = """isNodes2 => {
    const { canvas, ds } = app.canvas, frame = canvas.getBoundingClientRect();
    const box = node => {
        const size = [0, 1].map(i => Math.max(node.size[i], isNodes2 ? 0 : node.computeSize()[i]));
        return [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, node.pos[0] + size[0], node.pos[1] + size[1]];
    };
    const shown = node => {
        const { x, y, right, bottom } = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
        return [x, y, right, bottom].map((v, i) => (v - [frame.x, frame.y][i % 2]) / ds.scale - ds.offset[i % 2]);
    };
    return [
        app.graph.nodes.map(node => [`${node.id} ${node.title}`, ...(isNodes2 ? shown(node) : box(node))]),
        app.graph.groups.map(({ title, pos, size }) => [title, ...pos, pos[0] + size[0], pos[1] + size[1]]),
    ];
}"""
FIT = """() => {
    app.canvas.ds.fitToBounds([-50, -100, 2700, 1800], { zoom: 1 });
    app.canvas.setDirty(true, true);
}"""
PICTURED = """isNodes2 => {
    app.canvas.setDirty(true, true);
    return app.graph.nodes.filter(node => isNodes2
        ? document.querySelector(`[data-node-id="${node.id}"] img`)?.naturalWidth : node.imgs?.length).length;
}"""


@pytest.mark.parametrize("name", NAMES)
def test_nodes_stay_in_their_groups_and_off_one_another_when_they_have_run(canvas, name):
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    canvas.open(workflow, name)
    canvas.page.evaluate(FIT)
    trainers = [node["id"] for node in workflow["nodes"] if any(slot["name"] == "loss" for slot in node["outputs"])]
    for node in trainers:
        canvas.receive("edgetune.step", step_message(node, workflow["id"], [0.5, 0.4]))
    drawing = [node["id"] for node in workflow["nodes"] if node["type"] in PICTURES]
    for node in drawing:
        photo = {"filename": "0.png", "subfolder": "my_subject", "type": "input"}
        output = {"node": str(node), "display_node": str(node), "prompt_id": "p", "output": {"images": [photo]}}
        canvas.receive("executed", output)
    canvas.wait(lambda: canvas.page.locator(".edgetune-panel .panel").count() == len(trainers), timeout_s=10)
    canvas.wait(lambda: canvas.page.evaluate(PICTURED, canvas.is_nodes2) == len(drawing), timeout_s=10)
    canvas.page.wait_for_timeout(200)  # nodes grow

    boxes, groups = canvas.page.evaluate(BOXES, canvas.is_nodes2)
    for (one, *a), (other, *b) in itertools.combinations(boxes, 2):
        assert not overlap(a, b), (one, other)
    for title, *box in boxes:
        touched = [(group, bounds) for group, *bounds in groups if overlap(bounds, box)]
        assert len(touched) <= 1, (title, touched)
        for group, (left, top, right, bottom) in touched:
            assert left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom, (title, box, group)


def overlap(a: list[float], b: list[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
