"""Quantised MODELs and CLIPs while a run lasts, and that they are what they were afterwards."""

import pytest
import tiny
import torch
from comfy.sd import load_lora_for_models
from pack.nodes import host
from pack.nodes.host_embeddings import with_token
from pack.nodes.host_pocket import load_pocket
from pack.nodes.host_token import text_encoder
from pack.trainers.config import HollowConfig, SelectiveConfig
from pack.trainers.hollow import train_hollow
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Condition, denoising_loss
from pack.trainers.quantize import dequantized, is_quantized, quantized
from pack.trainers.run import first_and_last
from pack.trainers.selective import train_selective
from test_host import random_lora
from test_selective import Cancelled, example
from test_token_host import NAME, stock, token
from torch import nn

CPU = torch.device("cpu")
both = pytest.mark.parametrize("quantization", ["int8", "int4"])
TEXT = "a photo of a embedding:my_dog"
QUICK = SelectiveConfig(steps=4, zo_perturbations=1, learning_rate=1e-3, t_mid=500)


def everything(model: nn.Module) -> dict:
    """Every tensor: the very one, its bits, where it is."""
    found = model.state_dict(keep_vars=True)
    forwards = {name for name, part in model.named_modules() if "forward" in vars(part)}
    return {name: (id(t), t.clone(), t.device, t.is_inference()) for name, t in found.items()} | {"forwards": forwards}


def assert_same(found: dict, before: dict) -> None:
    assert found.keys() == before.keys() and found.pop("forwards") == before.pop("forwards")
    for name, (one, bits, device, inference) in found.items():
        other, expected, *rest = before[name]
        assert one == other and torch.equal(bits, expected) and [device, inference] == rest, name


def in_nodes(model, quantization: str, then=lambda network: None, kind: str = "sd1", config=QUICK):
    """A run as ComfyUI's executor has it."""
    with torch.inference_mode(), host.trainable(model, quantization) as network:
        then(network)
        names, meter = host.lora_names(model), PhaseMeter(CPU)
        trained = train_selective(network, [example(kind)], config, names, meter, lambda step: None)
    return trained, meter, network


