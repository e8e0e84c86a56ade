"""The selective paper's tables and figures (arXiv:2507.10029) on the pocket world: what holds there, and what does not.

    python tests/bench/reproduce.py RUNS.csv [--table table1 fig1a fig1b fig3] [--seeds 0 1 2] [--steps 200]
    python tests/bench/reproduce.py --tables RUNS.csv

Every cell of the tables is a training that differs from the others in what its name says, with equal steps, photos,
noise and timesteps. A run learns one of five toys with one seed. Scored are: the denoising loss of eight fresh views
under fixed noise, over what it was before (1 is nothing learnt), at all timesteps and at 875 alone; and, of pictures on
five grounds that no photo shows, how near they are to the photos (identity, a cosine) and whether the ground is the
prompt's; and whether two other things are still drawn as asked. One thread. Goes on where it was stopped: what RUNS.csv
has is not run again. All cells of a subject and seed come before the next, so that an unfinished file is of use.
The second form writes the tables and the plot into tests/bench/RESULTS.md and reproduce.png.
"""

import argparse
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from pack.nodes import host  # noqa: E402
from pack.trainers.config import SelectiveConfig  # noqa: E402
from pack.trainers.evaluation import mean_with_interval  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.objective import Network, Sample, collate, denoising_loss  # noqa: E402
from pack.trainers.selective import Draw, choices, train_selective  # noqa: E402
from toys import OTHERS, TIMES, Runs, World, as_subject, draw, fresh_views, judged, load_world, on_new_grounds  # noqa: E402
from toys import others_kept, photos_of, read_rows  # noqa: E402

NAME = "sks toy"
CAPTION = f"a photo of a {NAME}"
SUBJECTS = ["robot", "tower", "clown", "mushroom", "lifebuoy"]
EACH, DRAWING_STEPS = 2, 10  # pictures of a prompt
STEPS = 200
ZO_STEPS = 100  # of figure 1a, after so many steps of backpropagation
ZO_RATE, ZO_EPSILON, PERTURBATIONS = 1e-2, 1e-2, 4  # searched: table "search"
BASE = SelectiveConfig(
    steps=STEPS,
    rank=16,
    learning_rate=1e-3,
    batch_size=2,
    zo_learning_rate=ZO_RATE,
    zo_epsilon=ZO_EPSILON,
    zo_perturbations=PERTURBATIONS,
    strategy="bp_high",
)
UNTRAINED, BP_HIGH = "untrained", "BP-high"
COLUMNS = ["cell", "subject", "seed", "steps", "steps_zo", "seconds", "peak_bytes", "held_out", "held_out_high_t"]
COLUMNS += ["identity", "ground", "others_kept"]
KEY = ("cell", "subject", "seed", "steps")
SCORES = ("held_out", "held_out_high_t", "identity", "ground", "others_kept")
HEADS = ("loss left", "loss left, t = 875", "identity", "ground", "others kept")
HIGH_T = max(TIMES)


