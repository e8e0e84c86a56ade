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