@both
@pytest.mark.parametrize("kind", ["sd1", "ssd1b"])
def test_a_model_is_trained_quantised_and_left_as_it_was(kind, quantization):
    model = tiny.tiny_model(kind)
    before = everything(model.model)
    seen = []

    def look(network):
        layers = [part for part in network.unet.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        assert layers and all(map(is_quantized, layers))
        seen.extend([*network.unet.parameters(), *network.unet.buffers()])

    trained, meter, network = in_nodes(model, quantization, look, kind)
    assert {step.kind for step in trained.steps} == {"bp", "zo"}
    assert_same(everything(model.model), before)
    whole = sum(parameter.nbytes for parameter in model.model.diffusion_model.parameters())
    held = sum(tensor.nbytes for tensor in seen)
    assert 0.95 * whole < network.waiting_bytes < whole
    assert {phase.name: phase.held_bytes >= held for phase in meter.phases()} == dict.fromkeys(
        ("inference", "zo", "bp"), True
    )
    assert max(phase.peak_bytes for phase in meter.phases()) < held + 0.5 * whole


@both
def test_a_stop_in_a_step_leaves_the_model_as_it_was(quantization):
    model = tiny.tiny_model("sd1")
    before, counter = everything(model.model), []

    def stop_soon(network):
        def hook(*_):
            counter.append(1)
            if len(counter) == 30:
                raise Cancelled

        handles.extend(part.register_forward_hook(hook) for part in network.unet.modules() if is_quantized(part))

    handles = []
    with pytest.raises(Cancelled):
        in_nodes(model, quantization, stop_soon)
    for handle in handles:
        handle.remove()
    assert_same(everything(model.model), before)


def test_a_lora_of_the_model_is_in_the_quantised_weights():
    """As core's Load LoRA patches them. Clone and original sample as before."""
    model = tiny.tiny_model("sd1")
    patched = load_lora_for_models(model, None, random_lora(model), 1.0, 0.0)[0]
    name = "input_blocks.1.1.transformer_blocks.0.attn2.to_q"

    def weight(patcher):
        with host.trainable(patcher) as network:
            return network.unet.get_submodule(name).weight.clone()

    plain, expected = weight(model), weight(patched)
    assert not torch.equal(plain, expected)
    found = []
    in_nodes(
        patched, "int8", lambda network: found.append(dequantized(network.unet.get_submodule(name), torch.float32))
    )
    step = expected.abs().amax(1, keepdim=True) / 127
    assert ((found[0] - expected).abs() <= 0.5001 * step).all()
    assert torch.equal(weight(patched), expected) and torch.equal(weight(model), plain)


@both
def test_a_quantised_run_repeats_itself(quantization):
    first, again = (in_nodes(tiny.tiny_model("sd1"), quantization)[0].lora for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("quantization, typical, worst", [("int8", 0.007, 0.011), ("int4", 0.09, 0.12)])
def test_the_error_on_weights_that_were_trained(quantization, typical, worst):
    """The pocket model's. Its last convolution, of 4 channels, is the one layer of 182 over 1% in int8."""
    unet = load_pocket()[0].model.diffusion_model
    weights = {part: part.weight.clone() for part in unet.modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    with quantized([unet], quantization, CPU, CPU):
        errors = sorted((dequantized(part, w.dtype) - w).norm() / w.norm() for part, w in weights.items())
    assert errors[len(errors) // 2] < typical and errors[-1] < worst
    assert quantization == "int4" or errors[-2] < 0.01


def fixed_loss(patcher, sample) -> float:
    with host.trainable(patcher) as network, torch.no_grad():
        t = torch.arange(50, 1000, 100)
        x0 = sample.latent.expand(len(t), -1, -1, -1)
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(9))
        condition = Condition(sample.context.expand(len(t), -1, -1))
        return denoising_loss(network, x0, noise, t, condition).mean().item()


def test_what_a_quantised_network_learns_the_full_one_knows():
    """One photo is overfitted."""
    model = tiny.tiny_model("sd1")
    config = SelectiveConfig(steps=40, rank=8, learning_rate=1e-2, strategy="bp_low")
    lora = in_nodes(model, "int8", config=config)[0].lora
    sample = example("sd1").low
    assert fixed_loss(host.with_lora(model, lora), sample) < 0.9 * fixed_loss(model, sample)


def test_a_hollowed_network_learns_quantised(tmp_path):
    """Cache and steps on quantised layers, the centre's among them moved off and back."""
    model, photo = tiny.tiny_model("sd1"), example("sd1", side=8).high
    before = everything(model.model)
    config = HollowConfig(
        steps=40, rank=8, cache_samples=4, learning_rate=1e-2, hollow_fraction=0.3, quantization="int8"
    )
    with torch.inference_mode(), host.trainable(model, config.quantization) as network:
        names, places = host.lora_names(model), dict(cache_path=tmp_path / "hollow.bin", offload_device=CPU)
        trained = train_hollow(network, [photo], config, names, PhaseMeter(CPU), lambda step: None, **places)
    assert_same(everything(model.model), before)
    loss = first_and_last(trained.steps)["all"]
    assert loss["last"] < 0.9 * loss["first"]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_text_encoders_are_quantised_and_left_as_they_were(kind):
    clip, vectors = tiny.tiny_clip(kind), token(kind)
    expected, before = stock(with_token(clip, NAME, vectors), TEXT), everything(clip.cond_stage_model)
    with pytest.raises(Cancelled), torch.inference_mode(False), text_encoder(clip, NAME, "int8") as encoder:
        leaves = {key: vector[None].requires_grad_() for key, vector in vectors.items()}
        got = encoder.encode(TEXT, leaves)
        got[0].sum().backward()
        assert all(leaf.grad.abs().max() > 0 for leaf in leaves.values())
        assert encoder.waiting_bytes > 0
        raise Cancelled
    assert_same(everything(clip.cond_stage_model), before)
    for one, other in zip(got, expected, strict=True):
        assert 0 < (one - other).norm() / other.norm() < 0.03
    again = stock(with_token(clip, NAME, vectors), TEXT)
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))
