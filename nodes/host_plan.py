"""Plans for ComfyUI's models: their U-Net without its weights, and what memory there is for a run.

Nothing is loaded for a plan and nothing of the model is touched: the U-Net is built again by the model's own
configuration, without storage. Tried against ComfyUI 0.30.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import BASE
from torch import Tensor

from ..trainers.objective import Network, Sample, noise_scheduler
from ..trainers.photos import downscaled_size
from ..trainers.plan import PlannedPhase, Room
from ..trainers.planning import TrainerConfig, bearing, planned_phases
from . import host

CPU = torch.device("cpu")
PIXELS_PER_LATENT = 8
TOKENS = 77  # of a prompt of one chunk
KNOWN_PLANS = 64  # that are kept: a plan of SDXL takes seconds


class Structure:
    """All of a model that a plan depends on; equal for models of equal structure."""

    def __init__(self, model: ModelPatcher):
        self.config: BASE = model.model.model_config
        self.prediction_type = host.prediction_type(model)
        self.dtype = model.model.get_dtype_inference()
        self.dtypes = {name: tensor.dtype for name, tensor in model.model.diffusion_model.state_dict().items()}
        self.adm_channels = model.model.adm_channels
        parts = (type(self.config), self.config.unet_config, self.prediction_type, self.dtype, self.dtypes)
        self._key = repr(parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def network(self) -> Network:
        """The U-Net on the meta device, with a schedule of no meaning: no tensor's size depends on it."""
        twin = ModelPatcher(self.config.get_model({}, device=torch.device("meta")), CPU, CPU)
        for module in twin.model.diffusion_model.modules():
            pass
        scheduler = noise_scheduler(torch.linspace(0.999, 0.005, 1000), self.prediction_type)
        return Network(twin.model.diffusion_model, host.predictor(twin), scheduler, self.dtype, CPU)

