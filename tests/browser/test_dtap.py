"""The schedule in the DTAP Scheduler Preview node, dragged with the mouse in the real canvas."""

import json
import re
from pathlib import Path

import pytest
from frontend import PACK_NAME
from pack.trainers.schedule import expected_steps, zo_probability

pytestmark = pytest.mark.browser

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "dtap_preview.json"
NODE = "2"
PAPER = dict(k=0.05, t_mid=750, t_max=1000)
SET = """([name, value]) => {
    const widget = app.graph.getNodeById(2).widgets.find(w => w.name === name);
    widget.value = value;
    widget.callback?.(value, app.canvas, app.graph.getNodeById(2));
}"""
BOXES = """async url => {
    const { MARGIN } = await import(`${url}/lib/dtap_plot.mjs`);
    const element = document.querySelector('.edgetune-dtap').shadowRoot.querySelector('canvas');
    const frame = element.getBoundingClientRect(), scale = frame.width / element.clientWidth;
    const side = (element.clientWidth - MARGIN.left - MARGIN.between - MARGIN.right) / 2;
    const [top, bottom] = [MARGIN.top, element.clientHeight - MARGIN.bottom];
    const box = left => [
        [left, left + side].map(x => frame.x + scale * x),
        [top, bottom].map(y => frame.y + scale * y),
    ];
    return [box(MARGIN.left), box(element.clientWidth - MARGIN.right - side)];
}"""


class Plot:
    """The drawing in pixels of the page."""

    def __init__(self, canvas):
        self.canvas, self.mouse = canvas, canvas.page.mouse
        self.curves, self.run = canvas.page.evaluate(BOXES, f"{canvas.url}/extensions/{PACK_NAME}")

    @staticmethod
    def at(box: list, x: float, y: float) -> tuple[float, float]:
        """Shares of the width from the left and of the height from the bottom."""
        (left, right), (top, bottom) = box
        return left + x * (right - left), bottom - y * (bottom - top)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse.move(*start)
        self.mouse.down()
        self.mouse.move(*end, steps=5)
        self.mouse.up()

    def inputs(self) -> dict:
        return self.canvas.export()[NODE]["inputs"]


@pytest.fixture
def plot(canvas) -> Plot:
    canvas.open(json.loads(WORKFLOW.read_text(encoding="utf-8")), "dtap_preview")
    canvas.page.locator(".edgetune-dtap canvas").wait_for()
    return Plot(canvas)


def title(strategy: str, steps: int, **schedule) -> str:
    bp, zo = expected_steps(strategy, steps, **schedule).rounded()
    return f"{bp} BP-low and {zo} ZO-high steps expected"


def test_the_plot_follows_the_widgets(canvas, plot):
    canvas.page.get_by_text(title("dtap", 1000, **PAPER)).wait_for()
    canvas.page.evaluate(SET, ["steps", 400])
    canvas.page.get_by_text(title("dtap", 400, **PAPER)).wait_for()
    canvas.page.evaluate(SET, ["t_mid", 500])
    canvas.page.get_by_text(title("dtap", 400, **(PAPER | {"t_mid": 500}))).wait_for()
    canvas.page.evaluate(SET, ["k", 0.01])
    canvas.page.get_by_text(title("dtap", 400, k=0.01, t_mid=500, t_max=1000)).wait_for()
    canvas.page.evaluate(SET, ["strategy", "tap"])
    canvas.page.get_by_text(title("tap", 400, k=0.01, t_mid=500, t_max=1000)).wait_for()
    assert canvas.messages == []


def test_dragging_the_midpoint_on_either_drawing_sets_t_mid(canvas, plot):
    plot.drag(plot.at(plot.curves, 0.75, 0.5), plot.at(plot.curves, 0.4, 0.3))
    assert plot.inputs()["t_mid"] == pytest.approx(400, abs=5)
    t_mid = plot.inputs()["t_mid"]
    canvas.page.get_by_text(title("dtap", 1000, **(PAPER | {"t_mid": t_mid}))).wait_for()
    plot.drag(plot.at(plot.run, 0.5, t_mid / 1000), plot.at(plot.run, 0.3, 0.9))
    assert plot.inputs()["t_mid"] == pytest.approx(900, abs=10)
    assert plot.inputs()["k"] == 0.05
    plot.drag(plot.at(plot.run, 0.5, 0.9), plot.at(plot.run, 0.5, 1.5))
    assert plot.inputs()["t_mid"] == 1000  # not beyond t_max


def test_dragging_the_other_dot_sets_k(canvas, plot):
    distance, p = 4 / 0.05 / 1000, zo_probability("tap", 1, 1000, 830, **PAPER)
    plot.drag(plot.at(plot.curves, 0.75 + distance, p), plot.at(plot.curves, 0.75 + 2 * distance, 0.2))
    assert plot.inputs()["k"] == pytest.approx(0.025, abs=0.002)
    assert plot.inputs()["t_mid"] == 750


def test_scrubbing_the_run_tells_p(canvas, plot):
    plot.drag(plot.at(plot.run, 0.1, 0.2), plot.at(plot.run, 0.8, 0.7))
    text = canvas.page.get_by_text(re.compile(r"^Step \d+, timestep \d+")).inner_text()
    step, t, percent = (float(found) for found in re.findall(r"\d+\.?\d*", text))
    assert (step, t) == (pytest.approx(800, abs=8), pytest.approx(700, abs=10))
    assert percent == pytest.approx(100 * zo_probability("dtap", step, 1000, t, **PAPER), abs=0.06)
    assert {name: plot.inputs()[name] for name in ("t_mid", "k", "steps")} == {"t_mid": 750, "k": 0.05, "steps": 1000}


def test_a_run_shows_its_picture_no_second_time(canvas, plot):
    canvas.start()
    canvas.finish(timeout_s=60)
    canvas.page.wait_for_timeout(500)
    assert canvas.page.evaluate("() => app.graph.getNodeById(2).imgs ?? []") == []
    assert canvas.page.locator(f'[data-node-id="{NODE}"] img').count() == 0
    assert canvas.messages == []
