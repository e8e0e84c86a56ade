"""Quantised layers against plain layers that hold the dequantised weight, and what is left when they are gone."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from pack.nodes import host
from pack.trainers.backprop import checkpointed
from pack.trainers.fake_tensors import faked
from pack.trainers.hollow_cuts import cuts
from pack.trainers.lora import injected
from pack.trainers.memory import LiveBytes
from pack.trainers.objective import collate, denoising_loss
from pack.trainers.quantize import GROUP, dequantized, is_quantized, quantized
from test_selective import example
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
BITS = {"int8": 8, "int4": 4}
ERROR = {"int8": 0.01, "int4": 0.1}  # relative, of Gaussian weights: 0.6-0.9% and 8.6%
LAYERS = {
    "linear": lambda: (nn.Linear(96, 40), (2, 7, 96)),
    "linear without bias, odd": lambda: (nn.Linear(37, 5, bias=False), (3, 37)),
    "conv 3x3": lambda: (nn.Conv2d(16, 24, 3, padding=1), (2, 16, 9, 8)),
    "conv 1x1": lambda: (nn.Conv2d(64, 32, 1), (2, 64, 5, 5)),
    "conv stride 2": lambda: (nn.Conv2d(16, 16, 3, stride=2, padding=1), (2, 16, 9, 10)),
    "conv dilated, in groups": lambda: (nn.Conv2d(16, 24, 3, dilation=2, padding=2, groups=4), (1, 16, 9, 9)),
    "conv depthwise": lambda: (nn.Conv2d(16, 16, 3, padding=(0, 2), groups=16, bias=False), (1, 16, 6, 5)),
    "conv same": lambda: (nn.Conv2d(4, 6, (4, 3), padding="same"), (1, 4, 6, 7)),
    "conv circular": lambda: (nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), (1, 8, 6, 7)),
}
both = pytest.mark.parametrize("quantization", BITS)
every_layer = pytest.mark.parametrize("layer", LAYERS)


class Stop(BaseException):
    """As ComfyUI's InterruptProcessingException, no Exception."""


def make(layer: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    module, shape = LAYERS[layer]()
    nn.init.normal_(module.weight)
    return module.to(dtype).requires_grad_(False), torch.randn(shape, dtype=dtype)


def network() -> nn.Sequential:
    """With everything that stays as it is."""
    torch.manual_seed(0)
    parts = [nn.Embedding(10, 32), nn.LayerNorm(32), nn.Linear(32, 64), nn.Unflatten(1, (64, 1, 1))]
    parts += [nn.Conv2d(64, 32, 1), nn.BatchNorm2d(32)]
    return nn.Sequential(*parts).eval().requires_grad_(False)


def within(module: nn.Module, quantization: str):
    return quantized([module], quantization, CPU, CPU)


def tensors(module: nn.Module) -> list[tuple]:
    """All there is, by identity and in bits."""
    found = [*module.named_parameters(), *module.named_buffers()]
    attributes = [sorted(vars(part)) for part in module.modules()]
    return [*((name, id(tensor), tensor.clone(), tensor.is_inference()) for name, tensor in found), attributes]


def assert_same(found: list[tuple], before: list[tuple]) -> None:
    assert len(found) == len(before) and found[-1] == before[-1]
    for (*one, bits, inference), (*other, expected, was) in zip(found[:-1], before[:-1], strict=True):
        assert one == other and torch.equal(bits, expected) and inference == was


def run(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes out, and the gradient of something that depends on all of it."""
    x = x.clone().requires_grad_()
    y = module(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return y.detach(), x.grad


@both
@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_and_gradient_are_those_of_the_dequantised_weight(layer, quantization, dtype):
    module, x = make(layer, dtype)
    with within(module, quantization):
        weight = dequantized(module, dtype)
        got = run(module, x)
    assert not torch.equal(weight, module.weight)
    module.weight.copy_(weight)
    tolerance = dict(rtol=1e-6, atol=1e-6) if dtype is torch.float32 else {}
    torch.testing.assert_close(got, run(module, x), **tolerance)


@both
@every_layer
def test_the_error_of_a_layer_is_small(layer, quantization):
    """And the codes of its weight take 8 or 4 bits, groups being full."""
    module, _ = make(layer)
    with within(module, quantization):
        weight = dequantized(module, torch.float32)
        bits = 8 * module.weight.nbytes / weight.numel()
    error = weight - module.weight
    assert error.norm() / module.weight.norm() < ERROR[quantization]
    assert BITS[quantization] <= bits <= BITS[quantization] * (1 + GROUP / (error.numel() / len(error)))


def test_int8_is_within_half_a_step_of_every_channel_s_own_scale():
    module, _ = make("linear")
    module.weight[3] *= 100
    module.weight[5] = 0
    with within(module, "int8"):
        weight = dequantized(module, torch.float32)
    step = module.weight.abs().amax(1, keepdim=True) / 127
    assert ((weight - module.weight).abs() <= 0.5001 * step).all()
    assert torch.equal(weight[5], torch.zeros(96))


@both
def test_gradients_of_a_lora_are_those_on_the_dequantised_weight(quantization):
    """Through a quantised layer above, and beside a quantised layer."""
    torch.manual_seed(0)
    below, above = (nn.Linear(32, 32).requires_grad_(False) for _ in range(2))
    down, up = (nn.Parameter(torch.randn(shape)) for shape in ((4, 32), (32, 4)))
    x = torch.randn(5, 32)

    def gradients():
        y = above(below(x) + x @ down.T @ up.T)
        return torch.autograd.grad(y.square().sum(), (down, up))

    with quantized([below, above], quantization, CPU, CPU):
        got = gradients()
        weights = [dequantized(layer, torch.float32) for layer in (below, above)]
    for layer, weight in zip((below, above), weights, strict=True):
        layer.weight.copy_(weight)
    torch.testing.assert_close(got, gradients(), rtol=1e-6, atol=1e-6)


@both
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("made_in_inference_mode", [False, True])
def test_everything_is_back_afterwards(quantization, error, made_in_inference_mode):
    """The very same Parameters, also those that ComfyUI's loaders made."""
    with torch.inference_mode(made_in_inference_mode):
        module = network()
    module[2].forward = module[2].forward  # as a bypass LoRA leaves it
    before, values = tensors(module), module(torch.arange(10))
    try:
        with within(module, quantization) as waiting:
            assert waiting == module[2].in_features * 64 * 4 * 2
            inside = [*module.parameters(), *module.buffers()]
            assert not any(tensor.is_inference() or tensor.requires_grad for tensor in inside)
            assert [is_quantized(part) for part in module] == [False, False, True, False, True, False]
            with torch.inference_mode():
                torch.testing.assert_close(module(torch.arange(10)), values, atol=0.3, rtol=0.3)
            if error:
                raise error
    except BaseException as raised:  # noqa: BLE001
        assert type(raised) is error
    assert_same(tensors(module), before)


class Stopping(TorchDispatchMode):
    """Raises Stop in the middle of the layer with this number: each is rounded once."""

    def __init__(self, number: int):
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.round_.default:
            if not self.left:
                raise Stop
            self.left -= 1
        return function(*args, **(kwargs or {}))


@both
@pytest.mark.parametrize("number", [0, 1])
def test_a_stop_half_way_through_quantising_leaves_nothing_quantised(quantization, number):
    module = network()
    before = tensors(module)
    with pytest.raises(Stop), Stopping(number), within(module, quantization):
        pytest.fail("must not get here")
    assert_same(tensors(module), before)


@both
@pytest.mark.parametrize("inference", [False, True])
def test_a_dequantised_weight_lives_one_layer_long(quantization, inference):
    """In the forward and in the backward pass: eight layers in a row take the memory of one."""
    side = 256
    layers = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(8))).requires_grad_(False)
    x = torch.ones(1, side, requires_grad=not inference)
    with within(layers, quantization), LiveBytes([x, *layers.parameters()]) as meter:
        held = meter.live
        assert held < 8 * side * side * (1.01 + 4 / GROUP)
        with torch.inference_mode(inference):
            y = layers(x)
        if not inference:
            y.sum().backward()
    assert 4 * side * side <= meter.peak - held < (4 + 1) * side * side + 64 * side * 4


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_fake_tensors_tell_what_real_ones_take(quantization):
    """Quantised before they are fake, or after: no bytes and no arithmetic, and the same count."""
    with host.trainable(tiny.tiny_model("sd1", dtype=torch.bfloat16)) as network:
        whole = sum(parameter.nbytes for parameter in network.unet.parameters())
        peaks = [within_bytes(network, quantization)]
        with faked(network) as fake:
            peaks.append(within_bytes(fake, quantization))
        with within(network.unet, quantization), faked(network) as fake:
            peaks.append(within_bytes(fake, "none"))
    assert peaks[0] == peaks[1] == peaks[2]
    assert peaks[0] < whole


