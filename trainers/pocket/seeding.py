"""New modules with weights that are a function of a seed, made beside the global generator of random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, what torch draws depends on the seed alone; afterwards the global generator is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
