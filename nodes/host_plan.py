"""Plans for ComfyUI's models: their U-Net without its weights, and what memory there is for a run.

Nothing is loaded for a plan and nothing of the model is touched: the U-Net is built once more by the model's own
configuration, without storage. Tried against ComfyUI 0.30.
"""

from dataclasses import asdict
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.supported_models_base import BASE
from torch import nn

from ..trainers.budget import budget_bytes
from ..trainers.config import TokenConfig
from ..trainers.objective import Network, Sample, noise_scheduler
from ..trainers.photos import Subject, downscaled_size
from ..trainers.plan import METHODS, Plan, PlannedPhase, allowance
from ..trainers.planning import TrainerConfig, bearing, planned_phases
from .host import ModelFacts, _prediction_type, _predictor, _token_width, autograd, model_facts
from .host_embeddings import embedding_table, encoder_names

CPU, META = torch.device("cpu"), torch.device("meta")
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
        """The U-Net on the meta device.

        Its schedule means nothing, since no tensor's size depends on it. Layers that ComfyUI loaded quantised are
        planned as plain ones, which are larger.
        """
        twin = ModelPatcher(_plain(self.config).get_model({}, device=META), CPU, CPU)
        unet = twin.model.diffusion_model
        for name, parameter in unet.named_parameters():
            if self.dtypes.get(name, parameter.dtype).is_floating_point:
                parameter.data = parameter.data.to(self.dtypes.get(name, parameter.dtype))
        scheduler = noise_scheduler(torch.linspace(0.999, 0.005, 1000), self.prediction_type)
        return Network(unet, _predictor(twin), scheduler, self.dtype, CPU)

    def photo(self, height: int, width: int, is_masked: bool = False) -> Sample:
        """A photo of that many pixels with a prompt of one chunk, all zeros."""
        latent = torch.zeros(self.latent_channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        vector = torch.zeros(self.vector_width) if self.vector_width else None
        weight = torch.zeros(latent.shape[1:]) if is_masked else None
        return Sample(latent, torch.zeros(TOKENS, self.token_width), vector, weight)


def _plain(config: BASE) -> BASE:
    """The configuration without quantised layers. copy.copy() of one fails: it has None for what it does not have."""
    if config.quant_config is None:
        return config
    plain = object.__new__(type(config))
    vars(plain).update(vars(config), quant_config=None, custom_operations=None)
    return plain


class TextStructure(NamedTuple):
    """The tensors of a text encoder: of Linear layers, which can be quantised, and of all else. Shapes and dtypes."""

    linear: tuple[tuple[torch.Size, torch.dtype, bool], ...] = ()  # weight, and whether there is a bias
    other: tuple[tuple[torch.Size, torch.dtype], ...] = ()

    @staticmethod
    def of(clip: CLIP) -> "TextStructure":
        tables = [embedding_table(clip.cond_stage_model, key) for key in encoder_names(clip)]  # which wait in RAM
        parts = [part for part in clip.cond_stage_model.modules() if part not in tables]
        layers = [part for part in parts if isinstance(part, nn.Linear)]
        linear = tuple((layer.weight.shape, layer.weight.dtype, layer.bias is not None) for layer in layers)
        rest = (part for part in parts if not isinstance(part, nn.Linear))
        tensors = (tensor for part in rest for tensor in (*part.parameters(False), *part.buffers(False)))
        return TextStructure(linear, tuple((tensor.shape, tensor.dtype) for tensor in tensors))

    def module(self) -> nn.Module:
        """They alone, without storage and without what a text encoder does."""
        with META:
            module = nn.ModuleList(nn.Linear(*shape[::-1], bias, dtype=dtype) for shape, dtype, bias in self.linear)
            for number, (shape, dtype) in enumerate(self.other):
                module.register_buffer(f"other_{number}", torch.empty(shape, dtype=dtype))
        return module


def facts_for(model: ModelPatcher, config: TrainerConfig) -> ModelFacts:
    """Facts of a model that can be trained so. Raises ValueError for every other."""
    only_forward = isinstance(config, TokenConfig) and config.method == "zo"
    return model_facts(model, needs_plain_layers=not only_forward)


class Planner:
    """Plans of runs on one model and photos of one size; the clip is the one that stays while a token is learnt."""

    def __init__(
        self,
        model: ModelPatcher,
        facts: ModelFacts,
        size: Size,
        resolution: int,
        clip: CLIP | None = None,
        is_masked: bool = False,
    ):
        self.model, self.facts, self.size, self.resolution, self.clip = model, facts, size, resolution, clip
        self.is_masked = is_masked

    def __call__(self, config: TrainerConfig) -> Plan:
        """The plan. Raises ValueError for a model that cannot be trained so."""
        facts_for(self.model, config)
        found, device = phases(self.model, self.size, config, self.clip, self.is_masked), self.facts.device
        return Plan(
            method=METHODS[type(config)],
            base_model=self.facts.base_version,
            resolution=self.resolution,
            device=self.facts.device_name,
            dtype=str(self.facts.dtype).removeprefix("torch."),
            phases=found,
            allowance_bytes=allowance(max(phase.peak_bytes for phase in found)) if device.type == "cuda" else 0,
            free_bytes=free_bytes(self.model, config.quantization),
            budget_bytes=budget_bytes(config),
            other_models=self.facts.other_models,
            settings=asdict(config),
            architecture=self.facts.architecture,
        )


def largest(subject: Subject) -> Size:
    """Height and width of the photo that takes most memory."""
    return max((tuple(photo.image.shape[:2]) for photo in subject.photos), key=prod)


def phases(
    model: ModelPatcher, size: Size, config: TrainerConfig, clip: CLIP | None = None, is_masked: bool = False
) -> tuple[PlannedPhase, ...]:
    """Peaks of a run on photos of that size, by phase. Without the clip a token's plan leaves the text encoder out."""
    text = TextStructure.of(clip) if clip is not None and isinstance(config, TokenConfig) else TextStructure()
    return _phases(Structure(model), text, size, bearing(config), is_masked)


@lru_cache(KNOWN_PLANS)
def _phases(
    structure: Structure, text: TextStructure, size: Size, config: TrainerConfig, is_masked: bool
) -> tuple[PlannedPhase, ...]:
    def photo(ratio: float) -> Sample:
        return structure.photo(*downscaled_size(*size, ratio), is_masked)

    with autograd():
        return planned_phases(structure.network(), photo, config, text.module())


def free_bytes(model: ModelPatcher, quantization: str = "none") -> int:
    """What a run on this model finds once ComfyUI has unloaded the others; the model's own weights count as free.

    On the CPU, where they are whether loaded or not, only if they do not wait there for quantised ones to go.
    """
    device = model.load_device
    free = model_management.get_free_memory(device)
    if device.type == "cpu":
        own = sum(parameter.nbytes for parameter in model.model.diffusion_model.parameters())
        return free + (own if quantization == "none" else 0)
    loaded = (known.model for known in model_management.current_loaded_models if known.device == device)
    return free + sum(patcher.loaded_size() for patcher in loaded if patcher is not None)
