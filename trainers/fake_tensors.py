"""A network without bytes: what a run will take is counted by running the trainer itself, and nothing is taken.

Inside faked() the U-Net's weights, and all tensors made of them, are torch's fake tensors (FakeTensorMode): shapes,
strides, dtypes and storages that know their size and hold nothing. LiveBytes counts them as it counts others. Works
for a U-Net on any device and for one that never had storage (torch's meta device); takes seconds, not memory.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .objective import Network

CPU = torch.device("cpu")
READING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default}  # a number off a tensor


@contextmanager
def faked(network: Network, *others: nn.Module) -> Iterator[Network]:
    """The network, and other modules, to run on fake tensors inside the block; afterwards they have their own again.

    The fake ones are on the CPU wherever the real ones are: its attention keeps the same tensors for the backward pass
    as the GPU's. Numbers that are read off a tensor whose value is not known, such as the loss, are 0.
    """
    with ExitStack() as stack:
        stack.enter_context(_fake_mode())
        stack.enter_context(_UnknownIsZero())
        for module in (network.unet, *others):
            stack.enter_context(_replaced_tensors(module, _like))
        # A DDPMScheduler keeps what it last moved to a device, which in here is a fake tensor.
        yield network._replace(scheduler=copy(network.scheduler), device=CPU)


def _fake_mode() -> FakeTensorMode:
    """Small tensors made outside, photos and schedules, are taken as they are."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # It would remember its tensors weakly, and Module.to(), which peft calls, refuses parameters with weak references.
    mode.fake_tensor_converter.set_tensor_memo = lambda tensor, fake: None
    return mode


class _UnknownIsZero(TorchDispatchMode):
    """Lets training loops read numbers off tensors. Of some, as AdamW's count of steps, fake tensors know the value."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        try:
            return function(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if function not in READING:
                raise
            return 0.0 if args[0].is_floating_point() else 0


@contextmanager
def _replaced_tensors(unet: nn.Module, make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Every parameter and buffer is what make gives for it inside the block, its own afterwards."""
    own = [(tensors, dict(tensors)) for module in unet.modules() for tensors in (module._parameters, module._buffers)]
    made = {id(tensor): make(tensor) for _, found in own for tensor in found.values() if tensor is not None}
    try:
        for tensors, found in own:
            tensors.update({name: made[id(tensor)] for name, tensor in found.items() if tensor is not None})
        yield
    finally:
        for tensors, found in own:
            tensors.update(found)


def _like(tensor: Tensor) -> Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CPU)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
