"""The reproduction study's parts that train nothing: which steps a cell takes, and what a table says of its rows."""

import sys
from pathlib import Path

import pytest
import torch
from test_selective import example

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))
from reproduce_cells import CELLS, SPANS, TABLES, UNTRAINED  # noqa: E402
from reproduce_tables import by_cell, table  # noqa: E402
from toys import Runs  # noqa: E402

STEPS = 40  # a short run: a fifth of the whole


def draws(name: str) -> list:
    cell = CELLS[name]
    config, drawing = cell.config(seed=1, steps=STEPS), cell.drawing(STEPS)
    generator, examples = torch.Generator().manual_seed(1), [example("mini", seed, 8) for seed in range(3)]
    return [drawing(examples, config, step, 1000, generator) for step in range(1, config.steps + 1)]


def test_every_table_is_made_of_cells_that_there_are():
    assert {cell for cells in TABLES.values() for cell in cells} == set(CELLS)


@pytest.mark.parametrize("name, bp, zo", [("BP 0, then ZO", 0, 20), ("BP 50, then ZO", 10, 20), ("BP-high", 40, 0)])
def test_zo_comes_after_so_many_steps_of_backpropagation(name, bp, zo):
    assert [draw.is_zo for draw in draws(name)] == [False] * bp + [True] * zo


def test_a_longer_run_begins_as_a_shorter_one():
    """Or figure 1a would compare runs that saw other photos and noise."""
    short, long = draws("BP 50"), draws("BP 100, then ZO")
    assert [draw[1:] for draw in short] == [draw[1:] for draw in long[: len(short)]]


@pytest.mark.parametrize("low, high", SPANS)
def test_timesteps_stay_in_their_range_and_fill_it(low, high):
    found = [draw.t for draw in draws(f"BP-low, t {low}-{high}")]
    assert low <= min(found) < low + 50 and high - 50 <= max(found) < high


def row(cell: str, subject: str, identity: float) -> dict:
    scores = {name: "0.5" for name in ("held_out", "held_out_high_t", "ground", "others_kept")}
    return (
        {"cell": cell, "subject": subject, "seed": "0", "seconds": "9", "peak_bytes": str(2**20)}
        | scores
        | {"identity": str(identity)}
    )


def test_differences_are_between_runs_of_one_subject_and_seed():
    rows = [row("BP-high", "robot", 0.5), row("BP-high", "tower", 0.9), row("DTAP, r = 0.5", "tower", 0.8)]
    lines = {line.split(" | ")[0][2:]: line.split(" | ") for line in table("table1", by_cell(rows)).splitlines()[3:]}
    assert lines["DTAP, r = 0.5"][7] == "-0.100" and lines["BP-high"][7] == ""
    assert lines["BP-high"][1] == "2" and lines["BP-high"][4].startswith("0.700 (0.500 to 0.900)")
    assert UNTRAINED not in lines


def test_a_row_that_is_in_the_file_is_known_again(tmp_path):
    columns, key = ["cell", "seed", "score"], ("cell", "seed")
    runs = Runs(tmp_path / "runs.csv", columns, key)
    runs.add({"cell": "DTAP, r = 0.5", "seed": 0, "score": 1.5})
    again = Runs(tmp_path / "runs.csv", columns, key)
    assert {"cell": "DTAP, r = 0.5", "seed": 0} in again and {"cell": "DTAP, r = 0.5", "seed": 1} not in again
