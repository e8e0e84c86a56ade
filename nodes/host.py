"""ComfyUI's models as trainers see them: encoded photos, a trainable U-Net, a LoRA put back on.

With the other host_*.py files the only code that touches ComfyUI internals. Facts it relies on, all tried against
ComfyUI 0.30: loaders make inference tensors, which autograd refuses; VAE latents come unscaled; attention can be chosen
per call through transformer_options. Inference mode is left here and in host_weights.py alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from comfy import model_management, utils
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import EPS, V_PREDICTION, ModelSamplingDiscrete
from comfy.sd import CLIP, VAE, load_lora_for_models
from torch import Tensor, nn

from ..trainers.checkpoint import BASE_VERSIONS
from ..trainers.memory import PhaseMeter
from ..trainers.objective import Condition, Example, Network, Sample, noise_scheduler
from ..trainers.photos import Photo, Subject, downscaled, loss_weight, with_mirrored
from ..trainers.report import Circumstances, LoadedModel
from . import host_loaded
from .host_weights import fit_for_autograd, unload

SUPPORTED = "a Stable Diffusion 1.x, 2.x or XL model, or a relative such as SSD-1B"


class ModelFacts(NamedTuple):
    """What a report says about the MODEL it was given."""

    base_version: str
    prediction_type: str
    dtype: torch.dtype  # of the U-Net's computation
    device: torch.device
    device_name: str
    other_models: tuple[LoadedModel, ...]  # on that device, at this moment
    architecture: str  # ComfyUI's name of it


def model_facts(model: ModelPatcher, *, needs_plain_layers: bool = True) -> ModelFacts:
    """Facts of a model that can be trained. Raises ValueError, naming the socket, for every other.

    Layers that ComfyUI loaded quantised are not plain: forward passes are all they are good for, and no LoRA fits.
    """
    unet = model.model.diffusion_model
    if not isinstance(unet, UNetModel):
        raise ValueError(f"model: got {type(model.model).__name__}, needs to be {SUPPORTED}")
    prediction_type = _prediction_type(model)
    channels = model.model.latent_format.latent_channels
    if unet.in_channels != channels or model.model.concat_keys:
        raise ValueError(
            f"model: its U-Net takes {unet.in_channels} channels where {channels} were expected, as inpainting and "
            f"instruction models do; needs to be {SUPPORTED}, in its plain text-to-image form"
        )
    attention = [module for name, module in unet.named_modules() if name.endswith((".to_q", ".to_k"))]
    is_plain = all(isinstance(module, nn.Linear) for module in attention)
    if not attention or (needs_plain_layers and not is_plain):
        raise ValueError("model: its layers are quantised; load the float16, bfloat16 or float32 checkpoint instead")
    version = BASE_VERSIONS.get(_token_width(unet), type(model.model).__name__)
    device = model.load_device
    return ModelFacts(
        version,
        prediction_type,
        model.model.get_dtype_inference(),
        device,
        model_management.get_torch_device_name(device),
        host_loaded.other_models(model),
        type(model.model.model_config).__name__,
    )


def circumstances(facts: ModelFacts, subject: Subject, waiting_bytes: int = 0) -> Circumstances:
    """What a report says about the run's model and subject; waiting_bytes as Network has them."""
    return Circumstances(
        base_model=facts.base_version,
        prediction_type=facts.prediction_type,
        instance_prompt=subject.instance_prompt,
        resolution=subject.resolution,
        device=facts.device_name,
        dtype=str(facts.dtype).removeprefix("torch."),
        other_models=facts.other_models,
        architecture=facts.architecture,
        waiting_bytes=waiting_bytes,
    )


def _token_width(unet: UNetModel) -> int:
    return next(m.in_features for name, m in unet.named_modules() if name.endswith("attn2.to_k"))


