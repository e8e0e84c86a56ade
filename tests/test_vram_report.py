"""VRAM Report: measured and planned bytes stand on the same bars, the papers' beside them; the picture is legible."""

import itertools
import json
from dataclasses import asdict, replace

import folder_paths
import pytest
import tiny
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from pack.nodes import host
from pack.nodes.vram_report import VRAMReport
from pack.trainers.config import HollowConfig, SelectiveConfig
from pack.trainers.memory import BY_ALLOCATOR, Phase, PhaseMeter
from pack.trainers.memory_plots import memory_figure
from pack.trainers.memory_view import memory_json, memory_text, memory_view
from pack.trainers.plan import Plan, PlannedPhase
from pack.trainers.planning import planned_phases
from pack.trainers.plots import rendered
from pack.trainers.published import published
from pack.trainers.report import Circumstances, LoadedModel, Report, selective_report
from pack.trainers.selective import train_selective
from pack.trainers.timeline import Span
from test_selective import example

MIB = 2**20
CPU = torch.device("cpu")
CONFIG = SelectiveConfig(steps=3, zo_perturbations=1, strategy="random", seed=11)  # BP, BP, ZO
FEW = replace(CONFIG, target_modules="cross-attention")  # layers, so that it is fast
GIVEN = Circumstances("sd_v1", "epsilon", "a sks dog", 512, "cpu", "float32", architecture="SD15")
WIDE = (LoadedModel("AutoencoderKL", 160 * MIB),)


@pytest.fixture(scope="module")
def run() -> tuple[Report, tuple]:
    """A real run's report, and the plan of the same."""
    model, photos = tiny.tiny_model("sd1"), example("sd1")
    meter = PhaseMeter(CPU)
    with host.trainable(model) as network:
        planned = planned_phases(network, lambda ratio: photos.high if ratio == 1 else photos.low, FEW)
        trained = train_selective(network, [photos], FEW, host.lora_names(model), meter, lambda step: None)
    return selective_report(CONFIG, trained.steps, meter, GIVEN._replace(other_models=WIDE)), planned


def plan(phases, allowance: int = 0, **more) -> Plan:
    facts = dict(method="Selective BP/ZO", base_model="sd_v1", resolution=512, device="cpu", dtype="float32")
    limits = dict(allowance_bytes=allowance, free_bytes=None, budget_bytes=None, other_models=())
    return Plan(**facts | limits | dict(phases=phases, settings=asdict(CONFIG), architecture="SD15") | more)


def test_measured_bars_are_the_planned_ones(run):
    """Two ways to the same bytes: a run's own phases, and fake tensors. They agree part by part."""
    report, phases = run
    measured, planned = memory_view(report).bars, memory_view(plan(phases)).bars
    assert {bar.phase: bar for bar in measured} == {bar.phase: bar for bar in planned}
    assert {bar.phase for bar in measured} == {"inference", "bp", "zo"}
    assert all(min(bar.weights, bar.work) > 0 for bar in measured)
    assert max(bar.peak for bar in measured if bar.phase != "inference") == report.peak_bytes


def test_the_node_gives_picture_and_text_which_also_stand_in_the_history(run, tmp_path):
    report, _ = run
    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(tmp_path))
    try:
        outputs = {format: VRAMReport.execute(report, format) for format in ("text", "json")}
    finally:
        folder_paths.set_temp_directory(before)
    for output in outputs.values():
        plot, text = output.result
        assert plot.dtype == torch.float32 and plot.shape[0] == 1 and plot.shape[2:] == (1200, 3)
        assert output.ui["text"] == [text]
        (saved,) = output.ui["images"]
        assert (tmp_path / saved["subfolder"] / saved["filename"]).is_file()
        json.dumps(output.ui)
    record = json.loads(outputs["json"].result[1])
    assert record.items() >= json.loads(report.to_json()).items()
    assert record["published"]["bytes"] == 4756 * MIB
    text = outputs["text"].result[1]
    assert "arXiv:2507.10029 has 4,756 MiB" in text and "loaded beside it: AutoencoderKL, 160 MiB" in text


def test_what_is_no_report_is_refused():
    with pytest.raises(ValueError, match="report: got dict, .* connect the report of a trainer or the plan"):
        VRAMReport.execute({"scores": 1})


