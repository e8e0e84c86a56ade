"""Running out of memory: how it is told from other errors, and what a user can do about it."""

import logging

import torch

from .budget import LESS, Config, Planner, suggestion
from .plan import GIB, Plan

logger = logging.getLogger(__name__)
WORDS = ("not enough memory", "out of memory", "can't allocate memory", "failed to allocate")  # of allocators


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up. torch's for the CPU raises a bare RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def explanation(error: BaseException, config: Config, plan: Plan, plan_of: Planner) -> torch.OutOfMemoryError:
    """What to raise for it: what was planned, what was free, and the cheapest settings that need less.

    Of torch's type, so that ComfyUI unloads its models, as it does when its own nodes run out of memory.
    """
    free = "" if plan.free_bytes is None else f" {plan.free_bytes / GIB:.2f} GB were free when it was planned."
    less = _less(config, plan, plan_of)
    advice = f"Try: {less}." if less else "A smaller rank, batch_size or resolution needs less."
    return torch.OutOfMemoryError(
        f"{plan.method}: out of memory. {plan.needed_bytes / GIB:.2f} GB were planned for this run.{free} {advice} "
        f"With budget_gb set, the plan chooses by itself. The model you put in is unchanged.\n{error}"
    )


def _less(config: Config, plan: Plan, plan_of: Planner) -> str:
    """The suggestion; a network that cannot take the smaller images it plans with hides nothing of what happened."""
    try:
        return suggestion(config, plan_of, round(LESS * plan.needed_bytes))
    except (RuntimeError, ValueError) as error:
        logger.warning("No plan of a smaller run: %s", error)
        return ""
