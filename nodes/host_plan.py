"""Plans for ComfyUI's models: their U-Net without its weights, and what memory there is for a run.

Nothing is loaded for a plan and nothing of the model is touched: the U-Net is built once more by the model's own
configuration, without storage. Tried against ComfyUI 0.30.
"""

from functools import lru_cache

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..trainers.objective import Network, Sample, noise_scheduler
from ..trainers.photos import downscaled_size
from ..trainers.plan import PlannedPhase
from ..trainers.planning import TrainerConfig, bearing, planned_phases
from .host import _prediction_type, _predictor, _token_width, autograd

CPU = torch.device("cpu")
PIXELS_PER_LATENT = 8
TOKENS = 77  # of a prompt of one chunk
KNOWN_PLANS = 64  # that are kept: one of SDXL takes seconds

Size = tuple[int, int]  # height and width in pixels


class Structure:
    """All of a model that the memory of a run depends on; equal for models of equal structure."""

    def __init__(self, model: ModelPatcher):
        self.config, self.latent_channels = model.model.model_config, model.model.latent_format.latent_channels
        self.prediction_type, self.dtype = _prediction_type(model), model.model.get_dtype_inference()
        self.token_width, self.vector_width = _token_width(model.model.diffusion_model), model.model.adm_channels
        self.dtypes = {name: tensor.dtype for name, tensor in model.model.diffusion_model.named_parameters()}
        known = (type(self.config), self.config.unet_config, self.prediction_type, self.dtype, self.dtypes)
        self._key = repr(known)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def network(self) -> Network:
        """The U-Net on the meta device. Its schedule means nothing: no tensor's size depends on it."""
        twin = ModelPatcher(self.config.get_model({}, device=torch.device("meta")), CPU, CPU)
        unet = twin.model.diffusion_model
        for name, parameter in unet.named_parameters():
            parameter.data = parameter.data.to(self.dtypes[name])
        scheduler = noise_scheduler(torch.linspace(0.999, 0.005, 1000), self.prediction_type)
        return Network(unet, _predictor(twin), scheduler, self.dtype, CPU)

    def photo(self, height: int, width: int) -> Sample:
        """A photo of that many pixels with a prompt of one chunk, all zeros."""
        latent = torch.zeros(self.latent_channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        vector = torch.zeros(self.vector_width) if self.vector_width else None
        return Sample(latent, torch.zeros(TOKENS, self.token_width), vector)


def phases(model: ModelPatcher, size: Size, config: TrainerConfig) -> tuple[PlannedPhase, ...]:
    """Peaks of a run on photos of that size, by phase."""
    return _phases(Structure(model), size, bearing(config))


@lru_cache(KNOWN_PLANS)
def _phases(structure: Structure, size: Size, config: TrainerConfig) -> tuple[PlannedPhase, ...]:
    with autograd():
        return planned_phases(
            structure.network(), lambda ratio: structure.photo(*downscaled_size(*size, ratio)), config
        )


def free_bytes(model: ModelPatcher) -> int:
    """What a run on this model finds once ComfyUI has unloaded the others; the model's own weights count as free."""
    device, unet = model.load_device, model.model.diffusion_model
    free = model_management.get_free_memory(device)
    if device.type == "cpu":  # where unloading frees nothing, and weights are whether loaded or not
        return free + _bytes(unet)
    loaded = (known.model for known in model_management.current_loaded_models if known.device == device)
    return free + sum(patcher.loaded_size() for patcher in loaded if patcher is not None)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
