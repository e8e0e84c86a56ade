"""A trained LoRA beside its layers instead of in their weights: one forward pass can have it and the next one not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Adapter(NamedTuple):
    """The LoRA of one layer."""

    down: Tensor  # A, (rank, in)
    up: Tensor  # B times alpha / rank, (out, rank)

    def to(self, device: torch.device) -> "Adapter":
        return Adapter(self.down.to(device), self.up.to(device))


def adapters(lora: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Adapter]:
    """The adapter of every layer that the LoRA has, by module name.

    lora has kohya keys, as Lora.state_dict() gives them; names maps module names to the names in those keys.
    """
    found = {}
    for module, name in names.items():
        if (down := lora.get(f"{name}.lora_down.weight")) is not None:
            scale = lora[f"{name}.alpha"].item() / len(down)
            found[module] = Adapter(down, lora[f"{name}.lora_up.weight"] * scale)
    return found


@contextmanager
def bypassed(unet: nn.Module, layers: Mapping[str, Adapter]) -> Iterator[None]:
    """Linear layers of these names add their adapter's output to their own inside the block, as in training.

    Adapters are on the device on which the layers compute. No weight is touched.
    """
    handles = []
    try:
        for name, adapter in layers.items():
            handles.append(unet.get_submodule(name).register_forward_hook(_adding(adapter)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(adapter: Adapter):
    def hook(_, arguments: tuple[Tensor], result: Tensor) -> Tensor:
        x = arguments[0].to(adapter.down.dtype)
        return (result + linear(linear(x, adapter.down), adapter.up)).to(result.dtype)

    return hook
