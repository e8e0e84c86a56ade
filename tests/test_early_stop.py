"""The study of early stops: what a way to choose keeps of a run, and when it would have ended it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))
from early_stop_tables import KEPT_OUT, PHOTOS, TIMES, VIEWS, by_run, lowest, table_of_ways  # noqa: E402


def rows(losses: list[float], identities: list[float], trained_on: str = "four photos", subject: str = "robot") -> list:
    """A run's, evaluated after every tenth step."""
    made = []
    for i, (loss, identity) in enumerate(zip(losses, identities, strict=True)):
        row = dict(trained_on=trained_on, learning_rate="0.001", subject=subject, seed="0", step=str(10 * i))
        row |= {f"{of} {t}": str(loss) for of in (PHOTOS, KEPT_OUT, VIEWS) for t in TIMES}
        made.append(row | dict(seconds=str(i), identity=str(identity), ground="1", others_kept="1"))
    return made


@pytest.mark.parametrize(
    "losses, patience, kept, end",
    [
        ([3, 2, 1], 1, "20", "20"),
        ([1, 2, 3, 0], 0, "30", "30"),
        ([1, 2, 3, 0], 2, "0", "20"),
        ([2, 1, 2, 0], 2, "30", "30"),
        ([1, 1, 1], 2, "0", "20"),  # as low is no new lowest
    ],
)
def test_the_lowest_is_kept_of_what_patience_lets_run(losses, patience, kept, end):
    found = lowest(KEPT_OUT, patience=patience)(rows(losses, losses))
    assert (found.row["step"], found.end["step"]) == (kept, end)


def test_gains_are_over_the_last_step_of_the_same_run_and_unfinished_runs_are_left_out():
    runs = rows([3, 1, 2], [0.0, 0.75, 0.5]) + rows([3, 1], [0.0, 0.9], subject="tower")
    lines = {line.split(" | ")[2]: line.split(" | ") for line in table_of_ways(by_run(runs)).splitlines()[2:]}
    best = lines["lowest loss of kept out"]
    assert best[3:9] == ["1", "10", "20", "2", "0.750", "+0.250"] and lines["the last"][8] == "+0.000"
