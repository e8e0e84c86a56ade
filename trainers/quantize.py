"""Layers that hold 8 or 4 bits a weight for as long as a run lasts, and their very own weights afterwards.

Every nn.Linear and nn.Conv2d is quantised symmetrically and round-to-nearest: int8 with one scale for each output
channel, int4 two to a byte with one scale for every GROUP weights of a channel, the group's largest weight being -8 of
them. Embeddings, norms and biases keep what they have, and so do weights that have 8 bits already, such as float8. A
layer computes with its dequantised weight in the dtype of its input. That weight lives one layer long, in the forward
and again in the backward pass, which is exact with respect to it.

Why our own layers (tests/bench/quantize.py has the figures): torchao's weight-only int8 and int4 leave convolutions
alone, over half of SD 1.5. ComfyUI's int8_tensorwise has one scale for a whole weight, which is off by over 1%; a
Linear with it also quantises its input, so that its output is not that of its weight and its gradient is not that of
its output, and keeps a dequantised weight for the backward pass. It has no 4 bits that every layer's width fits.

quantized() goes around all else: a LoRA is injected, a centre hollowed out and moved, layers checkpointed, tensors
faked inside it. It may also stand inside faked(), where no arithmetic runs.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear, pad
from torch.nn.grad import conv2d_input

from .checks import require
from .offload import offloaded

QUANTIZATIONS = ("none", "int8", "int4")
GROUP = 32  # weights of a channel that share a scale in int4
SCALE = "weight_scale"  # a layer's parameter beside "weight", which holds the codes
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@contextmanager
def quantized(
    modules: Iterable[nn.Module], quantization: str, device: torch.device, offload_device: torch.device
) -> Iterator[int]:
    """Quantise the modules' layers in place inside the block; yields how many bytes of weights wait meanwhile.

    The layers hold codes and scales on the device, where all other tensors of the modules are too; the original
    weights are on the offload device, and nowhere else. Afterwards every module has the Parameters and buffers that it
    had, where it had them, bit for bit, also if anything raises while layers are still being quantised. To be entered
    outside inference mode; the tensors inside are fit for autograd, though frozen. "none" changes nothing, and a layer
    that is quantised already stays as it is.
    """
    require("quantization", quantization, f"one of {', '.join(QUANTIZATIONS)}", quantization in QUANTIZATIONS)
    modules = list(modules)
    parts = (
        [] if quantization == "none" else list(dict.fromkeys(part for module in modules for part in module.modules()))
    )
    own = [(part, part._parameters.copy(), part._buffers.copy()) for part in parts]
    layers = [part for part in parts if isinstance(part, nn.Linear | nn.Conv2d) and not is_quantized(part)]
    forwards = [(layer, vars(layer).get("forward")) for layer in layers]
    waiting = sum(layer.weight.nbytes for layer in layers if layer.weight.itemsize > 1)
    with offloaded(modules if parts else [], offload_device):
        try:
            for layer in layers:
                _quantize(layer, quantization, device)
            for part in parts:
                _bring(part, device)
            yield waiting
        finally:
            for part, parameters, buffers in own:
                for tensors, before in ((part._parameters, parameters), (part._buffers, buffers)):
                    tensors.clear()
                    tensors.update(before)
            for layer, forward in forwards:
                vars(layer).pop("forward", None)
                if forward is not None:
                    layer.forward = forward


def is_quantized(layer: nn.Module) -> bool:
    """Whether the layer's weight are codes right now."""
    return SCALE in layer._parameters


