"""Settings of each trainer: one frozen dataclass, checked when it is made.

The node schemas repeat names and defaults; tests/test_schema.py holds them equal. Where a default was measured, the
command that measured it stands beside it.
"""

import math
from dataclasses import asdict, dataclass

from .activations import DTYPES
from .checks import require
from .hollow_forward import MODES
from .lora import TARGETS
from .quantize import QUANTIZATIONS
from .schedule import DYNAMIC, STRATEGIES
from .token_gradient import DIFFERENCES
from .token_prompts import CAPTION_SOURCES, check_token_name
from .token_subspace import SUBSPACES

OFF = "off"
PRESETS = {OFF: 0.0, "2 GB": 2.0, "4 GB": 4.0, "6 GB": 6.0, "8 GB": 8.0, "12 GB": 12.0}  # memory to make the best of
SAMPLING = ("plain", "two-path")  # what the hollowed trainer's MODEL output does with its LoRA
TOKEN_CHOICES = {
    "method": ("zo", "gradient"),
    "difference": DIFFERENCES,
    "candidates": ("auto", "batch", "one_by_one"),
    "subspace": SUBSPACES,
    "quantization": QUANTIZATIONS,
    "captions": CAPTION_SOURCES,
    "preset": tuple(PRESETS),
}


class _Resumable:
    """Settings of a run that can be gone on from."""

    @property
    def fixed_by_steps(self) -> dict[str, object]:
        """What depends on the number of steps, by name; a run goes on to more steps where nothing does."""
        return {}

    def facts(self) -> dict[str, object]:
        """What has to be the same to go on from a run, by name."""
        settings = asdict(self)
        del settings["steps"]
        return settings | self.fixed_by_steps


class _LoraTraining(_Resumable):
    """What the settings of every LoRA trainer have in common: checks, and alpha. The fields are each one's own."""

    def __post_init__(self):
        for name in ("steps", "rank", "batch_size"):
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        require("learning_rate", self.learning_rate, "a positive number", 0 < self.learning_rate < math.inf)
        for name in ("alpha", "weight_decay", "max_grad_norm", "min_snr_gamma", "budget_gb"):
            require(name, getattr(self, name), "zero or a positive number", 0 <= getattr(self, name) < math.inf)
        require("seed", self.seed, "between 0 and 2**64 - 1", 0 <= self.seed < 2**64)
        for name, choices in (("target_modules", TARGETS), ("quantization", QUANTIZATIONS), ("preset", PRESETS)):
            require(name, getattr(self, name), f"one of {', '.join(choices)}", getattr(self, name) in choices)

    @property
    def lora_alpha(self) -> float:
        """alpha as the LoRA uses it, 0 resolved to the rank."""
        return self.alpha or float(self.rank)


@dataclass(frozen=True)
class SelectiveConfig(_LoraTraining):
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
    quantization: str = "none"  # of the network's own weights while the run lasts, quantize.py
    budget_gb: float = 0.0  # memory the run may take, in units of 2**30 bytes; 0 sets no limit
    preset: str = OFF  # one of PRESETS; presets.py

    @property
    def fixed_by_steps(self) -> dict[str, object]:
        return {f"steps, over which {self.strategy} spreads": self.steps} if self.strategy in DYNAMIC else {}

    def __post_init__(self):
        super().__post_init__()
        require("zo_perturbations", self.zo_perturbations, "at least 1", self.zo_perturbations >= 1)
        for name in ("zo_learning_rate", "zo_epsilon"):
            require(name, getattr(self, name), "a positive number", 0 < getattr(self, name) < math.inf)
        require("t_mid", self.t_mid, "zero or a positive number", 0 <= self.t_mid < math.inf)
        require("low_res_ratio", self.low_res_ratio, "between 0.25 and 1", 0.25 <= self.low_res_ratio <= 1)
        require("k", self.k, "a finite number", math.isfinite(self.k))
        require("strategy", self.strategy, f"one of {', '.join(STRATEGIES)}", self.strategy in STRATEGIES)


