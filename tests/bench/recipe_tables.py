"""Table and plot of recipes.py's runs, for RESULTS.md."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from pages import put_between_markers, with_interval
from toys import read_rows

BENCH = Path(__file__).resolve().parent
HEADS = ("recipe", "runs", "steps", "CPU s", "peak MiB", "identity", "minus the first's", "ground", "others kept")
Groups = dict[str, dict[tuple, dict]]


def by_recipe(rows: Sequence[dict]) -> Groups:
    """Rows by recipe, then by subject and seed."""
    groups: Groups = defaultdict(dict)
    for row in rows:
        groups[row["recipe"]][row["subject"], row["seed"]] = row
    return groups


def mean(found: dict[tuple, dict], name: str) -> float:
    return fmean(float(row[name]) for row in found.values())


def peak_mib(found: dict[tuple, dict]) -> float:
    return max(int(row["peak_bytes"]) for row in found.values()) / 2**20


def table(groups: Groups, names: Sequence[str]) -> str:
    """Markdown: means, with 95% intervals of identity; differences are to the first recipe's run of the same toy."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" + "|---:" * (len(HEADS) - 1) + "|"]
    base = groups[names[0]]
    for name in names:
        found = groups.get(name)
        if not found:
            continue
        pairs = [float(row["identity"]) - float(base[run]["identity"]) for run, row in found.items() if run in base]
        steps = next(iter(found.values()))["steps"]
        cells = [name, str(len(found)), steps, f"{mean(found, 'seconds'):.0f}", f"{peak_mib(found):.0f}"]
        cells += [with_interval([float(row["identity"]) for row in found.values()])]
        cells += ["" if name == names[0] else with_interval(pairs, "+")]
        cells += [f"{mean(found, score):.2f}" for score in ("ground", "others_kept")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(groups: Groups, names: Sequence[str], path: Path) -> None:
    """Identity over peak memory, by number: that of the names beside it, the best first."""
    found = sorted(filter(groups.get, names), key=lambda name: -mean(groups[name], "identity"))
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=(2, 1))
    for number, name in enumerate(found, 1):
        place = peak_mib(groups[name]), mean(groups[name], "identity")
        axes.plot(*place, "o", color="C0")
        side = 6 if number % 2 else -6  # neighbours are near each other
        axes.annotate(
            str(number), place, textcoords="offset points", xytext=(side, 0), ha="left" if side > 0 else "right",
            va="center", fontsize=8,
        )  # fmt: skip
        beside.text(0, 1 - number / (len(found) + 1), f"{number}  {name}", fontsize=8, va="center")
    axes.set(xlabel="peak of live bytes, MiB", ylabel="identity (cosine), in equal processor time", xlim=(0, None))
    beside.set_axis_off()
    figure.savefig(path, dpi=110)


def write_tables(file: Path, names: Sequence[str]) -> None:
    """Put the table of a file's runs into RESULTS.md, in the order of the names, and the plot beside it."""
    groups = by_recipe(read_rows(file))
    put_between_markers(BENCH / "RESULTS.md", "recipes", table(groups, names))
    plot(groups, names, BENCH / "recipes.png")
    print(table(groups, names))
