"""Which settings to change so that a run keeps to a memory budget: of those that fit, the cheapest in time.

What may change are the settings in LEVERS that the user left at their defaults. Time is counted in forward passes
over full-size images, as schedule.py does, for a run that learns as much:

- a step of backpropagation takes 3, times low_res_ratio squared; gradient checkpointing makes them 4;
- a zeroth-order step takes 2 for each perturbation; a step of textual inversion one for each candidate;
- quantised weights are dequantised on their way: DEQUANTISING, as tests/bench/quantize.py measured it;
- a smaller low_res_ratio shows each BP step fewer pixels, so it takes that many more steps to see as many; what is
  hollowed out learns nothing, so a larger hollow_fraction takes as many more steps as it trains less of the network.

The last point is why smaller images do not come first, though each of their steps is faster.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import product

from .config import HollowConfig, SelectiveConfig, TokenConfig
from .plan import GIB, Change, Plan
from .schedule import expected_steps

Config = SelectiveConfig | HollowConfig | TokenConfig
Planner = Callable[[Config], Plan]

# From the default on, each needs less memory than the one before.
LEVERS = {
    SelectiveConfig: {
        "gradient_checkpointing": (False, True),
        "quantization": ("none", "int8", "int4"),
        "low_res_ratio": (0.5, 0.375, 0.25),
    },
    HollowConfig: {
        "gradient_checkpointing": (False, True),
        "quantization": ("none", "int8", "int4"),
        "hollow_fraction": (0.39, 0.6, 0.8),
    },
    TokenConfig: {"candidates": ("auto", "one_by_one"), "quantization": ("int8", "int4")},
}
# Forward time of the four layers of tests/bench/RESULTS.md together, over that of plain ones.
DEQUANTISING = {"none": 1.0, "int8": 1.22, "int4": 1.33}
TIMESTEPS = 1000  # of Stable Diffusion
SMALLER = "a smaller rank, batch_size or resolution also needs less"
NOTHING = "nothing that the plan may choose would need less; a smaller rank, batch_size or resolution does"
LESS = 0.95  # of the peak: what a suggestion after running out of memory has to stay under


class BudgetTooSmall(ValueError):
    """Nothing that may be chosen keeps to the budget; found says what the run needs."""

    def __init__(self, got_gb: float, found: str, smallest_gb: float):
        self.found = found
        remedy = f"Set budget_gb to {smallest_gb:.2f} or more, or to 0 for none; {SMALLER}"
        super().__init__(f"budget_gb: got {got_gb:.2f}; {found}. {remedy}")


def budget_bytes(config: Config) -> int | None:
    """The budget that the settings ask for."""
    return round(config.budget_gb * GIB) if config.budget_gb else None


def planned(config: Config, plan_of: Planner) -> tuple[Config, Plan]:
    """The settings to train with, and their plan: within the budget if there is one, else those asked for.

    Raises ValueError where no settings keep to the budget.
    """
    budget = budget_bytes(config)
    if budget is not None:
        plan = fitted(config, plan_of, budget)
        return replace(config, **{change.setting: change.chosen for change in plan.changes}), plan
    return config, advised(config, plan_of)


def advised(config: Config, plan_of: Planner) -> Plan:
    """The plan with these very settings; where it does not fit, with advice."""
    plan = plan_of(config)
    if plan.fits is not False:
        return plan
    return replace(plan, advice=suggestion(config, plan_of, plan.free_bytes) or NOTHING)


def fitted(config: Config, plan_of: Planner, budget_bytes: int) -> Plan:
    """The plan of the cheapest run within the budget; its settings are those to train with.

    Raises ValueError, with the smallest budget that can be kept, where there is none.
    """
    plan = plan_of(config)
    if plan.needed_bytes <= budget_bytes:
        return plan
    choices = sorted(options(config), key=run_cost)
    least = plan_of(frugal(config))
    if least.needed_bytes > budget_bytes:
        raise _refusal(plan, least, budget_bytes)
    tried = {config: plan}
    for choice in choices:
        if not any(_is_hopeless(choice, other, found, budget_bytes) for other, found in tried.items()):
            tried[choice] = plan_of(choice)
            if tried[choice].needed_bytes <= budget_bytes:
                return _chosen(config, choice, tried[choice])
    return _chosen(config, frugal(config), least)


def suggestion(config: Config, plan_of: Planner, limit_bytes: int) -> str:
    """In words, the cheapest settings that need at most so much; else those that need least; "" if there are none."""
    try:
        plan = fitted(config, plan_of, limit_bytes)
    except ValueError:
        plan = _chosen(config, frugal(config), plan_of(frugal(config)))
    if not plan.changes:
        return ""
    settings = " and ".join(f"{change.setting} = {change.chosen}" for change in plan.changes)
    return f"{settings} would need {plan.needed_bytes / GIB:.2f} GB"


def options(config: Config) -> Iterator[Config]:
    """All combinations of what may change, the given one first."""
    levers = _levers(config)
    for values in product(*levers.values()):
        yield replace(config, **dict(zip(levers, values, strict=True)))


def frugal(config: Config) -> Config:
    """The combination that needs least memory."""
    return replace(config, **{name: values[-1] for name, values in _levers(config).items()})


def run_cost(config: Config) -> float:
    """Time of the run in forward passes over full-size images; see the module."""
    own = {SelectiveConfig: _selective_cost, HollowConfig: _hollow_cost, TokenConfig: _token_cost}
    return own[type(config)](config) * DEQUANTISING[config.quantization]


def _selective_cost(config: SelectiveConfig) -> float:
    schedule = dict(k=config.k, t_mid=min(config.t_mid, TIMESTEPS), t_max=TIMESTEPS)
    expected = expected_steps(config.strategy, config.steps, **schedule)
    ratio = 1.0 if config.strategy == "bp_high" else config.low_res_ratio
    bp = (4 if config.gradient_checkpointing else 3) * ratio**2
    usual = SelectiveConfig.low_res_ratio
    longer = max(1.0, (usual / ratio) ** 2) if expected.steps_bp else 1.0
    return (expected.steps_bp * bp + expected.steps_zo * 2 * config.zo_perturbations) * longer


def _hollow_cost(config: HollowConfig) -> float:
    longer = max(1.0, (1 - HollowConfig.hollow_fraction) / (1 - config.hollow_fraction))
    bp = (4 if config.gradient_checkpointing else 3) * config.batch_size
    return config.samples_needed + config.steps * bp * longer


def _token_cost(config: TokenConfig) -> float:
    if config.method == "gradient":
        return 3 * config.steps
    n = config.zo_perturbations
    return config.steps * (2 * n if config.difference == "central" else n + 1)


def _levers(config: Config) -> dict[str, tuple]:
    """Settings that may change and matter for this run, with their values from the given one on."""
    idle = set()
    if isinstance(config, SelectiveConfig) and config.strategy in ("bp_high", "zo_high"):
        idle = {"low_res_ratio"} if config.strategy == "bp_high" else {"low_res_ratio", "gradient_checkpointing"}
    if isinstance(config, TokenConfig) and config.method == "gradient":
        idle = {"candidates"}
    defaults = {field.name: field.default for field in fields(config)}
    return {
        name: values
        for name, values in LEVERS[type(config)].items()
        if name not in idle and getattr(config, name) == defaults[name]
    }


def _is_hopeless(choice: Config, other: Config, found: Plan, budget_bytes: int) -> bool:
    """Whether the plan of another choice, which did not fit, shows that this one does not either.

    One forward pass of the whole network takes the same whatever is chosen beside its weights' precision.
    """
    forward = (found.inference_peak_bytes or 0) > budget_bytes and choice.quantization == other.quantization
    return forward or _takes_no_less(choice, other)


def _takes_no_less(config: Config, other: Config) -> bool:
    """Whether every lever is at least as far from frugal as in the other."""
    levers = LEVERS[type(config)]

    def places(one: Config) -> list[int]:
        return [values.index(getattr(one, name)) for name, values in levers.items() if getattr(one, name) in values]

    return all(own <= others for own, others in zip(places(config), places(other), strict=True))


def _chosen(config: Config, choice: Config, plan: Plan) -> Plan:
    names = _levers(config)
    changes = [Change(name, getattr(config, name), getattr(choice, name)) for name in names]
    changes = tuple(change for change in changes if change.default != change.chosen)
    return replace(plan, changes=changes, slower=run_cost(choice) / run_cost(config))


def _refusal(plan: Plan, least: Plan, budget_bytes: int) -> BudgetTooSmall:
    smallest_gb = math.ceil(least.needed_bytes / GIB * 100) / 100
    names = [name for name, value in least.settings.items() if plan.settings[name] != value]
    settings = "".join(f", {name} = {least.settings[name]}" for name in names)
    found = (
        f"this run needs {plan.needed_bytes / GIB:.2f} GB with its settings, "
        f"and no less than {smallest_gb:.2f} GB with all that may be chosen for it{settings}"
    )
    return BudgetTooSmall(budget_bytes / GIB, found, smallest_gb)
