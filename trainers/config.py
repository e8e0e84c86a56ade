"""Settings of each trainer: one frozen dataclass, checked when it is made.

The node schemas repeat names and defaults; tests/test_schema.py holds them equal. Where a default was measured, the
command that measured it stands beside it.
"""

import math
from dataclasses import dataclass

from .checks import require
from .lora import TARGETS
from .schedule import STRATEGIES


@dataclass(frozen=True)
class SelectiveConfig:
    """Settings of selective BP-low / ZO-high optimisation (Choi et al. 2025, arXiv:2507.10029)."""

    steps: int = 1000  # parameter updates (i_max); the paper's figure 2
    rank: int = 4  # of the LoRA; the paper's section 3.1
    learning_rate: float = 1e-4  # eta, of AdamW in BP steps
    zo_learning_rate: float = 1e-2  # alpha, of plain SGD in ZO steps
    zo_epsilon: float = 1e-2  # standard deviation of the perturbation, in units of the LoRA factors
    zo_perturbations: int = 4  # N, each costs two forward passes
    low_res_ratio: float = 0.5  # r, side of the BP image / side of the photo
    k: float = 0.05  # steepness of the choice in 1 / timesteps; the paper's figure 2
    t_mid: int = 750  # midpoint of the choice in timesteps; the paper's figure 2
    strategy: str = "dtap"
    seed: int = 0  # of LoRA init, photo order, timesteps, noise, choice and perturbations
    alpha: float = 0.0  # LoRA scale is alpha / rank; 0 stands for alpha = rank
    target_modules: str = "attention"
    batch_size: int = 1  # photos per step
    weight_decay: float = 1e-2  # of AdamW, its default
    max_grad_norm: float = 1.0  # gradient clipping in BP steps; 0 turns it off
    min_snr_gamma: float = 0.0  # min-SNR loss weights (Hang et al. 2023, arXiv:2303.09556); 0 turns them off
    gradient_checkpointing: bool = False  # recompute each block's activations: less memory, about a third slower

    def __post_init__(self):
        for name in ("steps", "rank", "zo_perturbations", "batch_size"):
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("learning_rate", "zo_learning_rate", "zo_epsilon"):
            require(name, getattr(self, name), "a positive number", 0 < getattr(self, name) < math.inf)
        for name in ("alpha", "weight_decay", "max_grad_norm", "min_snr_gamma", "t_mid"):
            require(name, getattr(self, name), "zero or a positive number", 0 <= getattr(self, name) < math.inf)
        require("low_res_ratio", self.low_res_ratio, "between 0.25 and 1", 0.25 <= self.low_res_ratio <= 1)
        require("k", self.k, "a finite number", math.isfinite(self.k))
        require("seed", self.seed, "between 0 and 2**64 - 1", 0 <= self.seed < 2**64)
        require("strategy", self.strategy, f"one of {', '.join(STRATEGIES)}", self.strategy in STRATEGIES)
        require("target_modules", self.target_modules, f"one of {', '.join(TARGETS)}", self.target_modules in TARGETS)

    @property
    def lora_alpha(self) -> float:
        """alpha as the LoRA uses it, 0 resolved to the rank."""
        return self.alpha or float(self.rank)