def within_bytes(network, quantization: str) -> int:
    """The peak of a forward and a backward pass."""
    one = example("sd1").low
    x0, condition = collate([one], network.device)
    with within(network.unet, quantization), injected(network.unet, 4, 4.0, "attention", 0), checkpointed(network.unet):
        with LiveBytes([*network.unet.parameters()]) as meter:
            denoising_loss(network, x0, x0, torch.tensor([500]), condition).mean().backward()
    return meter.peak


@both
def test_cuts_do_not_depend_on_quantisation(quantization):
    unet = tiny.tiny_model("sd1").model.diffusion_model
    before = cuts(unet)
    with within(unet, quantization):
        inside = cuts(unet)
    for cut, other in zip(before, inside, strict=True):
        assert cut == replace(other, leaving_bytes=cut.leaving_bytes)
        assert other.leaving_bytes < cut.leaving_bytes


def test_float8_weights_stay_as_they_are():
    """Half the memory already, and nothing more is lost."""
    torch.manual_seed(0)
    plain = nn.Linear(32, 16).requires_grad_(False)
    plain.weight.data = plain.weight.data.to(torch.float8_e4m3fn).float()
    stored = copy.deepcopy(plain)
    stored.weight.data = stored.weight.data.to(torch.float8_e4m3fn)
    x = torch.randn(3, 32)
    for quantization in BITS:
        with within(stored, quantization) as waiting:
            assert (waiting, stored.weight.dtype) == (0, torch.float8_e4m3fn)
            torch.testing.assert_close(run(stored, x), run(plain, x))


def test_what_is_not_a_quantisation_is_refused():
    with pytest.raises(ValueError, match="quantization: got 'int2', needs to be one of none, int8, int4"):
        with within(nn.Linear(2, 2), "int2"):
            pytest.fail("must not get here")


def test_none_changes_nothing_and_twice_is_once():
    module = network()
    before = tensors(module)
    with within(module, "none") as waiting:
        assert waiting == 0
        assert_same(tensors(module), before)
    with within(module, "int8"):
        inside = tensors(module)
        with within(module, "int4") as waiting:
            assert waiting == 0
            assert_same(tensors(module), inside)
    assert_same(tensors(module), before)
