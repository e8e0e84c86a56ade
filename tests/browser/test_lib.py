"""The arithmetic of web/lib, run in the page, against the same in Python."""

import random

import pytest
from frontend import PACK_NAME

pytestmark = [pytest.mark.browser, pytest.mark.parametrize("canvas", ["classic"], indirect=True)]

TAKE = """async ([url, messages]) => {
    const { Run } = await import(`${url}/lib/run.mjs`);
    const run = new Run(), taken = messages.map(message => run.take(message));
    const { series, kinds, first, secondsLeft } = run;
    return { series: JSON.parse(JSON.stringify(series)), kinds, first, taken, secondsLeft };
}"""


def take(canvas, messages: list[dict]) -> dict:
    return canvas.page.evaluate(TAKE, [f"{canvas.url}/extensions/{PACK_NAME}", messages])


def story(first: int, count: int) -> tuple[list[float], list[str]]:
    draw = random.Random(first)
    return [draw.random() for _ in range(count)], [draw.choice(("bp", "zo")) for _ in range(count)]


def part(first: int, losses: list[float], kinds: list[str], start: int, stop: int) -> dict:
    progress = {"first": first, "step": first + stop - 1, "steps": 100, "elapsed_s": 2.0 * stop}
    return progress | {"losses": losses[start:stop], "kinds": kinds[start:stop]}


@pytest.mark.parametrize("first", [1, 51], ids=["from the start", "resumed"])
def test_messages_in_parts_that_overlap_are_the_whole_run(canvas, first):
    losses, kinds = story(first, 40)
    parts = [part(first, losses, kinds, *bounds) for bounds in ((0, 3), (3, 10), (5, 12), (0, 20), (2, 15), (20, 40))]
    got = take(canvas, parts)
    assert got["taken"] == [True] * 6
    assert (got["kinds"], got["first"]) == (kinds, first)
    for kind in ("bp", "zo"):
        expected = [(first + i, losses[i]) for i in range(40) if kinds[i] == kind]
        series = got["series"][kind]
        assert list(zip(series["steps"], series["raw"], strict=True)) == expected
        means, weights = 0.0, 0.0
        for (_, loss), smooth in zip(expected, series["smooth"], strict=True):
            means, weights = 0.95 * means + 0.05 * loss, 0.95 * weights + 0.05
            assert smooth == pytest.approx(means / weights, abs=1e-12)
    assert got["secondsLeft"] == pytest.approx(2.0 * (100 - first - 39))


def test_a_gap_is_seen_and_filled_by_the_whole_story(canvas):
    losses, kinds = story(1, 30)
    parts = [part(1, losses, kinds, *bounds) for bounds in ((10, 12), (0, 12), (15, 20), (0, 30))]
    got = take(canvas, parts)
    assert got["taken"] == [False, True, False, True]
    assert got["kinds"] == kinds
