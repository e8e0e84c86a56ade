"""The schedule against closed forms, the paper's own figures and brute force; the plot against what it has to show."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.trainers.plots import schedule_image
from pack.trainers.schedule import GRID, STRATEGIES, dynamic_midpoint, expected_steps, zo_probability, zo_share

STEPS = 1000
PAPER = dict(k=0.05, t_mid=750, t_max=1000)  # figure 2

steepness = st.floats(1e-6, 1e6)
timesteps = st.integers(0, 1000)
run_steps = st.integers(1, STEPS)


def p(strategy, step, t, **changed):
    return zo_probability(strategy, step, STEPS, t, **(PAPER | changed))


def test_tap_is_one_half_at_its_midpoint_and_follows_equation_3():
    assert p("tap", 1, 750) == 0.5
    for t in (600, 740, 760, 900):
        assert p("tap", 1, t) == pytest.approx(1 / (1 + math.exp(-0.05 * (t - 750))), rel=1e-9)


def test_dynamic_midpoint_runs_from_t_max_through_t_mid_to_the_mirrored_end():
    assert dynamic_midpoint(0, STEPS, t_mid=750, t_max=1000) == 1000
    assert dynamic_midpoint(500, STEPS, t_mid=750, t_max=1000) == 750
    assert dynamic_midpoint(STEPS, STEPS, t_mid=750, t_max=1000) == 2 * 750 - 1000


@given(timesteps, steepness)
def test_dtap_halfway_through_the_run_is_tap(t, k):
    assert p("dtap", STEPS // 2, t, k=k) == p("tap", 1, t, k=k)


@given(run_steps, timesteps, steepness)
def test_reversed_is_dtap_with_k_negated_and_its_complement(step, t, k):
    reverse = p("reversed", step, t, k=k)
    assert reverse == p("dtap", step, t, k=-k)
    assert reverse + p("dtap", step, t, k=k) == pytest.approx(1)


@given(st.integers(0, 250), steepness)
def test_tap_is_symmetric_about_its_midpoint(distance, k):
    assert p("tap", 1, 750 + distance, k=k) + p("tap", 1, 750 - distance, k=k) == pytest.approx(1)


@given(st.integers(0, 500), timesteps)
def test_dtap_is_symmetric_about_the_middle_of_the_run(i, t):
    """Mirroring the step and the timestep about (steps / 2, t_mid) swaps the two kinds of step."""
    mirrored = p("dtap", STEPS - i, 2 * PAPER["t_mid"] - t)
    assert p("dtap", i, t) + mirrored == pytest.approx(1)


@given(run_steps, run_steps, timesteps, timesteps, steepness)
def test_zo_becomes_likelier_with_noise_and_with_progress(step, later, t, noisier, k):
    step, later = sorted((step, later))
    t, noisier = sorted((t, noisier))
    assert 0 <= p("dtap", step, t, k=k) <= p("dtap", later, noisier, k=k) <= 1
    assert p("tap", step, t, k=k) <= p("tap", step, noisier, k=k)


@pytest.mark.parametrize("strategy, expected", [("bp_high", 0), ("bp_low", 0), ("zo_high", 1), ("random", 0.5)])
def test_constant_strategies_ignore_step_and_timestep(strategy, expected):
    assert np.all(p(strategy, np.arange(1, 5)[:, None], np.arange(7)) == np.full((4, 7), expected))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_arrays_and_scalars_agree(strategy):
    steps, t = np.array([[1], [400], [1000]]), np.array([0, 499, 750, 999])
    grid = p(strategy, steps, t)
    assert grid.shape == (3, 4)
    scalars = [[p(strategy, i, j) for j in t.tolist()] for i in steps[:, 0].tolist()]
    assert all(type(value) is float for row in scalars for value in row)
    np.testing.assert_allclose(grid, scalars, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("k", [1e3, 1e300, sys.float_info.max, -sys.float_info.max])
@pytest.mark.parametrize("t", [0.0, np.arange(1000)])
def test_a_huge_k_is_a_hard_switch_without_warnings(k, t):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = p("tap", 1, t, k=k)
    above = np.sign(k) * (np.asarray(t) - 750)
    np.testing.assert_array_equal(got, np.where(above == 0, 0.5, above > 0))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps, k, t_mid, t_max", [(1, 0.05, 750, 1000), (7, 0.3, 20, 60), (90, 2.0, 8, 11)])
def test_expected_counts_are_the_sum_over_all_steps_and_timesteps(strategy, steps, k, t_mid, t_max):
    schedule = dict(k=k, t_mid=t_mid, t_max=t_max)
    means = [
        math.fsum(zo_probability(strategy, i, steps, t, **schedule) for t in range(t_max)) / t_max
        for i in range(1, steps + 1)
    ]
    got = expected_steps(strategy, steps, **schedule)
    assert got.steps_zo == pytest.approx(math.fsum(means))
    assert got.steps_bp == pytest.approx(steps - math.fsum(means))
    assert got.first_step_10 == next((i for i, mean in enumerate(means, 1) if mean >= 0.1), None)
    assert got.first_step_50 == next((i for i, mean in enumerate(means, 1) if mean >= 0.5), None)
    assert sum(got.rounded()) == steps


def test_the_papers_values_give_750_bp_and_250_zo_steps():
    got = expected_steps("dtap", STEPS, **PAPER)
    assert got.rounded() == (750, 250)
    assert got.steps_zo == pytest.approx(250.4, abs=0.05)
    assert got.first_step_10 == pytest.approx(200, abs=2)  # where 1 - t_dyn / t_max passes 10%
    assert got.first_step_50 is None  # t_dyn only reaches 500 at the last step


def test_a_run_too_long_for_one_block_counts_every_step_once():
    steps = 2 * GRID // PAPER["t_max"] + 300
    whole = zo_probability("dtap", np.arange(1, steps + 1)[:, None], steps, np.arange(PAPER["t_max"]), **PAPER)
    np.testing.assert_allclose(zo_share("dtap", steps, **PAPER), whole.mean(1))


@pytest.mark.parametrize("strategy", ["dtap", "tap", "random", "reversed"])
def test_drawn_decisions_agree_with_the_expectation(strategy):
    generator = torch.Generator().manual_seed(20250714)
    t = torch.randint(1000, (STEPS,), generator=generator).tolist()
    draws = torch.rand(STEPS, generator=generator).tolist()
    drawn = sum(draw < p(strategy, i, t_i) for i, (draw, t_i) in enumerate(zip(draws, t, strict=True), 1))
    share = zo_share(strategy, STEPS, **PAPER)
    sigma = math.sqrt((share * (1 - share)).sum())
    assert abs(drawn - share.sum()) < 4 * sigma


def test_cost_counts_two_passes_per_perturbation_and_three_per_small_image():
    bp_high, bp_low, zo_high = (expected_steps(s, STEPS, **PAPER) for s in ("bp_high", "bp_low", "zo_high"))
    assert bp_high.forward_equivalents(4, 0.5) == 3 * STEPS
    assert bp_low.forward_equivalents(4, 0.5) == 3 * STEPS / 4
    assert bp_low.forward_equivalents(4, 1.0) == 3 * STEPS
    assert zo_high.forward_equivalents(4, 0.5) == 2 * 4 * STEPS


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(strategy="best"), "strategy: got 'best', needs to be one of dtap, tap"),
        (dict(steps=0), "steps: got 0, needs to be at least 1"),
        (dict(k=math.nan), "k: got nan, needs to be a finite number"),
        (dict(k=-math.inf), "k: got -inf, needs to be a finite number"),
        (dict(t_max=0, t_mid=0), "t_max: got 0, needs to be at least 1"),
        (dict(t_mid=1001), r"t_mid: got 1001, needs to be between 0 and t_max \(1000\)"),
        (dict(t_mid=math.nan), "t_mid: got nan"),
    ],
)
def test_settings_without_a_meaning_are_refused(changed, message):
    schedule = dict(strategy="dtap", steps=STEPS) | PAPER | changed
    with pytest.raises(ValueError, match=message):
        zo_probability(step=1, t=1, **schedule)
    with pytest.raises(ValueError, match=message):
        expected_steps(**schedule)


@pytest.mark.parametrize("perturbations, ratio, name", [(0, 0.5, "zo_perturbations"), (1, math.nan, "low_res_ratio")])
def test_costs_without_a_meaning_are_refused(perturbations, ratio, name):
    with pytest.raises(ValueError, match=f"{name}: got"):
        expected_steps("dtap", 1, **PAPER).forward_equivalents(perturbations, ratio)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 3, STEPS])
def test_every_strategy_can_be_drawn(strategy, steps):
    image = schedule_image(strategy, steps, **PAPER)
    assert image.shape == (1, 520, 1200, 3) and image.dtype == torch.float32
    assert 0 <= image.min() < 0.2 and image.max() == 1


@given(st.integers(1, 10_000), st.floats(-1e9, 1e9), st.integers(1, 2000), st.floats(0, 1))
@settings(max_examples=8, deadline=None)
def test_every_legal_schedule_can_be_drawn_without_warnings(steps, k, t_max, mid):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule_image("dtap", steps, k=k, t_mid=mid * t_max, t_max=t_max)


def test_the_image_follows_the_settings_and_nothing_else():
    image = schedule_image("dtap", 50, **PAPER)
    assert torch.equal(image, schedule_image("dtap", 50, **PAPER))
    for changed in (dict(k=0.02), dict(t_mid=600)):
        assert not torch.equal(image, schedule_image("dtap", 50, **(PAPER | changed)))
