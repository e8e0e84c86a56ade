"""Tables and plot of reproduce.py's runs, for RESULTS.md."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from pack.trainers.evaluation import mean_with_interval
from pages import put_between_markers, with_interval
from reproduce_cells import BP_HIGH, COMPARED_WITH, FRACTIONS, SPANS, TABLES, TITLES, UNTRAINED, ZO_STEPS
from toys import read_rows

BENCH = Path(__file__).resolve().parent
SCORES = ("held_out", "held_out_high_t", "identity", "ground", "others_kept")
HEADS = ("loss left", "loss left, t = 875", "identity", "ground", "others kept")


def by_cell(rows: Sequence[dict]) -> dict[str, dict[tuple, dict]]:
    """Rows by cell, then by subject and seed."""
    groups: dict[str, dict[tuple, dict]] = defaultdict(dict)
    for row in rows:
        groups[row["cell"]][row["subject"], row["seed"]] = row
    return groups


def table(name: str, groups: dict[str, dict[tuple, dict]]) -> str:
    """Markdown: means, with 95% intervals of the two scores that say most; differences are to BP-high, run by run."""
    heads = ["training", "runs", *HEADS, "identity minus BP-high's", "CPU s", "peak MiB"]
    base = COMPARED_WITH[name]
    lines = [f"{TITLES[name]}.", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cell in [UNTRAINED, *TABLES[name]]:
        found = groups.get(cell)
        if not found:
            continue
        cells = [cell, str(len(found))]
        for score in SCORES:
            values = [float(row[score]) for row in found.values()]
            cells.append(with_interval(values) if score in ("held_out", "identity") else f"{fmean(values):.2f}")
        pairs = [
            float(row["identity"]) - float(groups[base][run]["identity"])
            for run, row in found.items()
            if cell != base and run in groups.get(base, {})
        ]
        cells.append(with_interval(pairs, "+") if pairs else "")
        cells += [
            f"{fmean(float(row['seconds']) for row in found.values()):.0f}",
            f"{max(int(row['peak_bytes']) for row in found.values()) / 2**20:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(groups: dict[str, dict[tuple, dict]], path: Path) -> None:
    """Figures 1a and 1b, and the poster's: identity over steps of backpropagation, timesteps and what is left out."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)

    def line(axes, xs, cells, label, runs) -> None:
        points = [
            (x, mean_with_interval([float(groups[cell][run]["identity"]) for run in runs]))
            for x, cell in zip(xs, cells, strict=True)
            if runs and cell in groups
        ]
        if points:
            means = [mean.mean for _, mean in points]
            below = [mean.mean - (mean.low if mean.low is not None else mean.mean) for _, mean in points]
            above = [(mean.high if mean.high is not None else mean.mean) - mean.mean for _, mean in points]
            axes.errorbar([x for x, _ in points], means, [below, above], marker="o", capsize=3, label=label)

    steps = (0, 50, 100, 200)
    alone, then_zo = [UNTRAINED, "BP 50", "BP 100", BP_HIGH], [f"BP {k}, then ZO" for k in steps]
    runs = _common_runs(groups, alone + then_zo)
    line(left, steps, alone, "backpropagation alone", runs)
    line(left, steps, then_zo, f"then {ZO_STEPS} ZO steps", runs)
    left.set(xlabel="steps of backpropagation", ylabel="identity (cosine)")
    middles = [(low + high) / 2 for low, high in SPANS]
    kinds = {kind: [f"{kind}, t {low}-{high}" for low, high in SPANS] for kind in ("BP-high", "BP-low")}
    runs = _common_runs(groups, sum(kinds.values(), []))
    for kind, cells in kinds.items():
        line(middle, middles, cells, kind, runs)
    middle.set(xlabel="timesteps trained on, 250 around")
    runs = _common_runs(groups, TABLES["fractions"])
    line(right, [0, *(100 * fraction for fraction in FRACTIONS)], TABLES["fractions"], "hollowed", runs)
    right.set(xlabel="parameters left out, %")
    for axes in (left, middle, right):
        if axes.has_data():
            axes.legend()
    figure.savefig(path, dpi=110)


def _common_runs(groups: dict[str, dict[tuple, dict]], cells: Sequence[str]) -> list[tuple]:
    """The toys and seeds that all these cells have which there are, so that a plot compares what is alike."""
    found = [set(groups[cell]) for cell in cells if cell in groups]
    return sorted(set.intersection(*found)) if found else []


def write_tables(file: Path) -> None:
    """Put the tables of a file's runs into RESULTS.md, and the plot beside it."""
    rows = read_rows(file)
    length = max({row["steps"] for row in rows}, key=int)  # shorter ones were tries
    groups = by_cell([row for row in rows if row["steps"] == length])
    text = "\n\n".join(table(name, groups) for name in TABLES if groups.keys() & set(TABLES[name]) - {BP_HIGH})
    hours = sum(float(row["seconds"]) for row in rows) / 3600
    text = f"{len(rows)} rows, whose trainings took {hours:.1f} hours of one core.\n\n{text}"
    put_between_markers(BENCH / "RESULTS.md", "reproduction", text)
    plot(groups, BENCH / "reproduce.png")
    print(text)
