"""Our nodes found with the canvas's own search and put onto it with the mouse."""

import json

import pytest

pytestmark = pytest.mark.browser

EMPTY = {"nodes": [], "links": [], "groups": [], "last_node_id": 0, "last_link_id": 0, "config": {}, "version": 0.4}
TYPES = "() => app.graph.nodes.map(n => n.type)"
BAD = "() => app.graph.nodes.filter(n => n.has_errors || !n.size[1]).map(n => n.type)"
FOUND = {
    "Load Subject Images": "EdgeTune_LoadSubjectImages",
    "Selective BP/ZO Trainer": "EdgeTune_SelectiveTrainer",
    "Hollowed Net": "EdgeTune_HollowedNetTrainer",
    "ZOODiP": "EdgeTune_ZOTextualInversion",
    "DTAP Scheduler": "EdgeTune_DTAPPreview",
    "Load Pocket Model": "EdgeTune_LoadPocketModel",
}


@pytest.mark.slow
@pytest.mark.parametrize("words", FOUND)
def test_a_node_is_found_by_name_or_method_and_placed_with_the_mouse(canvas, words):
    canvas.open(json.loads(json.dumps(EMPTY)), "empty")
    search = canvas.page.get_by_role("combobox", expanded=True)

    def opened() -> bool:  # a busy page may take two clicks for single ones
        canvas.page.mouse.dblclick(800, 500)
        canvas.page.wait_for_timeout(1000)
        return search.is_visible()

    canvas.wait(opened, timeout_s=15)
    search.fill(words)
    canvas.page.get_by_test_id("result-item").first.wait_for()
    canvas.page.wait_for_timeout(700)  # the list follows the words with a delay
    canvas.page.keyboard.press("Enter")
    canvas.wait(lambda: canvas.page.evaluate(TYPES), timeout_s=10)
    canvas.page.mouse.move(600, 200, steps=4)
    canvas.page.mouse.click(600, 200)
    assert canvas.page.evaluate(TYPES) == [FOUND[words]]
    assert canvas.page.evaluate(BAD) == []
    assert canvas.messages == []
