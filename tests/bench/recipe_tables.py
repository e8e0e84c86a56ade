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
    """Identity over peak memory, filled where at least as many others are kept as by the first recipe."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes, kept = figure.subplots(), mean(groups[names[0]], "others_kept")
    for name in filter(groups.get, names):
        found = groups[name]
        place = peak_mib(found), mean(found, "identity")
        face = "C0" if mean(found, "others_kept") >= kept else "none"
        axes.plot(*place, "o", color="C0", markerfacecolor=face)
        axes.annotate(name, place, textcoords="offset points", xytext=(5, 3), fontsize=7)
    axes.set(xlabel="peak of live bytes, MiB", ylabel="identity (cosine), in equal processor time")
    axes.set_xlim(0, 1.3 * max(peak_mib(groups[name]) for name in filter(groups.get, names)))
    figure.savefig(path, dpi=110)


def write_tables(file: Path, names: Sequence[str]) -> None:
    """Put the table of a file's runs into RESULTS.md, in the order of the names, and the plot beside it."""
    groups = by_recipe(read_rows(file))
    put_between_markers(BENCH / "RESULTS.md", "recipes", table(groups, names))
    plot(groups, names, BENCH / "recipes.png")
    print(table(groups, names))
