"""Which kind of step to take: the probability of ZO-high at training step i and timestep t, and what it comes to.

Choi et al. 2025 (arXiv:2507.10029), equations 3-5 and figure 2. The paper gives no number for its "random" ablation;
here it is a fair coin.

Symbols: i is the training step, 1 to steps (i_max); t the timestep, 0 = data, t_max = noise; p the probability of
ZO-high. This is the only place the formula stands in Python.
"""

import math
from typing import NamedTuple

import numpy as np

from .checks import require

LABELS = {
    "dtap": "DTAP",
    "tap": "TAP",
    "bp_high": "BP-high",
    "bp_low": "BP-low",
    "zo_high": "ZO-high",
    "random": "Random",
    "reversed": "Reversed DTAP",
}
STRATEGIES = tuple(LABELS)
DYNAMIC = ("dtap", "reversed")  # p depends on the training step as well
CONSTANT = {"bp_high": 0.0, "bp_low": 0.0, "zo_high": 1.0, "random": 0.5}  # p, whatever the step and the timestep

GRID = 1_000_000  # values of p held at once when they are summed, 8 MB


class Expected(NamedTuple):
    """What a run comes to on average, t being uniform over the integers 0 to t_max - 1."""

    strategy: str
    steps_bp: float
    steps_zo: float
    first_step_10: int | None  # first step at which the mean of p over t is at least 10%; None: never
    first_step_50: int | None

    def rounded(self) -> tuple[int, int]:
        """steps_bp and steps_zo as whole numbers that still add up to the length of the run."""
        zo = round(self.steps_zo)
        return round(self.steps_bp + self.steps_zo) - zo, zo

    def forward_equivalents(self, perturbations: int, low_res_ratio: float) -> float:
        """Cost of the run in forward passes over full-size images, of which a run of bp_high takes 3 a step.

        A ZO step takes two passes per perturbation. A BP step takes 3, its backward pass counting as two, times
        low_res_ratio squared: the pixels of the small image against those of the full-size one (bp_high: no small
        image). Attention grows faster than pixels and gradient checkpointing adds a forward pass; neither is counted.
        """
        require("zo_perturbations", perturbations, "at least 1", perturbations >= 1)
        require("low_res_ratio", low_res_ratio, "above 0 and at most 1", 0 < low_res_ratio <= 1)
        ratio = 1.0 if self.strategy == "bp_high" else low_res_ratio
        return self.steps_zo * 2 * perturbations + self.steps_bp * 3 * ratio**2


def bp_name(strategy: str) -> str:
    """What a BP step is called: bp_high trains on full-size images, every other strategy on small ones."""
    return "BP-high" if strategy == "bp_high" else "BP-low"


def zo_probability(
    strategy: str, step: float | np.ndarray, steps: int, t: float | np.ndarray, *, k: float, t_mid: float, t_max: int
) -> float | np.ndarray:
    """Probability of ZO-high at a 1-based step and a timestep; arrays of step and t broadcast against each other.

    tap is equation 3, dtap equation 5, reversed is dtap with k negated (the paper's ablation).
    """
    check_schedule(strategy, steps, k, t_mid, t_max)
    if strategy in CONSTANT:
        p = CONSTANT[strategy]
    else:
        slope = -k if strategy == "reversed" else k
        p = _sigmoid(slope, t - midpoint(strategy, step, steps, t_mid, t_max))
    p = np.broadcast_to(p, np.broadcast(step, t).shape)
    return p if p.ndim else p.item()


def midpoint(strategy: str, step: float | np.ndarray, steps: int, t_mid: float, t_max: int) -> float | np.ndarray:
    """Timestep at which p is one half: it moves for the dynamic strategies and rests at t_mid for tap."""
    return dynamic_midpoint(step, steps, t_mid, t_max) if strategy in DYNAMIC else t_mid


def dynamic_midpoint(step: float | np.ndarray, steps: int, t_mid: float, t_max: int) -> float | np.ndarray:
    """Equation 4: from t_max before the first step, through t_mid halfway, to 2 t_mid - t_max at the last."""
    t_start, t_end = t_max, 2 * t_mid - t_max
    return t_start + step / steps * (t_end - t_start)


def expected_steps(strategy: str, steps: int, *, k: float, t_mid: float, t_max: int) -> Expected:
    """Expected numbers of BP and ZO steps of a run. The paper's figure 2 values give 749.6 and 250.4 of 1000."""
    share = zo_share(strategy, steps, k=k, t_mid=t_mid, t_max=t_max)
    steps_zo = float(share.sum())
    return Expected(strategy, steps - steps_zo, steps_zo, _first(share >= 0.1), _first(share >= 0.5))


def zo_share(strategy: str, steps: int, *, k: float, t_mid: float, t_max: int) -> np.ndarray:
    """Mean of p over the timesteps 0 to t_max - 1 at every step, (steps,)."""
    check_schedule(strategy, steps, k, t_mid, t_max)
    rows = max(1, GRID // t_max)
    t = np.arange(t_max)
    shares = [
        zo_probability(
            strategy, np.arange(first, min(first + rows, steps + 1))[:, None], steps, t, k=k, t_mid=t_mid, t_max=t_max
        ).mean(1)  # (rows, t_max) -> (rows,)
        for first in range(1, steps + 1, rows)
    ]
    return np.concatenate(shares)


def check_schedule(strategy: str, steps: int, k: float, t_mid: float, t_max: int) -> None:
    """Raises ValueError unless the schedule is defined. The end point 2 t_mid - t_max may be negative, t_mid not."""
    require("strategy", strategy, f"one of {', '.join(STRATEGIES)}", strategy in STRATEGIES)
    require("steps", steps, "at least 1", 1 <= steps < math.inf)
    require("k", k, "a finite number", math.isfinite(k))
    require("t_max", t_max, "at least 1", 1 <= t_max < math.inf)
    require("t_mid", t_mid, f"between 0 and t_max ({t_max})", 0 <= t_mid <= t_max)


def _sigmoid(slope: float, x: float | np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-slope x)), written so that it saturates: exp would overflow, and tanh(inf) is 1."""
    with np.errstate(over="ignore"):
        return 0.5 * (1 + np.tanh(0.5 * np.multiply(slope, x)))


def _first(passed: np.ndarray) -> int | None:
    return int(passed.argmax()) + 1 if passed.any() else None
