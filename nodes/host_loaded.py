"""What ComfyUI keeps loaded, as a report names it."""

from comfy import model_management
from comfy.model_patcher import ModelPatcher

from ..trainers.report import LoadedModel


def other_models(model: ModelPatcher) -> tuple[LoadedModel, ...]:
    """Every other model that ComfyUI holds on this one's device, by the name of its class, largest first."""
    patchers = [loaded.model for loaded in model_management.current_loaded_models]
    others = [
        LoadedModel(type(patcher.model).__name__, patcher.loaded_size())
        for patcher in patchers
        if patcher is not None and not patcher.is_clone(model) and patcher.load_device == model.load_device
    ]
    return tuple(sorted((other for other in others if other.bytes), key=lambda other: -other.bytes))
