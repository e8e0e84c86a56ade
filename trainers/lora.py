"""Low-rank adapters on a U-Net that is not copied: injected by peft, trained in float32, taken out again.

Hu et al. 2021 (arXiv:2106.09685): y = W x + (alpha / rank) B A x, A random and B zero at first. Files carry kohya
keys (`lora_unet_..._to_q.lora_down.weight`), the one form that ComfyUI, diffusers and A1111 all read.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

ADAPTER = "edgetune"

# Regular expressions over module names, as peft matches them (whole name).
TARGETS = {
    "attention": r".*\.attn[12]\.to_(q|k|v|out\.0)",
    "cross-attention": r".*\.attn2\.to_(q|k|v|out\.0)",
    "attention and feed-forward": r".*\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))",
}


class Lora:
    """The adapters that are in a U-Net right now."""

    def __init__(self, unet: nn.Module, alpha: float):
        self.alpha = alpha
        self.layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, LoraLayer)}

    def parameters(self) -> list[nn.Parameter]:
        """The factors, float32, in the order of the U-Net's modules: A (rank, in) before B (out, rank)."""
        return [factor for layer in self.layers.values() for factor in _factors(layer)]

    def state_dict(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Copies of the factors on the CPU under kohya keys; names maps module names to exported names."""
        state = {}
        for name, layer in self.layers.items():
            down, up = _factors(layer)
            state[f"{names[name]}.lora_down.weight"] = _exported(down)
            state[f"{names[name]}.lora_up.weight"] = _exported(up)
            state[f"{names[name]}.alpha"] = torch.tensor(float(self.alpha))
        return state


@contextmanager
def injected(unet: nn.Module, rank: int, alpha: float, target_modules: str, seed: int) -> Iterator[Lora]:
    """A fresh LoRA on the U-Net inside the block; afterwards the U-Net's modules are the very ones from before.

    target_modules is a key of TARGETS. The random A comes from seed alone; the global generators are left as found.
    Raises ValueError when the U-Net has no such module.
    """
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS[target_modules], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):  # peft draws an initialisation that _initialise replaces
        tuner = LoraModel(unet, settings, ADAPTER)
    try:
        lora = Lora(unet, alpha)
        for layer in lora.layers.values():
            layer.cast_input_dtype_enabled = False  # or peft hands _Down a float32 copy of the layer's input
            layer.lora_A[ADAPTER] = _Down(layer.lora_A[ADAPTER].weight)
        _initialise(lora, seed)
        yield lora
    finally:
        tuner.unload()
        vars(unet).pop("peft_config", None)


class _Down(nn.Module):
    """A x in float32. In a 16-bit network q, k and v share x as it came, where peft keeps a float32 copy for each."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., rank)."""
        return _Product.apply(x, self.weight)


class _Product(torch.autograd.Function):
    """x W^T in W's dtype, keeping x for the backward pass in its own."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x.to(weight.dtype), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        rows = x.to(weight.dtype).flatten(0, -2)
        return (
            (gradient @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None,
            gradient.flatten(0, -2).T @ rows,
        )


def _initialise(lora: Lora, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in lora.layers.values():
        down, up = _factors(layer)
        values = nn.init.kaiming_uniform_(torch.empty(down.shape), a=math.sqrt(5), generator=generator)
        down.data = values.to(down.device)
        up.data = torch.zeros(up.shape, device=up.device)


def _factors(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _exported(factor: Tensor) -> Tensor:
    return factor.detach().to("cpu", copy=True).contiguous()
