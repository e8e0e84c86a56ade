"""Figures as images: the schedule of BP and ZO steps (Choi et al. 2025, arXiv:2507.10029, figure 2, and its whole run).

Figures are drawn through matplotlib's object interface: no pyplot, no global figure, no display.
Sizes are chosen so that the text can still be read on a node, where the image is a third as wide.
"""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .schedule import CONSTANT, DYNAMIC, LABELS, bp_name, expected_steps, midpoint, zo_probability

WIDTH_PX, HEIGHT_PX, DPI = 1200, 520, 150
TITLE_PT, TEXT_PT, TICK_PT = 13, 11, 10
INK, FAINT = "#222222", "#d8d8d8"
BP_TO_ZO = LinearSegmentedColormap.from_list("bp_to_zo", ["#f0a35e", "#ece8e6", "#3f6fb5"])  # p = 0, 1/2, 1

CURVES = 5  # DTAP at the start, the quarters and the end, as in the paper
COLUMNS = 400  # of the heat map at most; the panel is about 400 pixels wide
STEP_COLOURS = colormaps["viridis"]

TAP_LINE = dict(color="black", lw=1.8, ls="--")
MIDPOINT_LINE = dict(color=INK, lw=1.5)
CENTRED = dict(ha="center", va="center", fontsize=TEXT_PT)


def schedule_image(strategy: str, steps: int, *, k: float, t_mid: float, t_max: int) -> Tensor:
    """The probability of ZO-high over timesteps and over the run, (1, 520, 1200, 3) float32, 0-1."""
    schedule = dict(k=k, t_mid=t_mid, t_max=t_max)
    bp, zo = expected_steps(strategy, steps, **schedule).rounded()
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.07)
    curves, run = figure.subplots(1, 2, width_ratios=[1, 1.1])
    _draw_curves(curves, strategy, steps, schedule)
    _draw_run(run, strategy, steps, schedule)
    _draw_key(figure, strategy, steps)
    title = f"{LABELS[strategy]}: {bp} {bp_name(strategy)} and {zo} ZO-high steps expected"
    figure.suptitle(title, fontsize=TITLE_PT, fontweight="bold", color=INK)
    return rendered(figure)


def rendered(figure: Figure) -> Tensor:
    """The figure as a batch of one image, (1, H, W, 3) float32, 0-1."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgb = np.asarray(canvas.buffer_rgba())[..., :3]  # (H, W, 4) -> (H, W, 3)
    return torch.from_numpy(rgb.astype(np.float32) / 255)[None]


def _draw_curves(axes: Axes, strategy: str, steps: int, schedule: dict) -> None:
    """Figure 2 of the paper: p over t, one curve per training step; TAP dashed for comparison."""
    t = np.linspace(0, schedule["t_max"], 501)
    if strategy in CONSTANT:
        axes.plot(t, zo_probability(strategy, 1, steps, t, **schedule), color=INK, lw=2.5)
    else:
        for step in marked_steps(strategy, steps):
            p = zo_probability(strategy, step, steps, t, **schedule)
            axes.plot(t, p, color=_step_colour(step, steps), lw=2.5)
        axes.plot(t, zo_probability("tap", 1, steps, t, **schedule), **TAP_LINE)
    axes.set(xlim=(0, schedule["t_max"]), ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(color=FAINT, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, "timestep t  (data \N{RIGHTWARDS ARROW} noise)", "probability of ZO-high")


def _draw_run(axes: Axes, strategy: str, steps: int, schedule: dict) -> None:
    """Heat map of p over the training step and t, with the midpoint and the steps of the left panel on it."""
    t_max = schedule["t_max"]
    edges = np.linspace(0.5, steps + 0.5, min(steps, COLUMNS) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    t = np.linspace(0, t_max, 301)
    p = zo_probability(strategy, centres, steps, t[:, None], **schedule)  # (t, step)
    extent = (edges[0], edges[-1], 0, t_max)
    image = axes.imshow(
        p, BP_TO_ZO, aspect="auto", origin="lower", vmin=0, vmax=1, extent=extent, interpolation="nearest"
    )
    if strategy in CONSTANT:
        text = "even chance" if strategy == "random" else LABELS[strategy]
        ink = "white" if strategy == "zo_high" else INK
        axes.text(0.5, 0.5, f"{text}\nat every step", transform=axes.transAxes, color=ink, **CENTRED)
    else:
        line = np.broadcast_to(midpoint(strategy, centres, steps, schedule["t_mid"], t_max), centres.shape)
        axes.stairs(line, edges, baseline=None, **MIDPOINT_LINE)
        _mark_steps(axes, strategy, steps, schedule)
    axes.set(xlim=extent[:2], ylim=extent[2:])
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    _label(axes, "training step", "timestep t")
    bar = axes.figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], pad=0.02, aspect=14)
    bar.ax.set_yticklabels([bp_name(strategy), "50 : 50", "ZO-high"], fontsize=TICK_PT, color=INK)
    bar.outline.set_visible(False)


def _draw_key(figure: Figure, strategy: str, steps: int) -> None:
    """One row under the panels that explains the lines of both panels."""
    if strategy in CONSTANT:
        return
    dots = [Line2D([], [], label=str(step), **_dot(step, steps)) for step in marked_steps(strategy, steps)]
    heading = [Line2D([], [], ls="", label="training step")] if dots else []
    lines = [Line2D([], [], label="TAP", **TAP_LINE), Line2D([], [], label="midpoint", **MIDPOINT_LINE)]
    handles = [*heading, *dots, *lines]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=TICK_PT,
        labelcolor=INK,
        frameon=False,
        handlelength=1.4,
        columnspacing=1.2,
        handletextpad=0.4,
        borderpad=0,
    )


def _mark_steps(axes: Axes, strategy: str, steps: int, schedule: dict) -> None:
    """Dots on the midpoint line in the colours of the curves."""
    for step in marked_steps(strategy, steps):
        t = midpoint(strategy, step, steps, schedule["t_mid"], schedule["t_max"])
        if 0 <= t <= schedule["t_max"]:
            axes.plot(step, t, clip_on=False, zorder=3, **_dot(step, steps))


def marked_steps(strategy: str, steps: int) -> list[int]:
    """The steps whose curves are drawn: none when p is the same at all of them."""
    if strategy not in DYNAMIC:
        return []
    return np.unique(np.linspace(0, steps, CURVES).round().clip(1)).astype(int).tolist()


def _dot(step: int, steps: int) -> dict:
    return dict(color=_step_colour(step, steps), ls="", marker="o", ms=8, mec="white", mew=1.5)


def _step_colour(step: int, steps: int) -> tuple:
    return STEP_COLOURS(0.92 * step / steps)  # the last tenth of viridis is too light on white


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=TEXT_PT, color=INK)
    axes.set_ylabel(y, fontsize=TEXT_PT, color=INK)
    axes.tick_params(labelsize=TICK_PT, labelcolor=INK, color=INK)
