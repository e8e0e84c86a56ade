"""What to train with, given how much memory there is: of what was measured to learn most, the first that fits.

A preset names memory. Which settings that makes of it depends on the model, the size and the number of the photos: the
proposals below are planned one after the other, best first, each with what budget.py may change to save memory. What
the user has set to other than its default stays. tests/bench/presets.py prints what comes out.

Why these: on the pocket world backpropagation on full-size photos learns more than every mixture with smaller ones, as
much on int8 or int4 weights, and a LoRA on the feed-forward layers, too, with min-SNR weights learns most in the same
time and keeps other subjects best (tests/bench/RESULTS.md, "The selective paper" and "Recipes"); gradients teach a
token more than zeroth-order steps in the same time ("Textual inversion").
"""

from collections.abc import Iterator
from dataclasses import fields, replace

from .budget import GIB, SMALLER, BudgetTooSmall, Config, Planner, planned
from .config import OFF, PRESETS, SelectiveConfig, TokenConfig
from .plan import Change, Plan

VIEWS_OF_A_PHOTO = 150  # updates times batch_size; 180 gained 0.04 of identity (tests/bench/early_stop.csv)
RECIPE = {"target_modules": "attention and feed-forward", "min_snr_gamma": 5.0}
RANK = 16  # of the selective trainer, which has 4: rank 4 learnt less in as many steps
OWN = ("preset", "budget_gb")  # settings that are no recipe's


def settled(config: Config, plan_of: Planner, photos: int = 0) -> tuple[Config, Plan]:
    """The settings to train with, and their plan; of so many photos, 0 where they are not known yet.

    Raises ValueError where nothing keeps to the preset or to the budget.
    """
    if config.preset == OFF:
        return planned(config, plan_of)
    limit_gb = _limit_gb(config)
    for proposal in proposals(config, photos):
        try:
            found, plan = planned(replace(proposal, preset=OFF, budget_gb=limit_gb), plan_of)
        except ValueError as error:
            refusal = error
            continue
        return found, replace(plan, preset=config.preset, changes=_changes(config, found))
    if not isinstance(refusal, BudgetTooSmall):
        raise refusal
    raise ValueError(
        f"preset: got {config.preset}; {refusal.found}. Take a larger preset, or {OFF}; {SMALLER}"
    ) from refusal


def settled_or_advised(config: Config, plan_of: Planner, photos: int = 0) -> Plan:
    """The plan of settled(); where there is none, that of these very settings with the refusal as its advice."""
    try:
        return settled(config, plan_of, photos)[1]
    except ValueError as error:
        plan = plan_of(replace(config, preset=OFF))
        return replace(plan, budget_bytes=round(_limit_gb(config) * GIB), advice=str(error))


def _limit_gb(config: Config) -> float:
    """The smaller of the preset's memory and the budget, as far as they are set; one of them is."""
    return min(filter(None, (PRESETS[config.preset], config.budget_gb)))


def proposals(config: Config, photos: int) -> Iterator[Config]:
    """What to try, best first."""
    if isinstance(config, TokenConfig):
        for method in ("gradient", "zo"):
            yield _with(config, method=method)
        return
    if photos:
        config = _with(config, steps=-(-VIEWS_OF_A_PHOTO * photos // config.batch_size))
    best = _with(config, **RECIPE)
    if isinstance(config, SelectiveConfig):
        yield _with(best, strategy="bp_high", rank=RANK)
        yield _with(config, strategy="bp_high", min_snr_gamma=RECIPE["min_snr_gamma"])
    yield best
    yield config


def _with(config: Config, **settings) -> Config:
    """With these settings, as far as the user left them at their defaults."""
    defaults = {field.name: field.default for field in fields(config)}
    mine = {name: value for name, value in settings.items() if getattr(config, name) == defaults[name]}
    return replace(config, **mine)


def _changes(config: Config, found: Config) -> tuple[Change, ...]:
    pairs = ((field.name, getattr(config, field.name), getattr(found, field.name)) for field in fields(config))
    return tuple(Change(*pair) for pair in pairs if pair[0] not in OWN and pair[1] != pair[2])
