"""Tensors that leave the training device for as long as a run does not need them there."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def offloaded(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """The modules' tensors are on this device inside the block, and back where they were afterwards, bit for bit."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    tensors = [tensor for tensor in tensors if tensor.device != device]
    homes = [tensor.device for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, home in zip(tensors, homes, strict=True):
            tensor.data = tensor.data.to(home)