def dequantized(layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """The weight that a quantised layer computes with."""
    return _weight(layer.weight, layer.weight_scale, _shape(layer), dtype)


def parameter_count(module: nn.Module) -> int:
    """Numbers in the module's parameters, the same whether its layers are quantised or not."""
    count = 0
    for part in module.modules():
        if is_quantized(part):
            count += math.prod(_shape(part)) + (0 if part.bias is None else part.bias.numel())
        else:
            count += sum(parameter.numel() for parameter in part.parameters(recurse=False))
    return count


def _shape(layer: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """Of the weight, which packed codes do not have."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size


@torch.no_grad()
def _quantize(layer: nn.Linear | nn.Conv2d, quantization: str, device: torch.device) -> None:
    weight = layer.weight.detach().to(device)
    if weight.itemsize == 1:
        codes, scale = weight.clone(), torch.ones((), device=device)
    else:
        codes, scale = (_int8 if quantization == "int8" else _int4)(weight)
    layer._parameters["weight"] = nn.Parameter(codes, requires_grad=False)
    layer._parameters[SCALE] = nn.Parameter(scale, requires_grad=False)
    layer.forward = partial(_run_linear if isinstance(layer, nn.Linear) else _run_conv2d, layer)


def _bring(part: nn.Module, device: torch.device) -> None:
    """Tensors that are elsewhere, or made under inference mode, are replaced by copies."""
    for tensors in (part._parameters, part._buffers):
        for name, tensor in tensors.items():
            if tensor is not None and (tensor.device != device or tensor.is_inference()):
                copy = tensor.detach().to(device, copy=True)
                tensors[name] = nn.Parameter(copy, tensor.requires_grad) if tensors is part._parameters else copy


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in the weight's shape and scales (out, 1, ...)."""
    rows = weight.float().flatten(1)
    scale = _scale(rows.abs().amax(1, keepdim=True) / 127, weight.dtype)
    codes = (rows / scale.float()).round_().clamp_(-127, 127).to(torch.int8)
    return codes.view(weight.shape), scale.view(-1, *[1] * (weight.ndim - 1))


def _int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes 0 to 15 for -8 to 7, (out, in / 2), and scales (out, in / GROUP, 1); in is filled up to whole groups."""
    rows = weight.float().flatten(1)
    groups = pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))  # (out, in) -> (out, in / GROUP, GROUP)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = _scale(largest / -8, weight.dtype)
    codes = (groups / scale.float()).round_().clamp_(-8, 7).add_(8).to(torch.uint8).flatten(1)
    low, high = codes.chunk(2, dim=1)
    return low | high << 4, scale


def _scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to what it is kept in, before any weight is divided by it. Nothing is divided by 0."""
    scale = scale.to(dtype if dtype in SCALE_DTYPES else torch.float32)
    return torch.where(scale == 0, 1.0, scale)


def _weight(codes: Tensor, scale: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if codes.dtype is not torch.uint8:
        return codes.to(dtype).mul_(scale.to(dtype))
    out, half = codes.shape
    values = torch.empty(out, 2 * half, dtype=dtype, device=codes.device)
    values[:, :half], values[:, half:] = codes & 15, codes >> 4
    values.view(out, -1, GROUP).sub_(8).mul_(scale.to(dtype))
    return values[:, : math.prod(shape[1:])].reshape(shape)


def _run_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return _Linear.apply(x, layer.weight, layer.weight_scale, _bias(layer, x), _shape(layer))


def _run_conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor:
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x, padding = pad(x, layer._reversed_padding_repeated_twice, mode), 0
    bias, settings = _bias(layer, x), (layer.stride, padding, layer.dilation, layer.groups)
    return _Conv2d.apply(x, layer.weight, layer.weight_scale, bias, _shape(layer), settings)


def _bias(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor | None:
    return None if layer.bias is None else layer.bias.to(x.dtype)


class _Linear(torch.autograd.Function):
    """x W^T + b, keeping codes and scales for the backward pass. W and b are frozen."""

    @staticmethod
    def forward(ctx, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.shape = shape
        return linear(x, _weight(codes, scale, shape, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient @ _weight(*ctx.saved_tensors, ctx.shape, gradient.dtype), None, None, None, None


class _Conv2d(torch.autograd.Function):
    """The same for a convolution; settings are its stride, padding, dilation and groups."""

    @staticmethod
    def forward(
        ctx, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, shape: tuple[int, ...], settings: tuple
    ) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.shape, ctx.settings, ctx.input_shape = shape, settings, x.shape
        return conv2d(x, _weight(codes, scale, shape, x.dtype), bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        weight = _weight(*ctx.saved_tensors, ctx.shape, gradient.dtype)
        return conv2d_input(ctx.input_shape, weight, gradient, *ctx.settings), None, None, None, None, None
