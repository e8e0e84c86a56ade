"""MODELs that come quantised, as ComfyUI loads float8 and int8 checkpoints: trained as they are, or refused."""

import json

import comfy.supported_models
import pytest
import tiny
import torch
from comfy import model_management
from comfy.quant_ops import QuantizedTensor
from pack.nodes import host
from pack.trainers.config import SelectiveConfig
from pack.trainers.memory import PhaseMeter
from pack.trainers.selective import train_selective
from test_selective import example
from test_token_node import run
from torch import nn

CPU = torch.device("cpu")
FORMATS = {"int8_tensorwise": "TensorWiseINT8Layout", "float8_e4m3fn": "TensorCoreFP8E4M3Layout"}


@pytest.fixture(params=FORMATS)
def scaled(request, monkeypatch):
    """A tiny model whose Linear layers are ComfyUI's quantised ones, loaded from the state dict that it saves."""
    state = tiny.tiny_model("sd1").model.diffusion_model.state_dict()
    monkeypatch.setattr(comfy.supported_models.SD15, "quant_config", {"mixed_ops": True}, raising=False)
    model = tiny.tiny_model("sd1")
    unet = model.model.diffusion_model
    with torch.inference_mode():
        for name, module in unet.named_modules():
            if type(module).__name__ == "Linear" and not isinstance(module, nn.Linear):
                weight = QuantizedTensor.from_float(
                    state[f"{name}.weight"], FORMATS[request.param], scale="recalculate"
                )
                state |= {f"{name}.weight": weight._qdata, f"{name}.weight_scale": weight._params.scale.reshape(())}
                description = json.dumps({"format": request.param}).encode()
                state[f"{name}.comfy_quant"] = torch.tensor(list(description), dtype=torch.uint8)
        unet.load_state_dict(state)
    monkeypatch.undo()
    assert isinstance(unet.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q").weight, QuantizedTensor)
    return model


def bits(model) -> dict[str, torch.Tensor]:
    """All numbers as they are kept."""
    found = {}
    for name, parameter in model.model.diffusion_model.named_parameters():
        parts = [parameter]
        if isinstance(parameter, QuantizedTensor):
            parts = [parameter._qdata, parameter._params.scale.reshape(1)]
        found |= {f"{name} {i}": part.detach().clone().view(torch.uint8) for i, part in enumerate(parts)}
    return found


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_token_is_learnt_on_scaled_layers(scaled, quantization):
    """Convolutions are quantised, if so asked. ComfyUI can unload the model afterwards."""
    before, clip = bits(scaled), tiny.tiny_clip("sd1")
    words = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.nbytes
    report = run(scaled, clip, quantization=quantization, steps=2, eval_every=0).result[-1]
    assert report.steps_zo == 2
    assert report.waiting_bytes == words if quantization == "none" else report.waiting_bytes > words
    with torch.inference_mode():
        model_management.unload_all_models()
    after = bits(scaled)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gradients_and_loras_need_other_layers(scaled):
    message = "model: its layers are quantised; load the float16, bfloat16 or float32"
    with pytest.raises(ValueError, match=message):
        run(scaled, tiny.tiny_clip("sd1"), method="gradient")
    with pytest.raises(ValueError, match=message):
        host.model_facts(scaled)


def float8_model():
    """As Load Diffusion Model makes it with weight_dtype fp8_e4m3fn."""
    model = tiny.tiny_model("sd1")
    with torch.inference_mode():
        for module in model.model.diffusion_model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.float8_e4m3fn)
    model.model.manual_cast_dtype = torch.float32
    return model


@pytest.mark.slow
def test_float8_weights_carry_a_lora_as_they_are_and_in_less_memory_one_layer_at_a_time():
    """ComfyUI's layers keep each weight cast for the backward pass; ours cast it again."""
    loras, peaks = [], []
    for quantization in ("none", "int8"):
        model, meter = float8_model(), PhaseMeter(CPU)
        before = bits(model)
        assert host.model_facts(model).dtype is torch.float32
        config = SelectiveConfig(steps=2, strategy="bp_low", quantization=quantization)
        with torch.inference_mode(), host.trainable(model, quantization) as network:
            names = host.lora_names(model)
            loras.append(train_selective(network, [example("sd1")], config, names, meter, lambda step: None).lora)
        assert all(torch.equal(bits(model)[name], value) for name, value in before.items())
        peaks.append(meter.peak_bytes("bp"))
    for key, value in loras[0].items():
        torch.testing.assert_close(loras[1][key], value, atol=1e-5, rtol=1e-4)
    assert peaks[1] < 0.6 * peaks[0]