class Cell(NamedTuple):
    """One training: settings that differ from BASE, and how steps are chosen where not by the strategy."""

    settings: dict = {}
    bp_steps: float = 1.0  # share of STEPS
    zo_steps: int = 0  # that come after those
    span: tuple[int, int] | None = None  # of the timesteps

    def config(self, seed: int, steps: int) -> SelectiveConfig:
        zo_steps = round(self.zo_steps * steps / STEPS)  # short runs for a try have all parts shorter
        return replace(BASE, **self.settings, seed=seed, steps=max(1, round(self.bp_steps * steps) + zo_steps))

    def drawing(self, steps: int) -> Callable[..., Draw]:
        """The choices of each step: as the trainer makes them, but for what the cell says."""
        first_zo = round(self.bp_steps * steps) + 1 if self.zo_steps else None

        def chosen(examples, config, step, timesteps, generator) -> Draw:
            made = choices(examples, config, step, timesteps, generator)
            if self.span:
                low, high = self.span
                made = made._replace(t=low + made.t * (high - low) // timesteps)
            return made._replace(is_zo=step >= first_zo) if first_zo else made

        return chosen


def selective(strategy: str, ratio: float) -> Cell:
    return Cell({"strategy": strategy, "low_res_ratio": ratio})


RATIOS = (0.75, 0.625, 0.5)
SPANS = ((0, 250), (250, 500), (500, 750), (750, 1000))
LOW = {"strategy": "bp_low", "low_res_ratio": 0.5}
CELLS = {
    BP_HIGH: Cell(),
    **{f"DTAP, r = {r}": selective("dtap", r) for r in RATIOS},
    **{f"BP-low, r = {r}": selective("bp_low", r) for r in RATIOS},
    "ZO-high": selective("zo_high", 0.5),
    "random, r = 0.5": selective("random", 0.5),
    "reversed, r = 0.5": selective("reversed", 0.5),
    "BP 50": Cell(bp_steps=0.25),
    "BP 100": Cell(bp_steps=0.5),
    "BP 0, then ZO": Cell(bp_steps=0.0, zo_steps=ZO_STEPS),
    "BP 50, then ZO": Cell(bp_steps=0.25, zo_steps=ZO_STEPS),
    "BP 100, then ZO": Cell(bp_steps=0.5, zo_steps=ZO_STEPS),
    "BP 200, then ZO": Cell(zo_steps=ZO_STEPS),
    **{f"BP-high, t {low}-{high}": Cell(span=(low, high)) for low, high in SPANS},
    **{f"BP-low, t {low}-{high}": Cell(LOW, span=(low, high)) for low, high in SPANS},
    **{f"BP 100, then ZO at {rate:g}": Cell({"zo_learning_rate": rate}, 0.5, ZO_STEPS) for rate in (1e-3, 1e-1, 1.0)},
    "BP 100, then ZO, N = 16": Cell({"zo_perturbations": 16}, 0.5, ZO_STEPS),
    "BP 100, then ZO, N = 1": Cell({"zo_perturbations": 1}, 0.5, ZO_STEPS),
}
TABLES = {
    "table1": [BP_HIGH, *(f"{kind}, r = {r}" for kind in ("DTAP", "BP-low") for r in RATIOS)],
    "fig3": [BP_HIGH, "BP-low, r = 0.5", "ZO-high", "random, r = 0.5", "reversed, r = 0.5", "DTAP, r = 0.5"],
    "fig1a": ["BP 0, then ZO", "BP 50", "BP 50, then ZO", "BP 100", "BP 100, then ZO", BP_HIGH, "BP 200, then ZO"],
    "fig1b": [cell for cell in CELLS if ", t " in cell],
    "search": [cell for cell in CELLS if cell.startswith("BP 100")],
}
TITLES = {
    "table1": "Table 1: BP-high against the method (DTAP) at three resolutions, and BP-low alone",
    "fig3": "Figure 3: how the two kinds of step are mixed",
    "fig1a": f"Figure 1a: {ZO_STEPS} ZO steps after so many steps of backpropagation at full size",
    "fig1b": "Figure 1b: backpropagation within a range of timesteps, at full size and at half",
    "search": "What the paper does not give: learning rate and perturbations of ZO steps",
}


class Stage(NamedTuple):
    """A toy, encoded."""

    examples: list
    views: list[Sample]
    pictures: torch.Tensor


def stage(world: World, name: str, ratio: float) -> Stage:
    def encoded(pictures: torch.Tensor) -> list:
        with torch.inference_mode():
            subject = as_subject(pictures, CAPTION)
            return host.encode_subject(*world, subject, ratio, PhaseMeter(torch.device("cpu")))

    return Stage(encoded(photos_of(name)), [view.high for view in encoded(fresh_views(name))], photos_of(name))


@torch.inference_mode()
def held_out(network: Network, views: Sequence[Sample]) -> dict[int, float]:
    """Loss of the views under fixed noise, by timestep."""
    x0, condition = collate(views)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    return {t: denoising_loss(network, x0, noise, torch.full((len(views),), t), condition).mean().item() for t in TIMES}


def run_cell(world: World, cell: Cell, ready: Stage, seed: int, steps: int, before: dict[int, float]) -> dict:
    config, after, began = cell.config(seed, steps), {}, time.process_time()
    with host.trainable(world.model) as network:
        meter = PhaseMeter(network.device)

        def on_step(step) -> None:  # the LoRA is in the network
            if step.step == step.steps:
                after.update(held_out(network, ready.views))

        names = host.lora_names(world.model)
        trained = train_selective(network, ready.examples, config, names, meter, on_step, drawing=cell.drawing(steps))
    seconds = time.process_time() - began
    return {
        "steps_zo": sum(step.kind == "zo" for step in trained.steps),
        "seconds": f"{seconds:.1f}",
        "peak_bytes": max(meter.peak_bytes(kind) for kind in {step.kind for step in trained.steps}),
        "held_out": f"{fmean(after.values()) / fmean(before.values()):.5f}",
        "held_out_high_t": f"{after[HIGH_T] / before[HIGH_T]:.5f}",
    } | scored(host.with_lora(world.model, trained.lora), world, ready.pictures)


def untrained(world: World, ready: Stage) -> dict:
    nothing = {"steps_zo": 0, "seconds": 0, "peak_bytes": 0, "held_out": 1, "held_out_high_t": 1}
    return nothing | scored(world.model, world, ready.pictures)


def scored(model, world: World, photos: torch.Tensor) -> dict:
    """What the judges say of pictures that the model draws."""
    subject = draw(model, world.clip, world.vae, on_new_grounds(NAME), EACH, DRAWING_STEPS)
    identity, ground = judged(subject, photos)
    kept = others_kept(draw(model, world.clip, world.vae, OTHERS, EACH, DRAWING_STEPS))
    return {"identity": f"{identity:.5f}", "ground": f"{ground:.3f}", "others_kept": f"{kept:.3f}"}


def run_all(file: Path, cells: list[str], subjects: list[str], seeds: list[int], steps: int) -> None:
    torch.set_num_threads(1)
    world, runs = load_world(), Runs(file, COLUMNS, KEY)

    def missing(cell: str, subject: str, seed: int) -> bool:
        return {"cell": cell, "subject": subject, "seed": seed, "steps": steps} not in runs

    for seed in seeds:
        for subject in subjects:
            wanted = [cell for cell in [UNTRAINED, *cells] if missing(cell, subject, seed)]
            if not wanted:
                continue
            before = None
            for cell in wanted:
                ratio = CELLS[cell].settings.get("low_res_ratio", 1.0) if cell in CELLS else 1.0
                ready = stage(world, subject, ratio)
                if before is None:
                    with host.trainable(world.model) as network:
                        before = held_out(network, ready.views)
                if cell == UNTRAINED:
                    found = untrained(world, ready)
                else:
                    found = run_cell(world, CELLS[cell], ready, seed, steps, before)
                runs.add({"cell": cell, "subject": subject, "seed": seed, "steps": steps} | found)
                print(runs.rows[-1], flush=True)


# What is made of the rows


def by_cell(rows: Sequence[dict]) -> dict[str, dict[tuple, dict]]:
    """Rows by cell, then by subject and seed."""
    groups: dict[str, dict[tuple, dict]] = defaultdict(dict)
    for row in rows:
        groups[row["cell"]][row["subject"], row["seed"]] = row
    return groups


def table(name: str, groups: dict[str, dict[tuple, dict]]) -> str:
    """Markdown: means, with 95% intervals of the two scores that say most; differences are to BP-high, run by run."""
    heads = ["training", "runs", *HEADS, "identity minus BP-high's", "CPU s", "peak MiB"]
    lines = [f"{TITLES[name]}.", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cell in [UNTRAINED, *TABLES[name]]:
        found = groups.get(cell)
        if not found:
            continue
        cells = [cell, str(len(found))]
        for score in SCORES:
            values = [float(row[score]) for row in found.values()]
            cells.append(_with_interval(values) if score in ("held_out", "identity") else f"{fmean(values):.2f}")
        pairs = [
            float(row["identity"]) - float(groups[BP_HIGH][run]["identity"])
            for run, row in found.items()
            if cell != BP_HIGH and run in groups.get(BP_HIGH, {})
        ]
        cells.append(_with_interval(pairs, "+") if pairs else "")
        cells += [
            f"{fmean(float(row['seconds']) for row in found.values()):.0f}",
            f"{max(int(row['peak_bytes']) for row in found.values()) / 2**20:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_interval(values: Sequence[float], sign: str = "") -> str:
    mean, low, high = mean_with_interval(values)
    return f"{mean:{sign}.3f}" if low is None else f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def plot(groups: dict[str, dict[tuple, dict]], path: Path) -> None:
    """Figures 1a and 1b: identity over steps of backpropagation, and by range of timesteps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)

    def line(axes, xs, cells, label) -> None:
        points = [
            (x, mean_with_interval([float(row["identity"]) for row in groups[cell].values()]))
            for x, cell in zip(xs, cells, strict=True)
            if cell in groups
        ]
        if points:
            means = [mean.mean for _, mean in points]
            below = [mean.mean - (mean.low if mean.low is not None else mean.mean) for _, mean in points]
            above = [(mean.high if mean.high is not None else mean.mean) - mean.mean for _, mean in points]
            axes.errorbar([x for x, _ in points], means, [below, above], marker="o", capsize=3, label=label)

    steps = (0, 50, 100, 200)
    line(left, steps, [UNTRAINED, "BP 50", "BP 100", BP_HIGH], "backpropagation alone")
    line(left, steps, [f"BP {k}, then ZO" for k in steps], f"then {ZO_STEPS} ZO steps")
    left.set(xlabel="steps of backpropagation", ylabel="identity (cosine)")
    middles = [(low + high) / 2 for low, high in SPANS]
    for kind in ("BP-high", "BP-low"):
        line(right, middles, [f"{kind}, t {low}-{high}" for low, high in SPANS], kind)
    right.set(xlabel="timesteps trained on, 250 around")
    for axes in (left, right):
        if axes.has_data():
            axes.legend()
    figure.savefig(path, dpi=110)


BEGIN, END = "<!-- reproduction: begin -->", "<!-- reproduction: end -->"


def write_tables(file: Path) -> None:
    """Put the tables of a file's runs into RESULTS.md, and the plot beside it."""
    rows = read_rows(file)
    length = max({row["steps"] for row in rows}, key=int)  # shorter ones were tries
    groups = by_cell([row for row in rows if row["steps"] == length])
    text = "\n\n".join(table(name, groups) for name in TABLES if any(cell in groups for cell in TABLES[name][1:]))
    page = BENCH / "RESULTS.md"
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    body = f"{BEGIN}\n\n{text}\n\n{END}"
    page.write_text(re.sub(pattern, lambda _: body, page.read_text(encoding="utf-8"), flags=re.S), encoding="utf-8")
    plot(groups, BENCH / "reproduce.png")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tables", action="store_true", help="run nothing; write the tables of what FILE has")
    parser.add_argument("--table", nargs="+", default=["table1", "fig3", "fig1a", "fig1b"], choices=list(TABLES))
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, choices=SUBJECTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="of the longest backpropagation; fewer for a try")
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables(arguments.file)
        return
    cells = list(dict.fromkeys(cell for name in arguments.table for cell in TABLES[name]))
    run_all(arguments.file, cells, arguments.subjects, arguments.seeds, arguments.steps)


if __name__ == "__main__":
    main()