def _prediction_type(model: ModelPatcher) -> str:
    sampling = model.get_model_object("model_sampling")
    names = {EPS.calculate_denoised: "epsilon", V_PREDICTION.calculate_denoised: "v_prediction"}
    name = names.get(type(sampling).calculate_denoised)
    if name is None or getattr(type(sampling), "timestep", None) is not ModelSamplingDiscrete.timestep:
        raise ValueError(
            f"model: its sampling ({', '.join(base.__name__ for base in type(sampling).__bases__)}) is not one this "
            f"trainer knows; needs eps- or v-prediction with discrete timesteps. Remove LCM or EDM patches before it."
        )
    return name


def encode_subject(
    model: ModelPatcher, clip: CLIP, vae: VAE, subject: Subject, low_res_ratio: float, meter: PhaseMeter
) -> list[Example]:
    """Every photo (and its mirror image, if asked for) encoded once at full size and at low_res_ratio, on the CPU.

    VAE and text encoder leave the device afterwards. Raises ValueError when either does not belong to the model.
    """
    photos = with_mirrored(subject)
    parts = [*vae.first_stage_model.parameters(), *clip.cond_stage_model.parameters()]
    with meter.phase("encode", parts):
        captions = dict.fromkeys(photo.caption for photo in photos)
        prompts = {caption: _encode_prompt(model, clip, caption) for caption in captions}
        examples = [
            _encode_photo(model, vae, photo, prompts[photo.caption], low_res_ratio, subject.background_weight)
            for photo in photos
        ]
    for patcher in (clip.patcher, vae.patcher):
        unload(patcher)
    return examples


def encode_photos(model: ModelPatcher, vae: VAE, subject: Subject, meter: PhaseMeter) -> list[Tensor]:
    """Latents (C, H, W) of with_mirrored(subject), as the U-Net expects them, on the CPU; the VAE leaves the device."""
    with meter.phase("encode", vae.first_stage_model.parameters()):
        latents = [_latent(model, vae, photo.image) for photo in with_mirrored(subject)]
    unload(vae.patcher)
    return [_kept(model.model.process_latent_in(latent)) for latent in latents]


def _encode_prompt(model: ModelPatcher, clip: CLIP, prompt: str) -> tuple[Tensor, Tensor | None]:
    encodings = clip.encode_from_tokens_scheduled(clip.tokenize(prompt), show_pbar=False)
    if len(encodings) > 1:
        raise ValueError(
            f"clip: its hooks make {len(encodings)} encodings of a prompt, one after another in sampling; training "
            f"needs one. Turn schedule_clip of Set CLIP Hooks off, or connect the CLIP from before it"
        )
    ((context, extras),) = encodings
    needed = _token_width(model.model.diffusion_model)
    if context.shape[-1] != needed:
        raise ValueError(
            f"clip: its tokens are {context.shape[-1]} wide, the model needs {needed}; connect the CLIP of "
            f"the model, from the same checkpoint"
        )
    return context, extras.get("pooled_output")


def _encode_photo(
    model: ModelPatcher,
    vae: VAE,
    photo: Photo,
    prompt: tuple[Tensor, Tensor | None],
    low_res_ratio: float,
    background_weight: float,
) -> Example:
    small = downscaled(photo.image, low_res_ratio)
    full_size = (photo.image.shape[1], photo.image.shape[0])
    high = _encode_image(model, vae, photo.image, prompt, full_size)
    high = high._replace(weight=_weight(photo, background_weight))
    if small is photo.image:
        return Example(high, high)
    low = _encode_image(model, vae, small, prompt, full_size)
    return Example(high, low._replace(weight=_weight(photo, background_weight, low_res_ratio)))


def photo_weights(subject: Subject) -> list[Tensor | None]:
    """By how much each latent of with_mirrored(subject) counts in the loss, (H, W); None where all count alike."""
    return [_weight(photo, subject.background_weight) for photo in with_mirrored(subject)]


def _weight(photo: Photo, background_weight: float, ratio: float = 1) -> Tensor | None:
    weight = loss_weight(photo, background_weight, ratio)
    return None if weight is None else _kept(weight[None])


