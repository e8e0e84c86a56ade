"""Textual inversion: one token is learnt, and nothing of the network changes.

Method "zo" is Seo et al. 2025 (ZOODiP, arXiv:2503.14868): gradients estimated from forward passes (token_gradient), a
subspace of past tokens (token_subspace), timesteps from the part of the range where text matters. Method "gradient" is
Gal et al. 2022 (arXiv:2208.01618) on the same photos, captions, timesteps and noise. Differs from both in what is kept:
the token with the lowest loss under noise that stays the same, instead of the last one.

Shapes: see token_steps.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .checks import require
from .config import TokenConfig
from .memory import PhaseMeter
from .objective import Network
from .resume import Saves, keeping
from .run import StepLog, StepReport, check_finite
from .token_steps import Draw, GradientRun, TokenExample, TokenLoss, ZeroOrderRun
from .token_vectors import Vectors, packed, unpacked

TRAINER = "Quantize + ZO Textual Inversion"  # as messages name it


class Evaluation(NamedTuple):
    """The loss under fixed noise."""

    step: int  # 0 is before the first
    loss: float


class TokenTrained(NamedTuple):
    """What a run leaves behind."""

    vectors: dict[str, Tensor]  # (n, w) by text encoder, float32, on the CPU: of the best evaluation, or the last
    steps: list[StepReport]
    evaluations: list[Evaluation]
    best_step: int  # after which the token was as it is returned
    is_batched: bool  # the candidates of a step ran as one batch


def train_token(
    network: Network,
    text_encoder: nn.Module,
    examples: Sequence[TokenExample],
    initial: Vectors,
    config: TokenConfig,
    meter: PhaseMeter,
    on_step: Callable[[StepReport], None],
    free_bytes: Callable[[], int],
    saves: Saves | None = None,
    on_ready: Callable[[Callable[[], Vectors]], object] = lambda present: None,
) -> TokenTrained:
    """Fit a token to the examples, from its initial vectors, (n, w) by text encoder. Nothing else changes.

    text_encoder is asked for its memory alone: how it runs is the examples' affair. free_bytes says what memory is left
    on the network's device, saves where the run is kept and what it goes on from. on_ready is given a function that
    gives the token as it is, (1, n, w). Raises ValueError where the network has fewer timesteps than config.t_high,
    RuntimeError when the loss stops being finite or explodes.
    """
    timesteps = network.scheduler.config.num_train_timesteps
    require("t_high", config.t_high, f"at most {timesteps}, the model's timesteps", config.t_high <= timesteps)
    saves = saves or Saves()
    saves.check_model(network.unet)
    loss = TokenLoss(network, text_encoder, {name: vector.shape for name, vector in initial.items()}, meter)
    fixed = fixed_draws(examples, config)
    with loss.phase("inference"), torch.inference_mode():
        loss(fixed[0], packed(initial)[None])
    if config.method == "zo":
        run = ZeroOrderRun(loss, packed(initial), config, loss.has_room_for(config, free_bytes()))
    else:
        run = GradientRun(loss, packed(initial), config)
    on_ready(lambda: unpacked(run.token.detach()[None], loss.shapes))
    log, best = StepLog(TRAINER, config.steps, meter, on_step), _Best(loss, fixed, config, run.token)
    generator = torch.Generator().manual_seed(config.seed)

    def vectors(token: Tensor) -> dict[str, Tensor]:
        return {name: vector[0].clone() for name, vector in unpacked(token[None], loss.shapes).items()}

    def so_far() -> dict[str, Tensor]:
        return vectors(best.token if best.step else run.token.detach().cpu())

    with keeping(saves, log, run.learnt, so_far, generator, run.parts | {"best": best}) as steps:
        best.consider(len(log.history), run.token)  # not yet done by a run that ended right after a step
        while not best.is_stale and (step := next(steps, None)):
            draw = draw_step(examples, config, generator)
            log.add(run.kind, run.step(draw), draw.t, run.rates)
            best.consider(step, run.token)
        best.consider(len(log.history), run.token, is_last=True)
    return TokenTrained(vectors(best.token), log.history, best.evaluations, best.step, run.is_batched)


class _Best:
    """The token to return, and whether it is time to stop."""

    def __init__(self, loss: TokenLoss, draws: Sequence[Draw], config: TokenConfig, token: Tensor):
        self.loss, self.draws, self.config = loss, draws, config
        self.evaluations: list[Evaluation] = []
        self._keep(0, token)

    def consider(self, step: int, token: Tensor, is_last: bool = False) -> None:
        """Evaluate the token if it is time, and keep a copy of it if it is the best so far.

        Raises RuntimeError where its loss is not finite.

        is_last is when no step follows: what is then found is not saved, since a run that goes on would not know it.
        """
        every = self.config.eval_every
        is_done = bool(self.evaluations) and self.evaluations[-1].step == step
        if is_done or (every and step % every and not is_last):
            return
        if every:
            lowest = min((evaluation.loss for evaluation in self.evaluations), default=float("inf"))
            loss = self._evaluate(token)
            told = f"{TRAINER}: the loss under fixed noise became {loss} after step {step}"
            check_finite(loss, told, "learning_rate")
            self.evaluations.append(Evaluation(step, loss))
            if not self.evaluations[-1].loss < lowest:
                return
        self._keep(step, token)

    def _keep(self, step: int, token: Tensor) -> None:
        self.step, self.token = step, token.detach().to("cpu", copy=True)

    def state(self) -> dict[str, Tensor]:
        """The best token, and the evaluations as rows of step and loss; step is that of the best."""
        rows = torch.tensor(self.evaluations, dtype=torch.float64).reshape(-1, 2)
        return {"token": self.token, "step": torch.tensor(self.step), "evaluations": rows}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take in what state() gave."""
        self.token, self.step = state["token"], int(state["step"])
        self.evaluations = [Evaluation(int(step), loss) for step, loss in state["evaluations"].tolist()]

    @property
    def is_stale(self) -> bool:
        """Whether as many evaluations as patience allows have passed since the best."""
        patience = self.config.patience
        return 0 < patience <= sum(evaluation.step > self.step for evaluation in self.evaluations)

    def _evaluate(self, token: Tensor) -> float:
        with self.loss.phase("evaluation"):
            losses = [self.loss.values(draw, token.detach()[None], is_batched=False)[0] for draw in self.draws]
        return sum(losses) / len(losses)


def draw_step(examples: Sequence[TokenExample], config: TokenConfig, generator: torch.Generator) -> Draw:
    """The choices of one step. Every step takes as many draws, so both methods see the same photos and noise."""

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    example = examples[integer(0, len(examples))]
    caption = integer(0, len(example.encoders))
    return Draw(example, caption, integer(config.t_low, config.t_high), integer(0, 2**62), integer(0, 2**62))


def fixed_draws(examples: Sequence[TokenExample], config: TokenConfig) -> list[Draw]:
    """The same for every evaluation: photos and captions in turn, timesteps spread evenly, noise from the seed."""
    generator = torch.Generator().manual_seed(config.seed ^ 1)  # not the noise that is trained on
    draws = []
    for i in range(config.eval_samples):
        example = examples[i % len(examples)]
        t = config.t_low + int((i + 0.5) / config.eval_samples * (config.t_high - config.t_low))
        noise_seed = int(torch.randint(2**62, (), generator=generator))
        draws.append(Draw(example, i % len(example.encoders), t, noise_seed, 0))
    return draws
