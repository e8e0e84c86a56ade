"""Draws the pack's icon and banner for ComfyUI's registry: python tests/artwork.py

Both are the pack's own schedule, trainers/schedule.py: orange where a step backpropagates, blue where it only runs
forward.
"""

import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401, I001, the package `pack`
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from pack.trainers.plots import BP_TO_ZO  # noqa: E402
from pack.trainers.schedule import zo_probability  # noqa: E402

WEB = TESTS.parent / "web"
ICON_PX, BANNER_PX = (400, 400), (1260, 540)  # the banner's sides are 21 to 9
DPI = 100


def draw(size: tuple[int, int], path: Path, title: str, subtitle: str, title_pt: int, subtitle_pt: int) -> None:
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    step, t = np.meshgrid(np.linspace(0, 1000, size[0]), np.linspace(0, 1000, size[1]))
    p = zo_probability("dtap", step, 1000, t, k=0.02, t_mid=620, t_max=1000)
    axes.imshow(p, BP_TO_ZO, vmin=0, vmax=1, origin="lower", aspect="auto")
    axes.set_axis_off()
    axes.text(0.06, 0.2, title, transform=axes.transAxes, fontsize=title_pt, fontweight="bold", color="#222222")
    axes.text(0.063, 0.1, subtitle, transform=axes.transAxes, fontsize=subtitle_pt, color="#222222")
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    draw(ICON_PX, WEB / "icon.png", "ET", "", 110, 1)
    draw(BANNER_PX, WEB / "banner.png", "EdgeTune", "Your subject, learnt inside ComfyUI, in little memory", 72, 24)


if __name__ == "__main__":
    main()
