"""A model's weights as training needs them: on its device as they are, or quantised there while they wait in RAM.

ComfyUI runs nodes in inference mode, and what its loaders make are inference tensors, which autograd refuses. Tried
against ComfyUI 0.30.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..trainers.quantize import quantized

# Not model_management.unet_offload_device(), which is the GPU itself when ComfyUI runs with --highvram: there, too,
# who quantises or hollows a model wants the memory.
OFFLOAD_DEVICE = torch.device("cpu")


@contextmanager
def fit_for_autograd(patcher: ModelPatcher, module: nn.Module, quantization: str, alone: bool) -> Iterator[int]:
    """The module, which is the model or a part of it, on the model's device; yields the bytes that wait elsewhere.

    Inside the block inference mode is off and gradients are on. alone asks for all other models to leave the device.
    Patches of the model are in its weights before they are quantised, and the full weights never see the device then.
    Afterwards they are what they were, and a model that was quantised is unloaded.
    """
    if quantization == "none":
        # So much memory asked for makes ComfyUI unload every other model.
        model_management.load_models_gpu([patcher], memory_required=1e20 if alone else 0, force_full_load=True)
        asking = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        with torch.inference_mode(False), torch.enable_grad():
            _make_normal(module)
            try:
                yield 0
            finally:
                for name, parameter in module.named_parameters():
                    if name in asking:  # such as CLIP's logit scale
                        parameter.requires_grad_(True)
        return
    with ExitStack() as stack:
        others = [] if alone else [m for m in model_management.current_loaded_models if not patcher.is_clone(m.model)]
        model_management.free_memory(1e30, patcher.load_device, keep_loaded=others)
        stack.callback(patcher.detach)
        patcher.patch_model(OFFLOAD_DEVICE)
        patcher.eject_model()  # bypass LoRAs wrap forwards: what they wrap has to be the quantised layers'
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        waiting = stack.enter_context(quantized([module], quantization, patcher.load_device, OFFLOAD_DEVICE))
        stack.callback(patcher.eject_model)
        patcher.inject_model()
        yield waiting


def unload(patcher: ModelPatcher) -> None:
    """Take a model and its clones off the device."""
    loaded = model_management.current_loaded_models
    others = [one for one in loaded if one.model is not None and not patcher.is_clone(one.model)]
    model_management.free_memory(1e30, patcher.load_device, keep_loaded=others)


def _make_normal(module: nn.Module) -> None:
    """Freeze the weights, and replace inference tensors by normal ones of the same value, one at a time.

    Except ComfyUI's QuantizedTensors: a clone of one cannot be unloaded. No LoRA sits on their layers.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and not parameter.is_inference():
            parameter.requires_grad_(False)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if type(parameter) is nn.Parameter and parameter.is_inference():
                part._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
