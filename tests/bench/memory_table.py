"""Peak memory of our trainers beside the papers' tables: the README's memory table, and the one in RESULTS.md.

    python tests/bench/memory_table.py [MODEL ...]     counts what is not in memory_table.json yet, then writes both
    python tests/bench/memory_table.py --again [...]   counts all of these models anew

Peaks of live bytes of the trainers' own steps on fake tensors (trainers/planning.py) on U-Nets of the true size: batch
1, LoRA on attention, only the U-Net on the device; for a token the text encoder too (tests/token_bytes.py). No machine
and no load changes them. Takes minutes on one core, no GPU and hardly any memory; every figure is kept in
memory_table.json as soon as it is there.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "bench")]
import conftest  # noqa: E402, F401, I001
from full_size import blank_photo, full_size_network  # noqa: E402
from checkpoints import FULL_SIZE  # noqa: E402
from token_bytes import token_memory  # noqa: E402
from pages import put_between_markers  # noqa: E402
from pack.trainers.config import HollowConfig, SelectiveConfig, TokenConfig  # noqa: E402
from pack.trainers.plan import STEPS  # noqa: E402
from pack.trainers.planning import planned_phases  # noqa: E402
from pack.trainers.published import MIB, POSTER, SELECTIVE_ROWS, WITH_ALL, ZOODIP  # noqa: E402

ROOT = TESTS.parent
STORE = Path(__file__).with_suffix(".json")
NAME = "memory table"  # of the place in a page
NAMES = {"sd15": "SD 1.5", "sd21": "SD 2.1", "sdxl": "SDXL", "ssd1b": "SSD-1B"}
RATIOS = (1, 0.75, 0.625, 0.5)
POSTER_KIND, ZOODIP_KIND = "sd21", "sd15"  # the models of the poster of Hollowed Net, and of ZOODiP's table
HOLLOWED, TOKEN = "hollowed", "token"
STEP = TokenConfig(steps=1, candidates="one_by_one", eval_samples=1, subspace="off")  # int8, by forward passes
PHASES = ("inference", "cache", "bp", "zo")


@dataclass(frozen=True)
class Precision:
    """What the weights are in, and whether blocks are checkpointed; its text is a column's head."""

    dtype: str
    quantization: str = "none"
    checkpointed: bool = False

    def __str__(self) -> str:
        name = self.dtype if self.quantization == "none" else self.quantization
        return name + (", checkpointed" if self.checkpointed else "")


FLOAT32, BFLOAT16 = Precision("float32"), Precision("bfloat16")
CHECKPOINTED, INT8 = Precision("bfloat16", "none", True), Precision("bfloat16", "int8", True)
PRECISIONS = {  # by model; the paper ran the larger two in 16 bit, and in float32 they do not fit cards of this kind
    "sd15": (FLOAT32, BFLOAT16, CHECKPOINTED, INT8),
    "sd21": (FLOAT32, BFLOAT16, CHECKPOINTED, INT8),
    "sdxl": (BFLOAT16, CHECKPOINTED, INT8),
    "ssd1b": (BFLOAT16, CHECKPOINTED, INT8),
}


@dataclass(frozen=True)
class Case:
    """One run of one model."""

    kind: str  # key of checkpoints.FULL_SIZE
    run: float | str  # low_res_ratio of the selective trainer, HOLLOWED or TOKEN
    precision: Precision

    @property
    def key(self) -> str:
        """Its name in the store."""
        run = self.run if isinstance(self.run, str) else f"r = {self.run:g}"
        return f"{NAMES[self.kind]}, {run}, {self.precision}"

    @property
    def side_px(self) -> int:
        return SELECTIVE_ROWS[FULL_SIZE[self.kind][0]].resolution

    def config(self) -> SelectiveConfig | HollowConfig:
        """The trainer's defaults but for what the case says. At r = 0.5 a run takes both kinds of step."""
        more = dict(quantization=self.precision.quantization, gradient_checkpointing=self.precision.checkpointed)
        if self.run == HOLLOWED:
            return HollowConfig(rank=128, hollow_fraction=0.39, **more)
        strategy = {1: "bp_high", 0.5: "dtap"}.get(self.run, "bp_low")
        return SelectiveConfig(strategy=strategy, low_res_ratio=self.run, **more)

    def count(self) -> dict[str, int]:
        """Peak bytes by phase."""
        if self.run == TOKEN:
            return {"zo": token_memory(self.kind, self.side_px, STEP).total}
        network, side = full_size_network(self.kind, getattr(torch, self.precision.dtype)), self.side_px
        phases = planned_phases(network, lambda ratio: blank_photo(self.kind, round(side * ratio)), self.config())
        return {phase.name: phase.peak_bytes for phase in phases}


