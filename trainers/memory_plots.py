"""The memory of a run as a picture: what was held and when, and what it was, beside the plan and the paper."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from .memory_view import MIB, NAMES, MemoryView
from .plots import BP_TO_ZO, DPI, FAINT, INK, TEXT_PT, TICK_PT, TITLE_PT, WIDTH_PX, rendered
from .timeline import Span

BAR_PX, TIMELINE_PX, FRAME_PX = 46, 360, 250  # height of one bar, of the time line, and of all that is around the bars
PHASES = {  # steps in the colours of the schedule's picture
    "encode": "#b9a7cf",
    "inference": "#8cc0c4",
    "cache": "#8fbf9f",
    "bp": BP_TO_ZO(0.0),
    "zo": BP_TO_ZO(1.0),
    "evaluation": "#d8b4b4",
}
OTHER_PHASE = "#c9c9c9"
PARTS = {"weights": "#9aa3ad", "LoRA or token, optimizer": "#5a9e6f", "activations, gradients": "#c4566b"}
ALLOWANCE = {"CUDA's own, allowance": "#d9b8bf"}
LEGEND_COLUMNS = 5  # more entries take a second line
COMPARED = "#e4e0d8"  # plan and paper
COLUMNS = 240  # of the time line
PROCESS_LINE = dict(color=INK, lw=1.3, ls=":")
LIMIT_LINES = (dict(color=INK, lw=1.5, ls="--"), dict(color=INK, lw=1.5, ls=":"))
WORDS = dict(va="center", fontsize=TICK_PT, color=INK)


def memory_image(view: MemoryView) -> Tensor:
    """The picture as a batch of one image, (1, H, 1200, 3) float32, 0-1."""
    return rendered(memory_figure(view))


def memory_figure(view: MemoryView) -> Figure:
    """The time line, where there is one, above the bars."""
    bars_px = FRAME_PX + BAR_PX * (len(view.bars) + bool(view.planned) + bool(view.published))
    heights = [TIMELINE_PX, bars_px] if view.spans else [bars_px]
    size = (WIDTH_PX / DPI, sum(heights) / DPI)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.05)
    figure.suptitle(view.title, fontsize=TITLE_PT, fontweight="bold", color=INK)
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if view.spans:
        _draw_timeline(panels[0], view)
    _draw_bars(panels[-1], view)
    return figure


def _draw_timeline(axes: Axes, view: MemoryView) -> None:
    """As high as the highest of what ran in each moment, in its colour; phases that take turns mix theirs."""
    unit, scale = ("s", 1) if view.spans[-1].end < 600 else ("min", 60)
    phases = dict.fromkeys(span.phase for span in sorted(view.spans, key=lambda span: span.start))
    edges = np.linspace(0, view.spans[-1].end, COLUMNS + 1)
    shares = _shares(view.spans, edges)  # (span, column)
    colours = np.array([to_rgb(PHASES.get(span.phase, OTHER_PHASE)) for span in view.spans])
    is_busy = shares.sum(0) > 0
    mixed = (shares.T @ colours)[is_busy] / shares.sum(0)[is_busy, None]
    left, width = edges[:-1] / scale, edges[1] / scale
    axes.bar(left[is_busy], _highest(view.spans, shares, "bytes")[is_busy], width, align="edge", color=mixed, lw=0)
    axes.set(xlim=(0, edges[-1] / scale), ylim=(0, 1.08 * max(span.bytes for span in view.spans) / MIB))
    _label(axes, f"time, {unit}", "tensors, MiB")
    handles = [Patch(color=PHASES.get(phase, OTHER_PHASE), label=NAMES.get(phase, phase)) for phase in phases]
    if view.has_process:
        process = _highest(view.spans, shares, "process_bytes")
        handles.append(_draw_process(axes.twinx(), (left + width / 2)[is_busy], process[is_busy]))
    _legend(axes, handles)


def _shares(spans: Sequence[Span], edges: np.ndarray) -> np.ndarray:
    """Seconds of each column that each span's phase ran, (span, column): spread evenly over merged spans."""
    starts, ends, seconds = (
        np.array([getattr(span, name) for span in spans])[:, None] for name in ("start", "end", "seconds")
    )
    overlap = np.clip(np.minimum(ends, edges[1:]) - np.maximum(starts, edges[:-1]), 0, None)
    return overlap * seconds / np.maximum(ends - starts, 1e-9)


def _highest(spans: Sequence[Span], shares: np.ndarray, name: str) -> np.ndarray:
    """The highest figure among what ran in each column, MiB."""
    sizes = np.array([getattr(span, name) for span in spans])[:, None] / MIB
    return np.where(shares > 0, sizes, 0).max(0)


def _draw_process(axes: Axes, x: np.ndarray, process: np.ndarray) -> Line2D:
    """On its own scale: the process holds much else."""
    (line,) = axes.plot(x, process, label="process, right scale", **PROCESS_LINE)
    axes.set_ylim(0, 1.08 * process.max())
    _label(axes, "", "process, MiB")
    return line


def _draw_bars(axes: Axes, view: MemoryView) -> None:
    """One row for each phase but encoding, whose networks are not there while steps run; then plan and paper."""
    bars = [bar for bar in view.bars if bar.phase != "encode"] or list(view.bars)
    parts = PARTS | (ALLOWANCE if any(bar.allowance for bar in bars) else {})
    rows = [(NAMES.get(bar.phase, bar.phase), sum(bar[1:]), "") for bar in bars]
    for row, bar in enumerate(bars):
        lefts = np.cumsum([0, *bar[1:]])[: len(parts)] / MIB
        axes.barh([row] * len(parts), np.array(bar[1 : len(parts) + 1]) / MIB, 0.66, lefts, color=list(parts.values()))
    if view.planned:
        rows.append(("planned peak", view.planned, ""))
    if view.published:
        rows.append((view.published.source, view.published.bytes, view.published.run))
    longest = max(size for _, size, _ in rows)
    limits = [(name, size) for name, size in view.limits if size <= 1.5 * longest]
    full = 1.12 * max([longest, *(size for _, size in limits)]) / MIB
    for row, (_, size, words) in enumerate(rows):
        if row >= len(bars):
            axes.barh(row, size / MIB, color=COMPARED, height=0.66)
        if words:
            axes.text(0.01 * full, row, f"{size / MIB:,.0f}, {words}", **WORDS)
        else:
            axes.text(size / MIB + 0.01 * full, row, f"{size / MIB:,.0f}", bbox=dict(color="white", pad=1), **WORDS)
    handles = [Patch(color=colour, label=part) for part, colour in parts.items()]
    for (name, size), style in zip(limits, LIMIT_LINES, strict=False):
        handles.append(axes.axvline(size / MIB, label=f"{name}, {size / MIB:,.0f} MiB", zorder=0.9, **style))
    axes.set(xlim=(0, full), ylim=(len(rows) - 0.5, -0.5))
    _label(axes, "peak on the device, MiB", "")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    _legend(axes, handles)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=TEXT_PT, color=INK)
    axes.set_ylabel(y, fontsize=TEXT_PT, color=INK)
    axes.tick_params(labelsize=TICK_PT, labelcolor=INK, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4 if axis is axes.yaxis else 6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"))


def _legend(axes: Axes, handles: list) -> None:
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(handles) if len(handles) <= LEGEND_COLUMNS else 3,
        fontsize=TICK_PT,
        labelcolor=INK,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.0,
        handletextpad=0.4,
        borderpad=0,
    )
