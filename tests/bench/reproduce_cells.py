"""The trainings that reproduce.py compares, and which of them make which table.

Those of the selective paper (arXiv:2507.10029), and Hollowed Net's poster (arXiv:2411.01179): its curve of fractions.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from pack.trainers.config import SelectiveConfig
from pack.trainers.selective import Draw, choices

STEPS = 200
ZO_STEPS = 100  # of figure 1a, after so many steps of backpropagation
ZO_RATE, ZO_EPSILON, PERTURBATIONS = 1e-2, 1e-2, 1  # not in the paper; table "search": at 0.3 a run diverges
BASE = SelectiveConfig(
    steps=STEPS,
    rank=16,
    learning_rate=1e-3,
    batch_size=2,
    zo_learning_rate=ZO_RATE,
    zo_epsilon=ZO_EPSILON,
    zo_perturbations=PERTURBATIONS,
    strategy="bp_high",
)
UNTRAINED, BP_HIGH, FULL = "untrained", "BP-high", "BP-high, none"


class Cell(NamedTuple):
    """One training: settings that differ from BASE, and how steps are chosen where not by the strategy."""

    settings: dict = {}
    bp_steps: float = 1.0  # share of STEPS
    zo_steps: int = 0  # that come after those
    span: tuple[int, int] | None = None  # of the timesteps

    def config(self, seed: int, steps: int) -> SelectiveConfig:
        zo_steps = round(self.zo_steps * steps / STEPS)  # short runs for a try have all parts shorter
        return replace(BASE, **self.settings, seed=seed, steps=max(1, round(self.bp_steps * steps) + zo_steps))

    def drawing(self, steps: int) -> Callable[..., Draw]:
        """The choices of each step: as the trainer makes them, but for what the cell says."""
        first_zo = round(self.bp_steps * steps) + 1 if self.zo_steps else None

        def chosen(examples, config, step, timesteps, generator) -> Draw:
            made = choices(examples, config, step, timesteps, generator)
            if self.span:
                low, high = self.span
                made = made._replace(t=low + made.t * (high - low) // timesteps)
            return made._replace(is_zo=step >= first_zo) if first_zo else made

        return chosen


class Hollowed(NamedTuple):
    """One training without the centre: settings of the Hollowed Net Trainer but those that BASE shares with it."""

    settings: dict


def selective(strategy: str, ratio: float) -> Cell:
    return Cell({"strategy": strategy, "low_res_ratio": ratio})


RATIOS = (0.75, 0.625, 0.5)
SPANS = ((0, 250), (250, 500), (500, 750), (750, 1000))
FRACTIONS = (0.150, 0.274, 0.395, 0.620, 0.774, 0.881)  # the pocket model's cuts
LOW = {"strategy": "bp_low", "low_res_ratio": 0.5}
CELLS = {
    BP_HIGH: Cell(),
    **{f"DTAP, r = {r}": selective("dtap", r) for r in RATIOS},
    **{f"BP-low, r = {r}": selective("bp_low", r) for r in RATIOS},
    "ZO-high": selective("zo_high", 0.5),
    "random, r = 0.5": selective("random", 0.5),
    "reversed, r = 0.5": selective("reversed", 0.5),
    "BP 50": Cell(bp_steps=0.25),
    "BP 100": Cell(bp_steps=0.5),
    "BP 0, then ZO": Cell(bp_steps=0.0, zo_steps=ZO_STEPS),
    "BP 50, then ZO": Cell(bp_steps=0.25, zo_steps=ZO_STEPS),
    "BP 100, then ZO": Cell(bp_steps=0.5, zo_steps=ZO_STEPS),
    "BP 200, then ZO": Cell(zo_steps=ZO_STEPS),
    **{f"BP-high, t {low}-{high}": Cell(span=(low, high)) for low, high in SPANS},
    **{f"BP-low, t {low}-{high}": Cell(LOW, span=(low, high)) for low, high in SPANS},
    **{f"BP 100, then ZO at {rate:g}": Cell({"zo_learning_rate": rate}, 0.5, ZO_STEPS) for rate in (3e-2, 1e-1, 3e-1)},
    **{f"BP-high, {name}": Cell({"quantization": name}) for name in ("none", "int8", "int4")},
    "BP 100, then ZO, N = 4": Cell({"zo_perturbations": 4}, 0.5, ZO_STEPS),
    **{f"hollowed, {fraction:.1%}": Hollowed({"hollow_fraction": fraction}) for fraction in FRACTIONS},
}
TABLES = {
    "table1": [BP_HIGH, *(f"{kind}, r = {r}" for kind in ("DTAP", "BP-low") for r in RATIOS)],
    "fig3": [BP_HIGH, "BP-low, r = 0.5", "ZO-high", "random, r = 0.5", "reversed, r = 0.5", "DTAP, r = 0.5"],
    "fig1a": ["BP 0, then ZO", "BP 50", "BP 50, then ZO", "BP 100", "BP 100, then ZO", BP_HIGH, "BP 200, then ZO"],
    "fig1b": [cell for cell in CELLS if ", t " in cell],
    "fractions": [BP_HIGH, *(f"hollowed, {fraction:.1%}" for fraction in FRACTIONS)],
    "precision": [FULL, "BP-high, int8", "BP-high, int4"],
    "search": [cell for cell in CELLS if cell.startswith("BP 100")],
}
COMPARED_WITH = dict.fromkeys(TABLES, BP_HIGH) | {"precision": FULL}  # of one and the same commit
TITLES = {
    "table1": "Table 1: BP-high against the method (DTAP) at three resolutions, and BP-low alone",
    "fig3": "Figure 3: how the two kinds of step are mixed",
    "fig1a": f"Figure 1a: {ZO_STEPS} ZO steps after so many steps of backpropagation at full size",
    "fig1b": "Figure 1b: backpropagation within a range of timesteps, at full size and at half",
    "fractions": "Hollowed Net's curve: what leaving out a share of the parameters costs; the time has the cache in it",
    "precision": "Precision of the base weights a LoRA is trained on; it is drawn with on full ones",
    "search": "What the paper does not give: learning rate and perturbations of ZO steps",
}
