"""Error and speed of quantised layers by their type: ours beside ComfyUI's own int8, on layers of Stable Diffusion 1.5.

    python tests/bench/quantize.py [--rounds 20] [--dtype float32]

Weights are Gaussian. The weight's error is relative to the weight, the output's to the plain layer's output; "own" is
the output's error against a plain layer that holds the dequantised weight. Times are the medians of rounds in which all
variants take turns; backward is towards the input alone. "kept" is what a forward pass keeps for the backward pass
beside the layer's own bytes.
"""

import argparse
import copy
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401
from comfy import ops  # noqa: E402
from comfy.quant_ops import QuantizedTensor  # noqa: E402
from pack.trainers.memory import LiveBytes  # noqa: E402
from pack.trainers.quantize import dequantized, quantized  # noqa: E402

CPU = torch.device("cpu")
MIB = 2**20
LAYERS = {  # at 512 px
    "Linear 320 to 320, 4096 tokens": (ops.disable_weight_init.Linear, (320, 320), {}, (1, 4096, 320)),
    "Linear 1280 to 10240, 256 tokens": (ops.disable_weight_init.Linear, (1280, 10240), {}, (1, 256, 1280)),
    "conv 3x3 640 to 640, 32 x 32": (ops.disable_weight_init.Conv2d, (640, 640, 3), {"padding": 1}, (1, 640, 32, 32)),
    "conv 1x1 640 to 640, 32 x 32": (ops.disable_weight_init.Conv2d, (640, 640, 1), {}, (1, 640, 32, 32)),
}
HEAD = (
    "| layer | variant | MiB | weight error | output error | own | forward ms | of plain | backward ms | of plain "
    "| kept MiB |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


class Variant(NamedTuple):
    """A layer and what has to be entered while it runs."""

    name: str
    layer: nn.Module
    weight: Tensor  # dequantised
    nbytes: int


def variants(plain: nn.Module, stack: list) -> list[Variant]:
    """The plain layer first. Contexts that stay open are put on the stack."""
    found = [Variant("plain", plain, plain.weight, plain.weight.nbytes)]
    for name in ("int8", "int4"):
        layer = copy.deepcopy(plain)
        context = quantized([layer], name, CPU, CPU)
        context.__enter__()
        stack.append(context)
        nbytes = layer.weight.nbytes + layer.weight_scale.nbytes
        found.append(Variant(f"ours {name}", layer, dequantized(layer, plain.weight.dtype), nbytes))
    for name, per_channel in (("ComfyUI int8_tensorwise", False), ("the same by channel", True)):
        layer = copy.deepcopy(plain)
        try:
            weight = QuantizedTensor.from_float(plain.weight.detach(), "TensorWiseINT8Layout", per_channel=per_channel)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            nbytes = weight._qdata.nbytes + weight._params.scale.nbytes
            found.append(Variant(name, layer, weight.dequantize(), nbytes))
        except (RuntimeError, ValueError) as error:
            print(f"{name}: {type(error).__name__}: {error}".splitlines()[0])
    return found


def times(found: list[Variant], x: Tensor, rounds: int) -> list[tuple[float, float]]:
    """Median milliseconds of forward and backward by variant, in turns."""
    taken = [([], []) for _ in found]
    gradient = torch.randn_like(found[0].layer(x))
    for _ in range(rounds):
        for variant, (forward, backward) in zip(found, taken, strict=True):
            leaf = x.clone().requires_grad_()
            began = time.process_time()
            y = variant.layer(leaf)
            between = time.process_time()
            y.backward(gradient)
            forward.append(1e3 * (between - began))
            backward.append(1e3 * (time.process_time() - between))
    return [(median(forward), median(backward)) for forward, backward in taken]


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """What is alive after a forward pass beside the output, the input, and the layer itself."""
    leaf = x.clone().requires_grad_()
    plain = [leaf, *(p for p in layer.parameters() if type(p.data) is Tensor)]
    for parameter in layer.parameters():
        if isinstance(parameter, QuantizedTensor):
            plain += [parameter._qdata, parameter._params.scale]
    with LiveBytes(plain) as meter:
        before = meter.live
        y = layer(leaf)
        return meter.live - before - y.nbytes


def relative(got: Tensor, expected: Tensor) -> str:
    return f"{(got.float() - expected.float()).norm() / expected.float().norm():.2%}"


def rows(name: str, rounds: int, dtype: torch.dtype):
    kind, sizes, settings, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = kind(*sizes, **settings, dtype=dtype).requires_grad_(False)
    nn.init.normal_(plain.weight, std=plain.weight[0].numel() ** -0.5)
    nn.init.zeros_(plain.bias)
    x, stack = torch.randn(shape, dtype=dtype), []
    try:
        found = variants(plain, stack)
        expected, taken = plain(x), times(found, x, rounds)
        for variant, (forward, backward) in zip(found, taken, strict=True):
            holder = copy.deepcopy(plain)
            holder.weight = nn.Parameter(variant.weight.to(dtype), requires_grad=False)
            y = variant.layer(x)
            cells = [name, variant.name, f"{variant.nbytes / MIB:.2f}", relative(variant.weight, plain.weight)]
            cells += [relative(y, expected), relative(y, holder(x))]
            cells += [f"{forward:.1f}", f"{forward / taken[0][0]:.2f}", f"{backward:.1f}"]
            cells += [f"{backward / taken[0][1]:.2f}", f"{kept_bytes(variant.layer, x) / MIB:.2f}"]
            yield f"| {' | '.join(cells)} |"
    finally:
        for context in stack:
            context.__exit__(None, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, {arguments.dtype}\n\n{HEAD}", flush=True)
    for name in LAYERS:
        for row in rows(name, arguments.rounds, getattr(torch, arguments.dtype)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
