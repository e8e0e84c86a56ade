"""The panel that trainer nodes show while they run: fed with messages, and by runs on the pocket model."""

import json
import re
import uuid
from pathlib import Path

import pytest
from frontend import MIB, step_message

pytestmark = pytest.mark.browser

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
TRAINER = "EdgeTune_SelectiveTrainer"
STEPS = 12

SET = """settings => {
    for (const [type, name, value] of settings)
        for (const node of app.graph.nodes.filter(n => n.type === type))
            node.widgets.find(w => w.name === name).value = value;
}"""
CUT_OFF = """panel => [...panel.querySelectorAll('.row > span')]
    .filter(span => span.scrollWidth > span.clientWidth + 1).map(span => span.textContent)"""
SAVED = "() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))"
LISTEN = """() => {
    window.end = null;
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, () => { window.end = end; });
}"""
DRAW_NOTHING = "() => app.graph.nodes.filter(n => n.type === 'SaveImage').forEach(n => app.graph.remove(n))"
HEAR_PICTURES = """() => {
    const isHeard = window.pictured !== undefined;
    window.pictured = [];
    if (!isHeard) app.api.addEventListener('b_preview_with_metadata', ({ detail: { displayNodeId, blob } }) =>
        window.pictured.push([app.graph.getNodeById(displayNodeId).type, blob.size]));
}"""
FIND = "type => Number(app.graph.nodes.find(n => n.type === type).id)"
ADD = "type => { const node = LiteGraph.createNode(type); app.graph.add(node); return Number(node.id); }"
PANEL_OF = """id => {
    const widget = app.graph.getNodeById(id).widgets.find(w => w.name === 'training');
    return widget?.element.shadowRoot.querySelector('.panel').innerText ?? '';
}"""
TO_SUBGRAPH = """type => {
    const node = app.graph.nodes.find(n => n.type === type);
    return app.graph.convertToSubgraph(new Set([node])).node.id;
}"""
ENTER = "id => { const node = app.graph.getNodeById(id); app.canvas.openSubgraph(node.subgraph, node); }"


