"""Our workflows, nodes, messages and help in the frontend that users have."""

import itertools
import json
from pathlib import Path

import pytest

from locales import chinese

pytestmark = pytest.mark.browser

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
TRAINER = "EdgeTune_SelectiveTrainer"

UNREGISTERED = "() => app.graph.nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
ERRONEOUS = "() => app.graph.nodes.filter(n => n.has_errors).map(n => n.type)"
LINKS = """() => [...app.graph.links.values()]
    .map(l => [l.id, l.origin_id, l.origin_slot, l.target_id, l.target_slot].map(Number))"""
CUT_OFF = """() => app.graph.nodes
    .filter(n => n.computeSize()[0] > n.size[0] || n.computeSize()[1] > n.size[1]).map(n => n.title)"""
BOXES = """() => [...document.querySelectorAll('[data-node-id]')].map(e => {
    const { x, y, width, height } = e.getBoundingClientRect();
    return [e.dataset.nodeId, x, y, x + width, y + height];
})"""
SOCKETS = """type => {
    const node = app.graph.nodes.find(n => n.type === type);
    return [node.inputs.filter(i => !i.widget).map(i => i.name), node.outputs.map(o => o.name), node.id];
}"""


def read(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def pack(canvas) -> str:
    """The folder name under which the server has us."""
    templates = canvas.get_json("/api/workflow_templates")
    return next(module for module, names in templates.items() if set(NAMES) <= set(names))


@pytest.fixture(scope="class", params=NAMES)
def opened(request, canvas) -> str:
    """The name of the workflow that is open now."""
    canvas.open(read(request.param), request.param)
    return request.param


class TestAWorkflow:
    """Each is opened once for all of these."""

    def test_it_opens_without_a_complaint(self, canvas, opened):
        workflow = read(opened)
        assert canvas.page.evaluate("() => app.graph.nodes.length") == len(workflow["nodes"])
        assert canvas.page.evaluate(UNREGISTERED) == []
        assert canvas.page.evaluate(ERRONEOUS) == []
        assert sorted(canvas.page.evaluate(LINKS)) == sorted(link[:5] for link in workflow["links"])
        assert canvas.complaints() == []
        assert canvas.messages == []

    def test_the_canvas_exports_the_twin(self, canvas, opened):
        assert canvas.export() == json.loads((WORKFLOWS / "api" / f"{opened}.json").read_text(encoding="utf-8"))

    def test_nothing_is_cut_off_and_nothing_overlaps(self, canvas, opened):
        if not canvas.is_nodes2:
            assert canvas.page.evaluate(CUT_OFF) == []
            return
        boxes = canvas.page.evaluate(BOXES)
        assert len(boxes) == len(read(opened)["nodes"])
        for (one, *a), (other, *b) in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)


def test_a_node_that_is_missing_is_complained_about(canvas):
    """Or else the tests above would see nothing."""
    workflow = read("dtap_preview")
    node = next(node for node in workflow["nodes"] if node["type"] == "EdgeTune_DTAPPreview")
    node["type"] = node["properties"]["Node name for S&R"] = "EdgeTune_Gone"
    canvas.open(workflow, "gone")
    assert canvas.page.evaluate(UNREGISTERED) == ["EdgeTune_Gone"]
    assert canvas.complaints() != []


def test_the_trainer_shows_all_its_sockets(canvas):
    canvas.open(read("train_and_compare"), "train_and_compare")
    inputs, outputs, node_id = canvas.page.evaluate(SOCKETS, TRAINER)
    info = canvas.get_json(f"/object_info/{TRAINER}")[TRAINER]
    kinds = {name: spec[0] for name, spec in info["input"]["required"].items()}
    assert inputs == [name for name, kind in kinds.items() if kind in ("MODEL", "CLIP", "VAE", "EDGETUNE_SUBJECT")]
    assert outputs == info["output_name"]
    if canvas.is_nodes2:
        shown = canvas.page.locator(f'[data-node-id="{node_id}"]').inner_text()
        assert set(inputs + outputs) <= set(shown.split())


def test_loading_the_page_brings_no_word_about_us(canvas):
    module = pack(canvas)
    marks = ("edgetune", module.lower(), "uncaught")
    assert [text for text in canvas.loaded_messages if any(mark in text.lower() for mark in marks)] == []


@pytest.fixture
def template_browser(canvas):
    """The frontend's dialog on our pack's page; away afterwards, whatever happened in it."""
    canvas.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = canvas.page.get_by_role("dialog")
    dialog.get_by_text(pack(canvas), exact=True).first.click()
    yield dialog
    canvas.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_the_template_browser_lists_our_workflows(canvas, template_browser):
    for name in NAMES:
        card = template_browser.get_by_test_id(f"template-workflow-{name}")
        canvas.wait(lambda: card.count() or canvas.page.mouse.wheel(0, 400), timeout_s=10)  # noqa: B023
        card.scroll_into_view_if_needed()  # its picture is loaded, and further cards are made, when they are near
        picture = card.locator("img").first
        picture.hover()  # where the wheel turns
        canvas.wait(lambda: picture.evaluate("e => e.naturalWidth") == 640, timeout_s=10)  # noqa: B023


@pytest.mark.parametrize("name", NAMES)
def test_a_thumbnail_is_served_as_jpeg(canvas, name):
    answer = canvas.page.request.get(f"{canvas.url}/api/workflow_templates/{pack(canvas)}/{name}.jpg")
    assert answer.ok
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.body() == (WORKFLOWS / f"{name}.jpg").read_bytes()


def test_the_info_button_shows_the_help(canvas):
    canvas.open(read("train_and_save"), "train_and_save")
    canvas.select(canvas.page.evaluate(SOCKETS, TRAINER)[2])
    canvas.page.get_by_test_id("info-button").click()
    canvas.page.get_by_text("arXiv:2507.10029").first.wait_for(state="attached")
    canvas.page.evaluate("() => app.canvas.deselectAll()")


def test_the_nodes_speak_the_language_of_the_frontend(canvas):
    name = "() => LiteGraph.registered_node_types.EdgeTune_SelectiveTrainer.title"
    assert canvas.page.evaluate(name) == "Selective BP/ZO Trainer"
    canvas.set("Comfy.Locale", "zh")
    try:
        canvas.reload()
        assert canvas.page.evaluate(name) == chinese()["Selective BP/ZO Trainer"]
        canvas.open(read("train_and_save"), "train_and_save")
        assert canvas.complaints() == []
        assert canvas.messages == []
    finally:
        canvas.set("Comfy.Locale", "en")
        canvas.reload()
