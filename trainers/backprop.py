"""One step of backpropagation, and per-block gradient checkpointing that leaves no trace."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def backprop_step(
    loss: Callable[[], Tensor],
    params: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    max_grad_norm: float,
) -> float:
    """One optimizer step on a scalar loss; returns the loss. Gradients live only inside the step.

    Where the loss is not finite nothing changes. The scaler keeps float16 gradients from underflowing; disabled, it
    does nothing. max_grad_norm 0 turns clipping off.
    """
    try:
        value = loss()
        scaler.scale(value).backward()
        if max_grad_norm > 0:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(params, max_grad_norm)
        number = value.item()
        if math.isfinite(number):
            scaler.step(optimizer)
            scaler.update()
    finally:
        optimizer.zero_grad(set_to_none=True)
    return number


@contextmanager
def checkpointed(unet: nn.Module) -> Iterator[None]:
    """Every layer of the U-Net's blocks recomputes its activations in the backward pass, inside the block.

    ComfyUI iterates over the layers of a block rather than calling the block, so the layers are what is wrapped.
    """
    found = [(layer, vars(layer).get("forward")) for block in _blocks(unet) for layer in block]
    try:
        for layer, _ in found:
            layer.forward = _recomputed(layer.forward)
        yield
    finally:
        for layer, forward in found:
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _blocks(unet: nn.Module) -> list[nn.Module]:
    middle = [unet.middle_block] if unet.middle_block is not None else []
    return [*unet.input_blocks, *middle, *unet.output_blocks]


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args, **kwargs):
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
