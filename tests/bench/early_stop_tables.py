"""What each way to choose a step would have kept of early_stop.py's runs, and how losses and scores go, in Markdown."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from pages import with_interval
from toys import TIMES

PHOTOS, KEPT_OUT, VIEWS = "photos", "kept out", "views"  # what losses are of; columns are named after these and TIMES
SCORES = ("identity", "ground", "others_kept")
KEY = ("trained_on", "learning_rate", "subject", "seed", "step")
PATIENCE = 2  # evaluations in a row that are no new lowest, then the run stops
LATE = TIMES[2:]  # where reproduce.py found most of what identity is learnt from
Row = dict[str, str]


class Kept(NamedTuple):
    """What a way to choose has of a run: the row of the LoRA it gives, and the one at which the run ended."""

    row: Row
    end: Row


def loss(row: Row, of: str, times: Sequence[int] = TIMES) -> float:
    return fmean(float(row[f"{of} {t}"]) for t in times)


def lowest(of: str, times: Sequence[int] = TIMES, patience: int = 0) -> Callable[[Sequence[Row]], Kept]:
    """The row with the lowest loss, as the token trainer has it; patience 0 never stops a run."""

    def chosen(rows: Sequence[Row]) -> Kept:
        best = 0
        for i, row in enumerate(rows):
            if loss(row, of, times) < loss(rows[best], of, times):
                best = i
            if 0 < patience <= i - best:
                break
        return Kept(rows[best], row)

    return chosen


def by_identity(rows: Sequence[Row]) -> Kept:
    return Kept(max(rows, key=lambda row: float(row["identity"])), rows[-1])


def ways(of: str) -> dict[str, Callable[[Sequence[Row]], Kept]]:
    late = f"t {' and '.join(map(str, LATE))}"
    return {
        f"lowest loss of {of}": lowest(of),
        f"lowest loss of {of}, {late}": lowest(of, LATE),
        f"the same of {of}, patience {PATIENCE}": lowest(of, patience=PATIENCE),
        f"the same of {of}, {late}, patience {PATIENCE}": lowest(of, LATE, PATIENCE),
    }


WAYS = {"the last": lambda rows: Kept(rows[-1], rows[-1])} | ways(PHOTOS) | ways(KEPT_OUT)
WAYS |= {f"lowest loss of {VIEWS}": lowest(VIEWS), "highest identity": by_identity}


def by_run(rows: Sequence[Row]) -> dict[tuple[str, str], list[list[Row]]]:
    """Rows in the order of steps, run by run, by learning rate and what was trained on; unfinished runs left out."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in KEY[:-1]), []).append(row)
    longest = max(int(row["step"]) for row in rows)
    groups: dict[tuple[str, str], list[list[Row]]] = {}
    for (trained_on, rate, *_), run_rows in found.items():
        if int(run_rows[-1]["step"]) == longest:
            groups.setdefault((rate, trained_on), []).append(run_rows)
    return groups


def table_of_ways(groups: dict[tuple[str, str], list[list[Row]]]) -> str:
    heads = ["rate", "trained on", "kept", "runs", "kept after step", "steps run", "CPU s", "identity"]
    heads += ["minus the last's", "ground", "others kept"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (rate, trained_on), runs in groups.items():
        for name, way in WAYS.items():
            if KEPT_OUT in name and not runs[0][0][f"{KEPT_OUT} {TIMES[0]}"]:
                continue
            kept = [way(rows) for rows in runs]
            gains = [float(k.row["identity"]) - float(rows[-1]["identity"]) for k, rows in zip(kept, runs, strict=True)]
            cells = [rate, trained_on, name, str(len(runs)), ", ".join(k.row["step"] for k in kept)]
            cells += [f"{fmean(float(k.end[column]) for k in kept):.0f}" for column in ("step", "seconds")]
            cells += [f"{fmean(float(k.row['identity']) for k in kept):.3f}", with_interval(gains, "+")]
            cells += [f"{fmean(float(k.row[score]) for k in kept):.2f}" for score in SCORES[1:]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_steps(groups: dict[tuple[str, str], list[list[Row]]]) -> str:
    """Means over runs; losses over those of step 0."""
    heads = ["rate", "trained on", "step", *(f"{of}: loss left" for of in (PHOTOS, KEPT_OUT, VIEWS))]
    lines = [f"| {' | '.join([*heads, 'identity', 'ground', 'others kept'])} |", "|---" * (len(heads) + 3) + "|"]
    for key, runs in groups.items():
        for rows in zip(*runs, strict=True):
            cells = [*key, rows[0]["step"]]
            for of in (PHOTOS, KEPT_OUT, VIEWS):
                is_there = bool(rows[0][f"{of} {TIMES[0]}"])
                left = [
                    loss(row, of) / loss(first, of) for row, (first, *_) in zip(rows, runs, strict=True) if is_there
                ]
                cells.append(f"{fmean(left):.3f}" if left else "")
            cells += [f"{fmean(float(row[score]) for row in rows):.3f}" for score in SCORES]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
