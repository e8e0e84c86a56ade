"""Sampling along two paths: the centre of the U-Net without the LoRA, the rest with it, as a hollowed run trained it.

Cho et al. 2024 (Hollowed Net, arXiv:2411.01179): path 1 runs the original network up to where the centre ends, path 2
runs the hollowed network with the LoRA on that. Both walk ComfyUI's own forward, so patches, other LoRAs, ControlNet
and batches of CFG take part as always; the LoRA is added by hooks, since weights that hold it would serve path 1 too.
"""

from collections.abc import Callable, Mapping

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..trainers.bypass import Adapter, adapters, bypassed
from ..trainers.hollow_cuts import Cut
from ..trainers.hollow_forward import check_mode, ending_at_the_centre, hollowed
from .host import lora_names

KEY = "edgetune_two_path"
Control = dict[str, list[Tensor | None]]  # by part of the U-Net


def with_two_paths(model: ModelPatcher, lora: Mapping[str, Tensor], cut: Cut, mode: str) -> ModelPatcher:
    """A clone of the model that samples along two paths; lora was trained with this cut's centre left out."""
    check_mode(cut, mode)
    sampler = _TwoPaths(adapters(lora, lora_names(model)), cut, mode)
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sampler.sample)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, sampler.predict)
    return clone


class _TwoPaths:
    """Both paths of one prediction, and the adapters on the device for as long as a sampler runs."""

    def __init__(self, layers: Mapping[str, Adapter], cut: Cut, mode: str):
        self.layers, self.cut, self.mode = layers, cut, mode
        self._copies: dict[torch.device, Mapping[str, Adapter]] | None = None

    def sample(self, executor: WrapperExecutor, *args, **kwargs):
        """Wraps a sampler's whole run: the copies that predict() makes for it do not outlive it."""
        self._copies = {}
        try:
            return executor(*args, **kwargs)
        finally:
            self._copies = None

    def predict(self, executor: WrapperExecutor, x, timesteps, context, y, control, options, **kwargs) -> Tensor:
        """Wraps one run of the U-Net; options are ComfyUI's transformer_options."""
        unet = executor.class_obj
        first_kept = len(unet.output_blocks) - self.cut.kept
        deep, shallow = _split_control(control, first_kept)
        end = _CentreEnd(first_kept, self.mode)
        with torch.no_grad(), ending_at_the_centre(unet, self.cut):
            executor(x, timesteps, context, y, deep, _patched(options, end), **kwargs)
        with hollowed(unet, self.cut, self.mode) as hollow, bypassed(unet, self._layers(x.device)):
            hollow.activation = end.activation
            return executor(x, timesteps, context, y, shallow, _patched(options, _renumber(first_kept)), **kwargs)

    def _layers(self, device: torch.device) -> Mapping[str, Adapter]:
        copies = {} if self._copies is None else self._copies
        if device not in copies:
            copies[device] = {name: adapter.to(device) for name, adapter in self.layers.items()}
        return copies[device]


class _CentreEnd:
    """An output_block_patch that keeps what hollow_forward calls the activation, as no other patch has changed it."""

    def __init__(self, first_kept: int, mode: str):
        self.block, self.mode = ("output", first_kept), mode

    def __call__(self, h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        if options["block"] == self.block:
            self.activation = h - skip if self.mode == "residual" else h.clone()
        return h, skip


def _renumber(first_kept: int) -> Callable[[Tensor, Tensor, dict], tuple[Tensor, Tensor]]:
    """An output_block_patch that gives kept blocks the numbers they have in the whole U-Net, for all patches after."""

    def patch(h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        kind, number = options["block"]
        options["block"] = (kind, number + first_kept)
        return h, skip

    return patch


def _patched(options: dict, patch: Callable) -> dict:
    """transformer_options with this output_block_patch before all others; the caller's stay as they are."""
    patches = options.get("patches", {})
    return options | {"patches": patches | {"output_block_patch": [patch, *patches.get("output_block_patch", [])]}}


def _split_control(control: Control | None, first_kept: int) -> tuple[Control | None, Control | None]:
    """What a ControlNet adds, for path 1 and for path 2. The U-Net takes it off the ends of the lists it is given."""
    if control is None:
        return None, None
    output = control.get("output", [])
    shallow = max(0, len(output) - first_kept)
    parts = {"input": list(control.get("input", []))}
    return (
        control | parts | {"output": output[shallow:], "middle": list(control.get("middle", []))},
        control | {"input": list(parts["input"]), "output": output[:shallow], "middle": []},
    )
