"""A preset takes the best settings that fit, by plan and number of photos, and leaves what the user set."""

from dataclasses import asdict, replace

import pytest
from pack.trainers.config import PRESETS, HollowConfig, SelectiveConfig, TokenConfig
from pack.trainers.plan import GIB, Plan
from pack.trainers.presets import RANK, RECIPE, VIEWS_OF_A_PHOTO, proposals, settled, settled_or_advised
from test_budget import Sizes

every_trainer = pytest.mark.parametrize(
    "config", [SelectiveConfig(), HollowConfig(), TokenConfig()], ids=lambda c: type(c).__name__
)


class Full(Sizes):
    """Sizes in which full-size backpropagation, and gradients of a token, take a GB more."""

    def __call__(self, config) -> Plan:
        plan = super().__call__(config)
        if getattr(config, "strategy", "") != "bp_high" and getattr(config, "method", "") != "gradient":
            return plan
        larger = [phase._replace(peak_bytes=phase.peak_bytes + GIB) for phase in plan.phases]
        return replace(plan, phases=tuple(larger))


@every_trainer
@pytest.mark.parametrize("preset", list(PRESETS)[1:])
def test_what_is_chosen_fits_and_says_what_was_changed(config, preset):
    found, plan = settled(replace(config, preset=preset), Full(), photos=4)
    assert plan.needed_bytes <= PRESETS[preset] * GIB and plan.fits
    changed = {change.setting: change.chosen for change in plan.changes}
    assert replace(config, preset="off", budget_gb=PRESETS[preset], **changed) == found
    assert plan.choice.startswith(f"preset {preset}: ") and plan.choice in str(plan)


def test_full_size_and_gradients_are_taken_where_they_fit():
    for config, name, wanted, other in [
        (SelectiveConfig(), "strategy", "bp_high", "dtap"),
        (TokenConfig(), "method", "gradient", "zo"),
    ]:
        large, _ = settled(replace(config, preset="12 GB"), Full())
        small, _ = settled(replace(config, preset="2 GB", budget_gb=1.4), Full())
        assert (getattr(large, name), getattr(small, name)) == (wanted, other)
    best, _ = settled(SelectiveConfig(preset="12 GB"), Full())
    assert best.rank == RANK and RECIPE.items() <= asdict(best).items()


@pytest.mark.parametrize("kind", [SelectiveConfig, HollowConfig])
def test_steps_show_each_photo_as_often_whatever_the_batch(kind):
    for photos, batch in [(1, 1), (3, 1), (5, 2), (6, 4)]:
        found, _ = settled(kind(preset="12 GB", batch_size=batch), Sizes(), photos)
        assert 0 <= found.steps * batch - VIEWS_OF_A_PHOTO * photos < batch
    assert settled(kind(preset="12 GB"), Sizes())[0].steps == kind.steps  # photos not known


def test_what_the_user_set_stays():
    mine = SelectiveConfig(preset="12 GB", steps=77, strategy="random", quantization="int8", rank=8, min_snr_gamma=1.0)
    found, plan = settled(replace(mine, target_modules="cross-attention"), Sizes(), photos=5)
    assert found == replace(mine, preset="off", budget_gb=12.0, target_modules="cross-attention") and not plan.changes
    assert all(proposal.steps == 77 for proposal in proposals(mine, 5))


def test_a_smaller_budget_beside_it_is_kept():
    found, plan = settled(SelectiveConfig(preset="12 GB", budget_gb=2.0), Sizes())
    assert found.budget_gb == 2.0 and plan.needed_bytes <= 2 * GIB


class Huge(Sizes):
    def __call__(self, config) -> Plan:
        plan = super().__call__(config)
        return replace(plan, phases=tuple(p._replace(peak_bytes=p.peak_bytes + 20 * GIB) for p in plan.phases))


@every_trainer
def test_what_does_not_fit_is_refused_by_name_and_planned_with_advice(config):
    asked = replace(config, preset="4 GB")
    with pytest.raises(ValueError, match=r"^preset: got 4 GB; this run needs 2.*Take a larger preset, or off"):
        settled(asked, Huge())
    plan = settled_or_advised(asked, Huge())
    assert plan.fits is False and "preset: got 4 GB" in plan.advice


@every_trainer
def test_without_a_preset_a_budget_alone_counts(config):
    assert settled(config, Sizes(), photos=3) == (config, Sizes()(config))
