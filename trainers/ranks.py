"""Forward passes of one step divided over the processes (ranks) of torch.distributed. Only their losses are exchanged.

All ranks train the same model with the same settings and seeds, and every one makes every update: given the losses
alone, it can, since a perturbation is a function of its seed. Without a process group all passes are made here, with
the same bits; MeZO (arXiv:2305.17333, section 2.1) has the idea of keeping seeds and slopes alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch import distributed as dist

Task = Callable[[], Sequence[float]]
_is_alone = ContextVar("is_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """What runs inside the block is done by this process for itself: a plan, of which the others know nothing."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def rank_count() -> int:
    """1 where no process group was set up, and inside alone()."""
    if _is_alone.get() or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def over_ranks(tasks: Sequence[Task]) -> list[list[float]]:
    """What every task returns, in their order and to the bit, on all ranks; each task is done by one of them.

    Every rank has to call this with tasks alike, and each task returns as many numbers. What a task raises is raised
    where it ran, and RuntimeError on the other ranks, which would else wait for it.
    """
    if rank_count() == 1:
        return [list(task()) for task in tasks]
    ranks, rank = rank_count(), dist.get_rank()
    try:
        own = [list(task()) for task in tasks[rank::ranks]]
    except BaseException:
        _exchanged([], -1)
        raise
    found = _exchanged(own, max(map(len, own), default=0))
    return [found[i % ranks][i // ranks] for i in range(len(tasks))]


@torch.no_grad()
def as_on_the_first(tensors: Sequence[Tensor]) -> None:
    """Give every rank the values of rank 0, in place: on a GPU two backward passes need not have the same bits."""
    if rank_count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _exchanged(own: list[list[float]], width: int) -> list[list[list[float]]]:
    """By rank, its rows of so many numbers; a width of -1 says that this rank has failed."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"

    def gathered(tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(rank_count())]
        dist.all_gather(parts, tensor)
        return [part.cpu() for part in parts]

    shapes = [part.tolist() for part in gathered(torch.tensor([len(own), width], device=device))]
    failed = [rank for rank, (_, columns) in enumerate(shapes) if columns < 0]
    if failed:
        if width < 0:
            return []
        raise RuntimeError(f"Rank {failed[0]} of {len(shapes)} stopped in this step; its own log says why")
    rows, columns = (max(sizes) for sizes in zip(*shapes, strict=True))
    table = torch.zeros(rows, columns, dtype=torch.float64)
    for row, numbers in zip(table, own, strict=False):
        row.copy_(torch.tensor(numbers, dtype=torch.float64))
    return [part[:count].tolist() for part, (count, _) in zip(gathered(table.to(device)), shapes, strict=True)]