def read(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def trainer(canvas) -> tuple[int, str]:
    """A trainer's node id and its graph's, just opened, and never before."""
    workflow = read("train_and_save") | {"id": str(uuid.uuid4())}
    canvas.open(workflow, "train_and_save")
    return canvas.page.evaluate(FIND, TRAINER), workflow["id"]


def settled(canvas) -> dict:
    """What would be saved, once nodes have the size that they are laid out with."""
    saved = [canvas.page.evaluate(SAVED)]

    def is_same() -> bool:
        canvas.page.wait_for_timeout(300)
        saved.append(canvas.page.evaluate(SAVED))
        return saved[-1] == saved[-2]

    canvas.wait(is_same, timeout_s=10)
    return saved[-1]


def panel(canvas):
    return canvas.page.locator(".edgetune-panel .panel")


def test_messages_are_drawn_and_nothing_of_it_is_saved(canvas, trainer):
    before = settled(canvas)
    assert panel(canvas).count() == 0

    limits = {"planned_bytes": 128 * MIB, "budget_bytes": 2048 * MIB}
    canvas.receive("edgetune.step", step_message(*trainer, [0.5, 0.4], kinds=["bp", "zo"], **limits))
    for text in ("Step 2 of 8", "BP 0.5000 (1)", "ZO 0.4000 (1)", "peak 64 MiB · plan 128 MiB · budget 2.0 GiB"):
        panel(canvas).get_by_text(text).wait_for()
    assert panel(canvas).evaluate(CUT_OFF) == []
    assert settled(canvas) == before
    assert canvas.messages == []

    canvas.receive(
        "edgetune.done", {"node": str(trainer[0]), "workflow": trainer[1], "prompt_id": "p", "summary": "End"}
    )
    panel(canvas).get_by_text("End").wait_for()
    assert not panel(canvas).get_by_role("button", name="Cancel").is_visible()
    assert settled(canvas) == before
    assert canvas.messages == []


def test_a_run_of_another_graph_or_node_is_not_shown_here(canvas, trainer):
    node, workflow = trainer
    canvas.receive("edgetune.step", step_message(node, "another", [0.5]))
    canvas.receive("edgetune.step", step_message(node + 1000, workflow, [0.5]))
    canvas.receive("edgetune.step", step_message(f"{node}:1", workflow, [0.5]))
    canvas.page.wait_for_timeout(300)
    assert panel(canvas).count() == 0
    assert canvas.messages == []


def test_the_run_is_there_when_the_workflow_is_opened_again(canvas, trainer):
    canvas.receive("edgetune.step", step_message(*trainer, [0.5, 0.4, 0.3]))
    panel(canvas).get_by_text("Step 3 of 8").wait_for()
    canvas.open(read("dtap_preview"), "dtap_preview")
    assert panel(canvas).count() == 0
    canvas.open(read("train_and_save") | {"id": trainer[1]}, "train_and_save")
    panel(canvas).get_by_text("Step 3 of 8").wait_for()


def test_messages_that_the_server_knows_nothing_about_do_not_make_a_gap(canvas, trainer):
    canvas.receive("edgetune.step", step_message(*trainer, [0.5, 0.4]))
    canvas.receive("edgetune.step", step_message(*trainer, [0.1], step=5))  # 3 and 4 never came
    canvas.receive("edgetune.step", step_message(*trainer, [0.4, 0.3], step=3))  # 2 comes again
    panel(canvas).get_by_text("(3)").wait_for()


def test_each_trainer_of_a_graph_shows_its_own_run(canvas):
    workflow = read("train_and_save")
    canvas.open(workflow | {"id": str(uuid.uuid4())}, "train_and_save")
    graph = canvas.page.evaluate("() => app.rootGraph.id")
    nodes = [canvas.page.evaluate(ADD, kind) for kind in ("EdgeTune_HollowedNetTrainer", "EdgeTune_ZOTextualInversion")]
    nodes.append(canvas.page.evaluate(FIND, TRAINER))
    before = settled(canvas)
    for steps, node in enumerate(nodes, start=2):
        canvas.receive("edgetune.step", step_message(node, graph, [0.1 * steps] * steps, kinds=["bp", "zo"] * 2))
    for steps, node in enumerate(nodes, start=2):
        shown = canvas.page.evaluate(PANEL_OF, node)
        canvas.wait(lambda: f"Step {steps} of 8" in canvas.page.evaluate(PANEL_OF, node), timeout_s=10)  # noqa: B023
        assert panel(canvas).count() == len(nodes), shown
    assert settled(canvas) == before
    assert canvas.messages == []


def test_the_panel_of_a_node_in_sub_graphs_is_shown_where_the_node_is(canvas, trainer):
    outer = canvas.page.evaluate(TO_SUBGRAPH, TRAINER)
    canvas.receive("edgetune.step", step_message(f"{outer}:{trainer[0]}", trainer[1], [0.5, 0.4]))
    canvas.page.wait_for_timeout(200)
    assert not panel(canvas).is_visible()
    canvas.page.evaluate(ENTER, outer)
    panel(canvas).get_by_text("Step 2 of 8").wait_for()
    assert canvas.messages == []


@pytest.mark.slow
class TestARun:
    """Real ones on the pocket model, one after the other."""

    @pytest.fixture(autouse=True)
    def opened(self, canvas):
        canvas.open(read("pocket_train_and_save"), "pocket_train_and_save")

    def start(self, canvas, steps: int, seed: int) -> None:
        """seed: other than before, or the run would come from the cache."""
        seed += 10 * canvas.is_nodes2
        canvas.page.evaluate(SET, [(TRAINER, "steps", steps), (TRAINER, "seed", seed)])
        canvas.start()
        panel(canvas).get_by_text(re.compile(f"Step [1-9][0-9]* of {steps}")).wait_for(timeout=120_000)

    def test_ends_with_its_figures_and_every_step(self, canvas):
        self.start(canvas, STEPS, seed=1)
        during = canvas.page.evaluate(SAVED)
        canvas.finish(timeout_s=240)
        panel(canvas).get_by_text(f"Selective BP/ZO: {STEPS} steps").wait_for()
        counts = re.findall(r"\((\d+)\)", panel(canvas).inner_text())
        assert sum(map(int, counts)) == STEPS
        (shipped,) = (node for node in read("pocket_train_and_save")["nodes"] if node["type"] == TRAINER)
        for saved in (during, canvas.page.evaluate(SAVED)):
            (ours,) = (node for node in saved["nodes"] if node["type"] == TRAINER)
            assert ours["size"] == shipped["size"]
            assert len(ours["widgets_values"]) == len(shipped["widgets_values"])
        assert canvas.messages == []

    def test_survives_a_reload_and_can_be_cancelled_after_it(self, canvas):
        self.start(canvas, 100_000, seed=2)
        canvas.reload()
        panel(canvas).get_by_text(re.compile("Step .* of 100000")).wait_for()
        counts = re.findall(r"\((\d+)\)", panel(canvas).inner_text())
        step = int(re.search(r"Step (\d+)", panel(canvas).inner_text())[1])
        assert step - sum(map(int, counts)) in (-1, 0, 1)  # the two are read one after the other
        panel(canvas).get_by_role("button", name="Cancel").click()
        panel(canvas).get_by_text("Cancelled").wait_for()

    def test_the_run_button_starts_it_and_stop_and_keep_ends_it_with_a_result(self, canvas):
        canvas.page.evaluate(SET, [(TRAINER, "steps", 100_000), (TRAINER, "seed", 3 + 10 * canvas.is_nodes2)])
        canvas.page.evaluate(LISTEN)
        canvas.page.get_by_test_id("queue-button").click()
        panel(canvas).get_by_text(re.compile("Step [1-9]")).wait_for(timeout=120_000)
        panel(canvas).get_by_role("button", name="Stop and keep").click()
        canvas.finish(timeout_s=120)
        panel(canvas).get_by_text(re.compile(r"stopped at step \d+ of 100000")).wait_for()
        assert canvas.messages == []

    def test_in_a_sub_graph_is_shown_inside_it(self, canvas):
        outer = canvas.page.evaluate(TO_SUBGRAPH, TRAINER)
        canvas.start()
        canvas.page.evaluate(ENTER, outer)
        panel(canvas).get_by_text(re.compile("Step [1-9][0-9]* of")).wait_for(timeout=120_000)
        panel(canvas).get_by_role("button", name="Cancel").dispatch_event("click")  # it may be below the window's edge
        panel(canvas).get_by_text("Cancelled").wait_for()
        assert canvas.messages == []


OTHERS = {
    "pocket_train_hollowed": (
        "EdgeTune_HollowedNetTrainer",
        {"steps": 6, "cache_samples": 4, "preview_every": 3},
        "Hollowed Net: 6 steps",
    ),
    "pocket_train_embedding": (
        "EdgeTune_ZOTextualInversion",
        {"steps": 6, "eval_every": 0, "preview_every": 3},
        "6 steps",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_trainers_show_their_runs_too(canvas, name):
    kind, settings, words = OTHERS[name]
    canvas.open(read(name), name)
    settings |= {"seed": 100 + canvas.is_nodes2}
    canvas.page.evaluate(SET, [(kind, setting, value) for setting, value in settings.items()])
    canvas.page.evaluate(DRAW_NOTHING)
    canvas.page.evaluate(HEAR_PICTURES)
    canvas.start()
    panel(canvas).wait_for(timeout=120_000)
    canvas.finish(timeout_s=240)
    panel(canvas).get_by_text(words).wait_for()
    pictured = canvas.page.evaluate("window.pictured")
    assert [node for node, _ in pictured] == [kind] * 2 and all(size for _, size in pictured)
    counts = re.findall(r"\((\d+)\)", panel(canvas).inner_text())
    assert sum(map(int, counts)) == settings["steps"]
    assert canvas.messages == []