@pytest.mark.parametrize(
    "architecture, settings, mib",
    [
        ("SD15", dict(low_res_ratio=0.5), 4756),  # set by ZO
        ("SD15", dict(low_res_ratio=0.75), 5033),  # set by BP
        ("SD15", dict(strategy="bp_high"), 5722),
        ("SD20", dict(low_res_ratio=0.625), 5613),
        ("SD15", dict(low_res_ratio=0.6), None),
        ("SD15", dict(batch_size=2), None),
        ("SDXL", {}, None),  # at 1024 px only
        ("PocketSD1", {}, None),
    ],
)
def test_a_paper_is_quoted_for_what_it_ran_and_for_nothing_else(architecture, settings, mib):
    found = published("Selective BP/ZO", architecture, 512, asdict(replace(CONFIG, **{"strategy": "dtap"} | settings)))
    assert (found and found.bytes) == (mib and mib * MIB)


def test_the_poster_is_quoted_for_its_own_rank_and_share():
    for settings, is_quoted in (({}, True), ({"rank": 4}, False), ({"hollow_fraction": 0.73}, False)):
        found = published("Hollowed Net", "SD20", 512, asdict(replace(HollowConfig(), **settings)))
        assert (found is not None) == is_quoted


PHASES = (("encode", 900), ("inference", 9000), ("cache", 9100), ("bp", 12_345), ("zo", 9100), ("evaluation", 9000))


def long_report(scale: float = 1.0, **more) -> Report:
    """The longest words there are, and large numbers; nobody ran it."""
    phases = [(name, int(mib * scale) * MIB) for name, mib in PHASES]
    spans = [Span(name, 200.0 * i, 200.0 * i + 190, 190.0, size, 3 * size) for i, (name, size) in enumerate(phases)]
    fields = dict(
        method="Quantize + ZO Textual Inversion",
        settings=dict(method="zo"),
        peak_bytes=phases[3][1],
        planned_peak_bytes=int(1.01 * phases[3][1]),
        phases=tuple(Phase(name, 190.0, size, size // 2, size // 3) for name, size in phases),
        timeline=tuple(spans),
    )
    return replace(selective_report(CONFIG, [], PhaseMeter(CPU), GIVEN), **fields | more)


def long_plan(**limits) -> Plan:
    """The same to come, on CUDA."""
    parts = [(name, mib * MIB, mib * MIB // 2, MIB, 0, mib * MIB // 2 - MIB) for name, mib in PHASES[1:]]
    return plan(tuple(PlannedPhase(*part) for part in parts), 600 * MIB, **limits)


VIEWS = {
    "report": long_report(),
    "small report": long_report(0.01),
    "short report": long_report(timeline=(Span("bp", 0.1, 2.0, 1.9, 40 * MIB, 900 * MIB),), planned_peak_bytes=None),
    "CUDA": long_report(measurement=BY_ALLOCATOR),
    "no time line": long_report(timeline=()),
    "plan": long_plan(),
    "budget": long_plan(budget_bytes=12_000 * MIB, free_bytes=11_111 * MIB),
    "plenty": long_plan(free_bytes=80_000 * MIB),
}


def unseen_ticks(figure: Figure) -> set[Text]:
    """Labels of ticks beyond the ends of their axis, which are there and not drawn."""
    found = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                found |= {tick.label1, tick.label2} if not low <= tick.get_loc() <= high else set()
    return found


@pytest.mark.parametrize("name", VIEWS)
def test_words_in_the_picture_do_not_overlap_nor_leave_it(name):
    figure = memory_figure(memory_view(VIEWS[name]))
    image = rendered(figure)
    assert image.shape[0] == 1 and image.shape[2:] == (1200, 3) and 300 < image.shape[1] < 1200
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text not in unseen_ticks(figure)]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    boxes = [(words, box) for words, box in boxes if words.strip()]
    assert len(boxes) > 10
    for words, box in boxes:
        assert 0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0 and box.y1 <= figure.bbox.y1, words
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)


def test_text_says_what_the_plan_says_about_room():
    text = memory_text(long_plan(budget_bytes=12_000 * MIB))
    assert "does not fit into 12,000 MiB of the budget" in text and "600 MiB for CUDA's context" in text


def test_json_of_a_plan_carries_the_paper_s_figure_or_null():
    assert json.loads(memory_json(long_plan()))["published"]["bytes"] == 4756 * MIB
    assert json.loads(memory_json(long_plan(architecture="PocketSD1")))["published"] is None
