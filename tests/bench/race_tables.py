"""Table and plot of race.py's runs, for RESULTS.md and the README."""

from collections import defaultdict
from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path
from statistics import fmean, median

from matplotlib.figure import Figure
from pages import put_between_markers, with_interval
from toys import read_rows

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parents[1]
UNTRAINED = ("untrained", "untrained word")
CORE, CORE_AS_OURS, DIFFUSERS = "core Train LoRA, its defaults", "core Train LoRA, set as ours", "diffusers LoRA"
LORA_RACERS = (CORE, CORE_AS_OURS, DIFFUSERS)
LORA_RACERS += ("Selective, bp_high", "the same, int8, checkpointed", "Selective, dtap", "Hollowed, 39%")
LORA_RACERS += ("Selective, as presets have it", "the same as those, int8, checkpointed")
TOKEN_RACERS = ("diffusers textual inversion", "our token by gradients", "our token by ZO, int8")
GOALS = (0.5, 0.6)  # identity
Groups = dict[str, dict[tuple, list[dict]]]


def by_racer(rows: Sequence[dict]) -> Groups:
    """Rows by racer, then by subject and seed, in the order of their steps."""
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["racer"]][row["subject"], row["seed"]].append(row)
    return groups


def start_of(racer: str) -> str:
    return UNTRAINED[racer in TOKEN_RACERS]


def seconds_to(goal: float, groups: Groups, racer: str, run: tuple) -> float | None:
    """Processor time until the identity of one run is as high, on straight lines between its snapshots."""
    points = [(0.0, float(groups[start_of(racer)][run][0]["identity"]))]
    points += [(float(row["seconds"]), float(row["identity"])) for row in groups[racer][run]]
    for (t0, low), (t1, high) in zip(points, points[1:], strict=False):
        if low >= goal:
            return t0
        if high >= goal:
            return t0 + (t1 - t0) * (goal - low) / (high - low)
    return None


def table(groups: Groups, goals: Sequence[float]) -> str:
    heads = ["racer", "runs", "steps", "CPU s", *(f"CPU s to identity {goal:g}" for goal in goals), "peak MiB"]
    heads += ["identity", "ground", "others kept"]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for racer in (UNTRAINED[0], *LORA_RACERS, UNTRAINED[1], *TOKEN_RACERS):
        found = groups.get(racer)
        if not found:
            continue
        last = [rows[-1] for rows in found.values()]
        cells = [racer, str(len(last)), last[0]["step"], f"{mean(last, 'seconds'):.1f}"]
        cells += ["" if racer in UNTRAINED else _reached(goal, groups, racer) for goal in goals]
        cells.append("" if racer in UNTRAINED else f"{max(int(row['peak_bytes']) for row in last) / 2**20:.0f}")
        cells.append(with_interval([float(row["identity"]) for row in last]))
        cells += [f"{mean(last, name):.2f}" for name in ("ground", "others_kept")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _reached(goal: float, groups: Groups, racer: str) -> str:
    """The median over all runs, one that never came there being the longest; and how many did, where not all."""
    times = [seconds_to(goal, groups, racer, run) for run in groups[racer]]
    count, middle = sum(seconds is not None for seconds in times), median(inf if s is None else s for s in times)
    share = f" ({count} of {len(times)})" if count < len(times) else ""
    return (f"{middle:.1f}" if isfinite(middle) else "not reached") + share


def mean(rows: Sequence[dict], name: str) -> float:
    return fmean(float(row[name]) for row in rows)


def plot(groups: Groups, path: Path) -> None:
    """Identity over processor time, and over peak memory; a token's lines are dashed."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for racer in (*LORA_RACERS, *TOKEN_RACERS):
        found = groups.get(racer)
        if not found:
            continue
        columns = [[groups[start_of(racer)][run][0] for run in found], *zip(*found.values(), strict=True)]
        identities = [mean(column, "identity") for column in columns]
        dashed = "--" if racer in TOKEN_RACERS else "-"
        (line,) = left.plot([mean(c, "seconds") for c in columns], identities, dashed, marker="o", ms=3, label=racer)
        peak = max(int(row["peak_bytes"]) for row in columns[-1]) / 2**20
        right.plot(peak, identities[-1], "o" if dashed == "-" else "s", color=line.get_color())
    left.set(xlabel="processor time of training, s (one thread)", ylabel="identity (cosine)")
    right.set(xlabel="peak of live bytes, MiB")
    right.set_xlim(left=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)


def write_tables(file: Path) -> None:
    """Put the table into RESULTS.md and, shorter, into the README, and the plot beside them."""
    groups = by_racer(read_rows(file))
    put_between_markers(BENCH / "RESULTS.md", "race", table(groups, GOALS))
    put_between_markers(ROOT / "README.md", "race", table(groups, GOALS[:1]))
    plot(groups, BENCH / "race.png")
    print(table(groups, GOALS))