def _encode_image(
    model: ModelPatcher, vae: VAE, image: Tensor, prompt: tuple[Tensor, Tensor | None], full_size: tuple[int, int]
) -> Sample:
    latent = _latent(model, vae, image)
    vector = _size_vector(model, latent, prompt, full_size, target=(image.shape[1], image.shape[0]))
    latent = model.model.process_latent_in(latent)
    return Sample(_kept(latent), _kept(prompt[0]), None if vector is None else _kept(vector))


def _latent(model: ModelPatcher, vae: VAE, image: Tensor) -> Tensor:
    """(1, C, H, W), unscaled."""
    latent = vae.encode(image[None, :, :, :3])
    channels = model.model.latent_format.latent_channels
    if latent.shape[1] != channels:
        raise ValueError(
            f"vae: it makes latents of {latent.shape[1]} channels, the model needs {channels}; connect the VAE that "
            f"belongs to the model"
        )
    return latent


def _kept(batch: Tensor) -> Tensor:
    """The only row of a batch, fit for autograd, on the CPU."""
    with torch.inference_mode(False):
        return batch[0].float().cpu().clone()


def _size_vector(
    model: ModelPatcher,
    latent: Tensor,
    prompt: tuple[Tensor, Tensor | None],
    full_size: tuple[int, int],
    target: tuple[int, int],
) -> Tensor | None:
    """SDXL's pooled text and size conditioning, (1, A): sizes are (width, height) before and after downscaling."""
    conds = model.model.extra_conds(
        noise=latent,
        device=latent.device,
        cross_attn=prompt[0],
        pooled_output=prompt[1],
        width=full_size[0],
        height=full_size[1],
        target_width=target[0],
        target_height=target[1],
    )
    return conds["y"].cond if "y" in conds else None


@contextmanager
def trainable(model: ModelPatcher, quantization: str = "none") -> Iterator[Network]:
    """The model's own U-Net, alone on its device, its weights fit for autograd, attention by SDPA.

    Inside the block inference mode is off and gradients are on. Quantised or not, the weights have their own values
    afterwards, and where they are not quantised throughout.
    """
    patcher = model.clone(disable_dynamic=True) if model.is_dynamic() else model
    unet = patcher.model.diffusion_model
    try:
        with fit_for_autograd(patcher, unet, quantization, alone=True) as waiting:
            sampling = patcher.get_model_object("model_sampling")
            alphas_cumprod = 1 / (1 + sampling.sigmas.double().cpu().clone() ** 2)
            scheduler = noise_scheduler(alphas_cumprod, _prediction_type(patcher))
            dtype = patcher.model.get_dtype_inference()
            yield Network(unet, _predictor(patcher), scheduler, dtype, patcher.load_device, waiting)
    finally:
        if patcher is not model:
            unload(patcher)


@contextmanager
def autograd() -> Iterator[None]:
    """Inference mode off and gradients on, as in trainable()."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _predictor(patcher: ModelPatcher):
    unet, dtype = patcher.model.diffusion_model, patcher.model.get_dtype_inference()

    def predict(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        # Patches meant for the sampler (FreeU, SAG, ToMe ...) stay out: they expect its state or break autograd.
        options = {"optimized_attention_override": _sdpa}
        vector = {} if condition.vector is None else {"y": condition.vector.to(dtype)}
        return unet(
            x_t.to(dtype), t.float(), context=condition.context.to(dtype), transformer_options=options, **vector
        ).float()

    return predict


def _sdpa(_, *args, **kwargs) -> Tensor:
    return attention_pytorch(*args, **kwargs)


def lora_names(model: ModelPatcher) -> dict[str, str]:
    """kohya's name of every weight of the U-Net that diffusers knows, by ComfyUI's module name."""
    to_comfy = utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {
        comfy.removesuffix(".weight"): "lora_unet_" + diffusers.removesuffix(".weight").replace(".", "_")
        for diffusers, comfy in to_comfy.items()
        if diffusers.endswith(".weight")
    }


def with_lora(model: ModelPatcher, lora: dict[str, Tensor]) -> ModelPatcher:
    """A clone of the model that samples with the LoRA at strength 1, exactly as core's Load LoRA would make it."""
    return load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