def cases(kind: str) -> Iterator[Case]:
    """All that the tables show of this model."""
    for ratio in RATIOS:
        yield from (Case(kind, ratio, precision) for precision in PRECISIONS[kind])
    if kind == POSTER_KIND:
        yield from (Case(kind, HOLLOWED, precision) for precision in PRECISIONS[kind])
    if kind == ZOODIP_KIND:  # where there is nothing to checkpoint
        yield Case(kind, TOKEN, INT8)


def stored() -> dict[str, dict[str, int]]:
    """Every figure that was counted, in bytes, by Case.key and phase."""
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else {}


def readme_table(figures: dict[str, dict[str, int]]) -> str:
    """Peaks of whole runs in MiB: the higher of the two kinds of step, as the papers count."""
    columns = PRECISIONS["sd15"]
    lines = [_row(["run", "paper", *map(str, columns)]), _row(["---", "---", *["---:"] * len(columns)])]
    for kind, name in NAMES.items():
        paper = SELECTIVE_ROWS[FULL_SIZE[kind][0]]
        where, precision = f"{name}, {paper.resolution} px", paper.circumstances.removesuffix(f", {WITH_ALL}")
        runs = [
            (f"r = {run:g}" if run < 1 else "BP at full size", run, f"{paper.peak(run):,} ({precision})")
            for run in RATIOS
        ]
        if kind == POSTER_KIND:
            runs.append(("Hollowed Net, rank 128", HOLLOWED, f"{_mib(POSTER.bytes)} (float32)"))
        if kind == ZOODIP_KIND:
            runs.append(("textual inversion, ZO", TOKEN, f"{_mib(ZOODIP.bytes)} (int8)"))
        for words, run, published in runs:
            cells = [_mib(_peak(figures, Case(kind, run, column))) for column in columns]
            lines.append(_row([f"{where}: {words}", published, *cells]))
    return "\n".join(lines)


def results_table(figures: dict[str, dict[str, int]]) -> str:
    """Every stored case with its phases, MiB."""
    lines = [_row(["case", *PHASES]), _row(["---"] + ["---:"] * len(PHASES))]
    for kind in NAMES:
        for case in cases(kind):
            found = figures.get(case.key, {})
            lines.append(_row([case.key, *(_mib(found.get(phase)) for phase in PHASES)]))
    return "\n".join(lines)


def _peak(figures: dict[str, dict[str, int]], case: Case) -> int | None:
    """Of its steps. ZO steps do not depend on r: they are counted at r = 0.5 alone."""
    found = dict(figures.get(case.key, {}))
    if found and case.run in RATIOS and case.run < 1:
        found |= {"zo": figures.get(Case(case.kind, 0.5, case.precision).key, {}).get("zo", 0)}
    return max((found[phase] for phase in STEPS if phase in found), default=None)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / MIB:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(NAMES), metavar="MODEL", help=", ".join(NAMES))
    parser.add_argument("--again", action="store_true", help="count also what is stored")
    arguments = parser.parse_args()
    for case in (case for kind in arguments.models for case in cases(kind)):
        if arguments.again or case.key not in stored():
            start, found = time.perf_counter(), case.count()
            STORE.write_text(json.dumps(dict(sorted((stored() | {case.key: found}).items())), indent=2) + "\n")
            peaks = ", ".join(f"{name} {_mib(size)}" for name, size in found.items())
            print(f"{case.key}: {peaks} MiB ({time.perf_counter() - start:.0f} s)", flush=True)
    print(readme_table(stored()))
    put_between_markers(ROOT / "README.md", NAME, readme_table(stored()))
    put_between_markers(TESTS / "bench/RESULTS.md", NAME, results_table(stored()))


if __name__ == "__main__":
    main()
