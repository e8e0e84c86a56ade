"""What training a hollowed Stable Diffusion takes at every cut, beside a LoRA on all of it and beside inference.

    python tests/bench/hollow_memory.py [poster sd21 sd21-768 sdxl] [--plot PATH.png]

Peaks of live bytes of the trainers' own steps, run on fake tensors (trainers/fake_tensors.py) on U-Nets of the true
size: batch 1, only the U-Net on the device. "poster" is the paper's own case, float32; the others are in bfloat16
(float16 takes 4 bytes more). Takes minutes on one core, no GPU and hardly any memory.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401, I001
from full_size import blank_photo, full_size_network  # noqa: E402
from pack.trainers.config import HollowConfig, SelectiveConfig  # noqa: E402
from pack.trainers.hollow_cuts import cuts  # noqa: E402
from pack.trainers.objective import Network, Sample  # noqa: E402
from pack.trainers.plan import PlannedPhase  # noqa: E402
from pack.trainers.planning import planned_phases  # noqa: E402
from pack.trainers.plots import DPI, FAINT, INK, TEXT_PT, TICK_PT, TITLE_PT  # noqa: E402

MIB = 2**20
HEAD = (
    "| left out | parameters | rank | weights | LoRA + Adam | work | total | of inference | checkpointed: work | total "
    "| of inference |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
PAPERS_PERCENT = 39
LORA = SelectiveConfig(strategy="bp_high")
CHOICES = (False, True)  # of gradient checkpointing
COLOURS = {128: "#3f6fb5", 4: "#f0a35e"}  # by rank


class Case(NamedTuple):
    """One model at one size, and which runs of it are counted."""

    title: str
    kind: str  # key of checkpoints.FULL_SIZE
    side_px: int
    dtype: torch.dtype = torch.bfloat16
    prediction_type: str = "epsilon"
    ranks: tuple[int, ...] = (4, 128)
    least: float = 0.0  # share of parameters that leaves, from here
    most: float = 1.0  # to here

    def network(self) -> Network:
        return full_size_network(self.kind, self.dtype, self.prediction_type)

    def photo(self) -> Sample:
        return blank_photo(self.kind, self.side_px)


CASES = {
    "poster": Case("Stable Diffusion 2.1, 512 px, float32", "sd21", 512, torch.float32, "epsilon", (1, 128), 0.38, 0.4),
    "sd21": Case("Stable Diffusion 2.1, 512 px", "sd21", 512),
    "sd21-768": Case("Stable Diffusion 2.1, 768 px, v-prediction", "sd21", 768, prediction_type="v_prediction"),
    "sdxl": Case("SDXL, 1024 px", "sdxl", 1024),
}


class Row(NamedTuple):
    """Bytes of one choice of blocks and rank, with and without checkpointing; rank 0 is inference."""

    left_out: str
    share: float
    rank: int
    weights: int
    lora: int
    work: int
    checkpointed_work: int | None

    @property
    def totals(self) -> tuple[int, int | None]:
        held = self.weights + self.lora
        return held + self.work, None if self.checkpointed_work is None else held + self.checkpointed_work


def rows(case: Case) -> Iterator[Row]:
    """Inference, a LoRA on the whole U-Net, then every cut that leaves attention layers."""
    network, photo = case.network(), case.photo()
    for rank in case.ranks:
        plain, checkpointed = (
            bp(network, photo, replace(LORA, rank=rank, gradient_checkpointing=on)) for on in CHOICES
        )
        if rank == case.ranks[0]:
            inference = phase(network, photo, replace(LORA, rank=rank), "inference")
            yield Row("nothing: inference", 0.0, 0, plain.weights_bytes, 0, inference.work_bytes, None)
        yield row("nothing: LoRA on all", 0.0, rank, plain, checkpointed)
    for cut in cuts(network.unet):
        for rank in case.ranks if cut.lora_layers and case.least <= cut.share <= case.most else ():
            config = HollowConfig(rank=rank, hollow_fraction=cut.share)
            yield row(
                cut.name,
                cut.share,
                rank,
                *(bp(network, photo, replace(config, gradient_checkpointing=on)) for on in CHOICES),
            )


def bp(network: Network, photo: Sample, config: SelectiveConfig | HollowConfig) -> PlannedPhase:
    """The steps of backpropagation."""
    return phase(network, photo, config, "bp")


def phase(network: Network, photo: Sample, config: SelectiveConfig | HollowConfig, name: str) -> PlannedPhase:
    return next(phase for phase in planned_phases(network, lambda ratio: photo, config) if phase.name == name)


def row(left_out: str, share: float, rank: int, plain: PlannedPhase, checkpointed: PlannedPhase) -> Row:
    works = (phase.work_bytes + phase.other_bytes for phase in (plain, checkpointed))
    return Row(left_out, share, rank, plain.weights_bytes, plain.learnt_bytes, *works)


def line(row: Row, inference: int) -> str:
    """The row as one of a Markdown table, MiB."""
    cells = [row.left_out, f"{row.share:.1%}" if row.share else "", str(row.rank or "")]
    cells += [mib(row.weights), mib(row.lora) if row.lora else "", mib(row.work), *sum_cells(row.totals[0], inference)]
    if row.checkpointed_work is not None:
        cells += [mib(row.checkpointed_work), *sum_cells(row.totals[1], inference)]
    return f"| {' | '.join(cells + [''] * (11 - len(cells)))} |"


def sum_cells(total: int, inference: int) -> tuple[str, str]:
    return mib(total), f"{total / inference:.2f}"


def mib(size: int) -> str:
    return f"{size / MIB:,.0f}"


def plot(case: Case, found: list[Row], path: Path) -> None:
    """Peaks over what is left out, and inference's."""
    figure = Figure(figsize=(1100 / DPI, 620 / DPI), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplots()
    inference, *trained = found
    axes.axhline(inference.totals[0] / MIB, color=INK, lw=1.5, ls="--", label="inference, whole U-Net")
    for rank in reversed(case.ranks):
        chosen = [row for row in trained if row.rank == rank]
        for total, style, words in ((0, "-o", ""), (1, ":o", ", checkpointed")):
            peaks = [row.totals[total] / MIB for row in chosen]
            shares = [100 * row.share for row in chosen]
            axes.plot(shares, peaks, style, color=COLOURS[rank], ms=4, label=f"rank {rank}{words}")
    axes.axvline(PAPERS_PERCENT, color=INK, lw=1, ls=":", label=f"{PAPERS_PERCENT}%, as in the paper")
    axes.set(xlim=(0, 100), ylim=(0, None))
    axes.set_title(f"{case.title}, 16 bit", fontsize=TITLE_PT, color=INK)
    axes.set_xlabel("parameters of the U-Net that are left out, %", fontsize=TEXT_PT, color=INK)
    axes.set_ylabel("peak while steps run, MiB", fontsize=TEXT_PT, color=INK)
    axes.tick_params(labelsize=TICK_PT, labelcolor=INK, color=INK)
    axes.grid(color=FAINT, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=TICK_PT, labelcolor=INK, frameon=False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """With a palette: a fourth of the size."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--plot", type=Path, help="draw the last case's table here")
    arguments = parser.parse_args()
    for name in arguments.cases:
        case, found = CASES[name], []
        print(f"{case.title}, {str(case.dtype).removeprefix('torch.')}, MiB\n\n{HEAD}", flush=True)
        for row in rows(case):
            found.append(row)
            print(line(row, found[0].totals[0]), flush=True)
        print(flush=True)
    if arguments.plot:
        plot(case, found, arguments.plot)


if __name__ == "__main__":
    main()
