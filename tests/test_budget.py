"""A budget is kept by the cheapest settings in time, the user's own stay, and what cannot be kept is refused."""

from dataclasses import asdict, replace

import pytest
from pack.trainers.budget import (
    LEVERS,
    fitted,
    frugal,
    options,
    planned,
    run_cost,
    suggestion,
)
from pack.trainers.config import HollowConfig, SelectiveConfig, TokenConfig
from pack.trainers.plan import CUDA_CONTEXT_BYTES, GIB, Plan, PlannedPhase, allowance
from pack.trainers.presets import settled_or_advised

WEIGHTS = {"none": 3.0, "int8": 1.5, "int4": 0.8}  # GB


class Sizes:
    """A planner whose runs have sizes like real ones: weights, and activations that each lever makes smaller."""

    def __init__(self, free_gb: float | None = None):
        self.free_gb, self.asked = free_gb, []

    def __call__(self, config) -> Plan:
        self.asked.append(config)
        if isinstance(config, TokenConfig):
            work = 0.9 if config.candidates == "auto" else 0.3
        else:
            work = 0.4 if config.gradient_checkpointing else 1.0
            work *= 1 - config.hollow_fraction if isinstance(config, HollowConfig) else config.low_res_ratio
        weights, work = (round(size * GIB) for size in (WEIGHTS[config.quantization], work))
        return Plan(
            method="a method",
            base_model="sd_v1",
            resolution=512,
            device="cpu",
            dtype="bfloat16",
            phases=(
                PlannedPhase("inference", weights + GIB // 20, weights, 0, 0, GIB // 20),
                PlannedPhase("zo", weights + work, weights, 0, 0, work),
            ),
            allowance_bytes=0,
            free_bytes=None if self.free_gb is None else round(self.free_gb * GIB),
            budget_bytes=round(config.budget_gb * GIB) if config.budget_gb else None,
            other_models=(),
            settings=asdict(config),
        )


every_trainer = pytest.mark.parametrize(
    "config", [SelectiveConfig(), HollowConfig(), TokenConfig()], ids=lambda c: type(c).__name__
)


@every_trainer
def test_levers_start_at_the_default_and_are_settings_the_config_takes(config):
    for name, values in LEVERS[type(config)].items():
        assert values[0] == getattr(config, name)
        assert [getattr(replace(config, **{name: value}), name) for value in values] == list(values)


@every_trainer
def test_of_all_settings_that_fit_the_cheapest_is_chosen(config):
    """Against trying them all, for budgets from generous to the smallest there is."""
    every = sorted(options(config), key=run_cost)
    needs = {choice: Sizes()(choice).needed_bytes for choice in every}
    assert min(needs.values()) == needs[frugal(config)]
    for budget in sorted({*needs.values(), max(needs.values()) + 1}):
        asked = replace(config, budget_gb=budget / GIB)
        found, plan = planned(asked, Sizes())
        best = next(choice for choice in every if needs[choice] <= budget)
        assert plan.needed_bytes <= budget and plan.fits
        if needs[config] <= budget:
            assert found == asked and not plan.changes
        else:
            assert run_cost(found) == run_cost(best)
            assert plan.changes and plan.slower == run_cost(found) / run_cost(config)
            assert all(getattr(found, change.setting) == change.chosen for change in plan.changes)


@every_trainer
def test_what_cannot_be_kept_is_refused_with_the_smallest_budget_that_can(config):
    least = Sizes()(frugal(config)).needed_bytes / GIB
    with pytest.raises(ValueError, match=r"budget_gb: got 0\.50; .* no less than") as refusal:
        planned(replace(config, budget_gb=0.5), Sizes())
    nearest = float(str(refusal.value).split("Set budget_gb to ")[1].split(" ")[0])
    assert least <= nearest < least + 0.01
    assert planned(replace(config, budget_gb=nearest), Sizes())[1].fits


def test_settings_that_are_not_at_their_default_are_the_user_s():
    config = SelectiveConfig(low_res_ratio=0.75, quantization="int8", budget_gb=1.9)
    found, plan = planned(config, Sizes())
    assert found == replace(config, gradient_checkpointing=True)
    assert [str(change) for change in plan.changes] == ["gradient_checkpointing = True instead of False"]
    with pytest.raises(ValueError, match="no less than 1.80 GB"):
        planned(replace(config, budget_gb=1.7), Sizes())


@pytest.mark.parametrize(
    "strategy, idle", [("bp_high", {"low_res_ratio"}), ("zo_high", {"low_res_ratio", "gradient_checkpointing"})]
)
def test_what_a_strategy_does_not_use_is_not_chosen(strategy, idle):
    config = SelectiveConfig(strategy=strategy)
    assert {name for name in LEVERS[SelectiveConfig] if getattr(frugal(config), name) == getattr(config, name)} == idle


def test_recomputing_comes_before_smaller_images_and_a_larger_hole():
    assert run_cost(replace(SelectiveConfig(), gradient_checkpointing=True)) < run_cost(
        replace(SelectiveConfig(), low_res_ratio=0.375)
    )
    assert run_cost(replace(HollowConfig(), gradient_checkpointing=True)) < run_cost(
        replace(HollowConfig(), hollow_fraction=0.6)
    )


def test_a_plan_is_not_asked_for_what_another_one_shows_to_be_too_large():
    planner = Sizes()
    fitted(SelectiveConfig(), planner, round(1.0 * GIB))  # int4 alone can
    assert len(planner.asked) == len(set(planner.asked)) < len(list(options(SelectiveConfig()))) / 2


def test_without_a_budget_nothing_is_chosen_and_free_memory_gets_advice():
    config, plan = planned(SelectiveConfig(), Sizes(free_gb=3.3))
    assert config == SelectiveConfig() and not plan.changes
    assert plan.fits is False
    assert plan.advice == "gradient_checkpointing = True would need 3.20 GB"
    assert planned(SelectiveConfig(), Sizes(free_gb=8.0))[1].advice == ""


def test_an_impossible_budget_is_told_where_nothing_runs():
    plan = settled_or_advised(SelectiveConfig(budget_gb=0.5), Sizes())
    assert plan.fits is False and plan.advice.startswith("budget_gb: got 0.50") and not plan.changes


def test_a_suggestion_names_what_needs_least_where_nothing_is_small_enough():
    assert suggestion(SelectiveConfig(), Sizes(), GIB // 2).startswith(
        "gradient_checkpointing = True and quantization = int4"
    )
    settled = SelectiveConfig(gradient_checkpointing=True, quantization="int8", low_res_ratio=0.3)
    assert suggestion(settled, Sizes(), GIB) == ""


def test_a_cuda_budget_includes_the_allowance():
    peak = round(2.0 * GIB)
    assert allowance(peak) > CUDA_CONTEXT_BYTES

    def on_cuda(config) -> Plan:
        plan = Sizes()(config)
        return replace(plan, allowance_bytes=allowance(plan.peak_bytes))

    with_allowance = on_cuda(SelectiveConfig())
    assert with_allowance.needed_bytes == with_allowance.peak_bytes + allowance(with_allowance.peak_bytes)
    _, plan = planned(SelectiveConfig(budget_gb=with_allowance.peak_bytes / GIB), on_cuda)
    assert plan.changes and plan.needed_bytes <= with_allowance.peak_bytes
