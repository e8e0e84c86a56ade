"""Our nodes found with the canvas's own search and put onto it with the mouse."""

import pytest

pytestmark = pytest.mark.browser

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
    canvas.place_by_search(words)
    assert canvas.page.evaluate(TYPES) == [FOUND[words]]
    assert canvas.page.evaluate(BAD) == []
    assert canvas.messages == []


def test_a_node_is_dragged_from_the_node_library(canvas):
    toggle = "() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')"
    canvas.open_empty()
    canvas.page.evaluate(toggle)
    try:
        canvas.page.get_by_placeholder("Search...").fill("DTAP")
        entry = canvas.page.get_by_text("DTAP Scheduler Preview")
        entry.wait_for()
        canvas.page.wait_for_timeout(700)  # the list follows the words with a delay

        def dropped() -> bool:  # a busy page may not have begun the drag before the mouse is let go
            entry.drag_to(canvas.page.locator("#graph-canvas"), target_position={"x": 900, "y": 400}, force=True)
            canvas.page.wait_for_timeout(2000)
            return bool(canvas.page.evaluate(TYPES))

        canvas.wait(dropped, timeout_s=30)
        assert canvas.page.evaluate(TYPES) == ["EdgeTune_DTAPPreview"]
        assert canvas.page.evaluate(BAD) == []
        assert canvas.complaints() == []
    finally:
        canvas.page.evaluate(toggle)
