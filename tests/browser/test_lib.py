"""The arithmetic of web/lib, run in the page, against the same in Python."""

import random

import pytest
from frontend import PACK_NAME
from pack.trainers import schedule
from pack.trainers.plots import marked_steps
from pack.trainers.schedule import STRATEGIES

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


SCHEDULE = """async ([url, cases]) => {
    const { expectedZoSteps, markedSteps, midpoint, zoProbability } = await import(`${url}/lib/schedule.mjs`);
    return cases.map(({ strategy, points, ...schedule }) => ({
        p: points.map(([step, t]) => zoProbability(strategy, step, t, schedule)),
        midpoints: points.map(([step]) => midpoint(strategy, step, schedule)),
        zo: expectedZoSteps(strategy, schedule),
        marked: markedSteps(strategy, schedule.steps),
    }));
}"""


K = (-10, 0, 1e-4, 10)


def settings(count: int) -> list[dict]:
    """Random schedules, the paper's and some extremes among them."""
    draw = random.Random(0)
    cases = [dict(strategy="dtap", steps=1000, tMax=1000, tMid=750, k=0.05)]
    cases += [dict(strategy=name, steps=1, tMax=1, tMid=tMid, k=k) for name in STRATEGIES for tMid in (0, 1) for k in K]
    for _ in range(count):
        t_max, steps = draw.randint(1, 1000), draw.randint(1, 1000)
        k = draw.choice([-1, 1]) * 10 ** draw.uniform(-4, 1)
        case = dict(strategy=draw.choice(STRATEGIES), steps=steps, tMax=t_max, tMid=draw.randint(0, t_max), k=k)
        cases.append(case)
    for case in cases:
        steps, t_max = case["steps"], case["tMax"]
        case["points"] = [(draw.randint(1, steps), draw.uniform(0, t_max)) for _ in range(20)] + [(steps, t_max)]
    return cases


def test_the_schedule_in_the_browser_is_the_schedule_of_the_trainer(canvas):
    cases = settings(60)
    found = canvas.page.evaluate(SCHEDULE, [f"{canvas.url}/extensions/{PACK_NAME}", cases])
    for case, got in zip(cases, found, strict=True):
        strategy, steps, t_mid, t_max = (case[name] for name in ("strategy", "steps", "tMid", "tMax"))
        where = dict(k=case["k"], t_mid=t_mid, t_max=t_max)
        for (step, t), p, middle in zip(case["points"], got["p"], got["midpoints"], strict=True):
            assert p == pytest.approx(schedule.zo_probability(strategy, step, steps, t, **where), abs=1e-9)
            assert middle == pytest.approx(schedule.midpoint(strategy, step, steps, t_mid, t_max), abs=1e-9)
        expected = schedule.expected_steps(strategy, steps, **where)
        assert got["zo"] == pytest.approx(expected.steps_zo, rel=1e-9, abs=1e-9)
        assert got["marked"] == marked_steps(strategy, steps)


def test_a_long_run_is_sampled_and_its_sum_still_right(canvas):
    case = dict(strategy="dtap", steps=20_000, tMax=1000, tMid=600, k=0.02, points=[])
    (got,) = canvas.page.evaluate(SCHEDULE, [f"{canvas.url}/extensions/{PACK_NAME}", [case]])
    expected = schedule.expected_steps("dtap", 20_000, k=0.02, t_mid=600, t_max=1000)
    assert got["zo"] == pytest.approx(expected.steps_zo, abs=0.5)