@dataclass(frozen=True)
class HollowConfig(_LoraTraining):
    """Settings of a LoRA trained on a U-Net without its centre (Cho et al. 2024, arXiv:2411.01179)."""

    steps: int = 1000  # parameter updates; the paper's number is not known
    rank: int = 128  # of the LoRA; the paper's headline
    learning_rate: float = 1e-4  # of AdamW; not known of the paper, that of DreamBooth LoRA recipes
    hollow_fraction: float = 0.39  # share of the U-Net's parameters that leaves; up to 0.392 cost the paper no quality
    cache_samples: int = 1000  # noised photos whose centre is stored; with as many steps, each is seen once
    seed: int = 0  # of LoRA init, photos, timesteps, noise and order
    alpha: float = 0.0  # LoRA scale is alpha / rank; 0 stands for alpha = rank
    target_modules: str = "attention"  # the paper's: q, k, v and out of self- and cross-attention
    batch_size: int = 1  # noised photos per step
    weight_decay: float = 1e-2  # of AdamW, its default
    max_grad_norm: float = 1.0  # gradient clipping; 0 turns it off
    min_snr_gamma: float = 0.0  # min-SNR loss weights (Hang et al. 2023, arXiv:2303.09556); 0 turns them off
    gradient_checkpointing: bool = False  # recompute each layer's activations: less memory, slower
    mode: str = "absolute"  # what stands in for the centre, hollow_forward.py; the paper's
    sampling: str = "plain"  # one of SAMPLING
    cache_dtype: str = "float16"  # of the stored activations
    quantization: str = "none"  # of the network's own weights while the run lasts, quantize.py
    budget_gb: float = 0.0  # memory the run may take, in units of 2**30 bytes; 0 sets no limit
    preset: str = OFF  # one of PRESETS; presets.py

    def __post_init__(self):
        super().__post_init__()
        require("hollow_fraction", self.hollow_fraction, "above 0 and below 1", 0 < self.hollow_fraction < 1)
        require("cache_samples", self.cache_samples, "at least 1", self.cache_samples >= 1)
        for name, choices in (("mode", MODES), ("sampling", SAMPLING), ("cache_dtype", DTYPES)):
            require(name, getattr(self, name), f"one of {', '.join(choices)}", getattr(self, name) in choices)

    @property
    def fixed_by_steps(self) -> dict[str, object]:
        return {"stored samples (cache_samples, or steps times batch_size if fewer)": self.samples_needed}

    @property
    def samples_needed(self) -> int:
        """Noised photos to store: no more than the run has a use for."""
        return min(self.cache_samples, self.steps * self.batch_size)


@dataclass(frozen=True)
class TokenConfig(_Resumable):
    """Settings of textual inversion, by forward passes alone (Seo et al. 2025, arXiv:2503.14868) or by gradients."""

    token: str = "my_subject"  # its name; prompts call it embedding:my_subject
    initial_word: str = "dog"  # whose vector the token starts as; the mean, if it is several
    steps: int = 30_000  # updates of the token, unless it stops early; the paper's
    learning_rate: float = 5e-3  # of Adam; the paper's, while its script says 1e-2
    quantization: str = "int8"  # of both networks' weights while steps run; the paper's
    zo_perturbations: int = 2  # n; a step takes n + 1 forward passes, or 2 n with central differences; the paper's
    zo_epsilon: float = 1e-3  # mu, standard deviation of a perturbation, in units of the token; the paper's
    t_low: int = 500  # timesteps are drawn from t_low to t_high - 1; the paper's
    t_high: int = 900
    seed: int = 0  # of photos, captions, timesteps, noise and perturbations
    method: str = "zo"  # or "gradient", textual inversion as Gal et al. 2022 (arXiv:2208.01618) have it
    difference: str = "forward"  # the paper's
    candidates: str = "auto"  # the tokens of a step as one batch, or one by one to save memory
    subspace: str = "published"  # one of token_subspace.SUBSPACES
    subspace_size: int = 128  # tau, past tokens that span it, and steps until it is found anew; the paper's
    subspace_nu: float = 1e-3  # share of the variance that is given up; the paper's
    subspace_outside: float = 0.5  # of "confined": factor on what lies outside the span
    num_vectors: int = 1  # that stand for the token one after another
    captions: str = "templates"  # one of token_prompts.CAPTION_SOURCES
    replaced_words: str = ""  # which the token takes the place of in the photos' captions; empty: initial_word
    weight_decay: float = 1e-2  # of AdamW, method "gradient"
    eval_every: int = 100  # steps between losses under fixed noise; 0 turns them off, and the last token is kept
    eval_samples: int = 8  # forward passes of each such loss
    patience: int = 20  # such losses in a row that are no new best, then the run stops; 0 never stops
    budget_gb: float = 0.0  # memory the run may take, in units of 2**30 bytes; 0 sets no limit
    preset: str = OFF  # one of PRESETS; presets.py

    def __post_init__(self):
        check_token_name(self.token)
        for name in ("steps", "zo_perturbations", "num_vectors", "eval_samples"):
            require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("learning_rate", "zo_epsilon"):
            require(name, getattr(self, name), "a positive number", 0 < getattr(self, name) < math.inf)
        for name in ("weight_decay", "eval_every", "patience", "budget_gb"):
            require(name, getattr(self, name), "zero or a positive number", 0 <= getattr(self, name) < math.inf)
        require("seed", self.seed, "between 0 and 2**64 - 1", 0 <= self.seed < 2**64)
        require("t_low", self.t_low, f"0 or more and below t_high, {self.t_high}", 0 <= self.t_low < self.t_high)
        require("subspace_size", self.subspace_size, "at least 2", self.subspace_size >= 2)
        require("subspace_nu", self.subspace_nu, "above 0 and below 1", 0 < self.subspace_nu < 1)
        require("subspace_outside", self.subspace_outside, "between 0 and 1", 0 <= self.subspace_outside <= 1)
        for name, choices in TOKEN_CHOICES.items():
            require(name, getattr(self, name), f"one of {', '.join(choices)}", getattr(self, name) in choices)
