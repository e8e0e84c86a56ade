"""The pocket model as Load Checkpoint would hand it over, had ComfyUI a configuration for its size.

Names, devices, precision and the way to load again follow comfy.sd.load_state_dict_guess_config of ComfyUI 0.30. The
weights are loaded strictly: a tensor missing or left over is an error here, where core only logs it.
"""

import re
from collections.abc import Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import folder_paths
import torch
from comfy import model_management, sd1_clip, utils
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.supported_models import SD15
from comfy.supported_models_base import ClipTarget
from comfy.taesd.taesd import TAESD
from safetensors import SafetensorError
from torch import Tensor, nn

from ..trainers.pocket import diffusion, text
from ..trainers.pocket.weights import FILE, load_weights

GET_BACK = "Get it back with `git checkout -- trainers/pocket` in the pack's folder, or install the pack again."
HEADS = diffusion.CONFIG["attention_head_dim"]


class PocketSD1(SD15):
    """SD 1.x with another number of attention heads, which its class fixes."""

    unet_extra_config = {"num_heads": HEADS, "num_head_channels": -1}


class Weights(NamedTuple):
    """State dicts under the names of the file, and the file for messages."""

    path: Path
    unet: dict[str, Tensor]
    text_encoder: dict[str, Tensor]
    vae: dict[str, Tensor]


def load_pocket(path: Path = FILE) -> tuple[ModelPatcher, CLIP, VAE]:
    """The pocket model's MODEL, CLIP and VAE. Raises RuntimeError, naming the file, if it is not there or not whole."""
    weights = _read(path)
    model, clip, vae = _model(weights), _clip(weights), _vae(weights)
    model.cached_patcher_init = (_model_again, (path,))
    clip.patcher.cached_patcher_init = (_clip_patcher_again, (path,))
    vae.patcher.cached_patcher_init = (_vae_patcher_again, (path,))
    return model, clip, vae


def _model_again(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    return _model(_read(path), disable_dynamic)


def _clip_patcher_again(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    return _clip(_read(path), disable_dynamic).patcher


def _vae_patcher_again(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    return _vae(_read(path)).patcher  # as in core, a VAE is dynamic or not by itself


def _read(path: Path) -> Weights:
    if not path.is_file():
        raise RuntimeError(f"The pocket model's weights are missing: there is no file {path}. {GET_BACK}")
    try:
        return Weights(path, **load_weights(path))
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> RuntimeError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:400].rstrip(".")
    size = path.stat().st_size
    return RuntimeError(f"The pocket model's weights in {path} ({size:,} bytes) are damaged: {reason}. {GET_BACK}")


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, assign: bool = False) -> None:
    try:
        network.load_state_dict(state, strict=True, assign=assign)
    except RuntimeError as error:  # names or shapes
        raise _broken(path, error) from error


def _model(weights: Weights, disable_dynamic: bool = False) -> ModelPatcher:
    config = PocketSD1(unet_config())
    supported, load_device = list(config.supported_inference_dtypes), model_management.get_torch_device()
    dtype = model_management.unet_dtype(
        model_params=utils.calculate_parameters(weights.unet),
        supported_dtypes=supported,
        weight_dtype=utils.weight_dtype(weights.unet),
    )
    manual_cast = model_management.unet_manual_cast(dtype, load_device, supported)
    # older ComfyUIs take no device
    device = {"device": load_device} if "device" in signature(config.set_inference_dtype).parameters else {}
    config.set_inference_dtype(dtype, manual_cast, **device)
    offload_device = model_management.unet_offload_device()
    network = config.get_model({}, device=offload_device)
    patcher_class = ModelPatcher if disable_dynamic else CoreModelPatcher
    patcher = patcher_class(network, load_device=load_device, offload_device=offload_device)
    names = utils.unet_to_diffusers(config.unet_config)
    state = {names.get(name, name): tensor for name, tensor in weights.unet.items()}
    _fill(network.diffusion_model, state, weights.path, assign=patcher.is_dynamic())
    return patcher


def unet_config() -> dict:
    """What ComfyUI's detection would find out about the U-Net."""
    widths, layers = diffusion.CONFIG["block_out_channels"], diffusion.CONFIG["layers_per_block"]
    with_text = len(widths) - 1  # SD 1's deepest level has no attention
    return {
        "image_size": 32,
        "in_channels": diffusion.CONFIG["in_channels"],
        "out_channels": diffusion.CONFIG["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [1] * (layers * with_text) + [0] * layers,
        "transformer_depth_output": [1] * ((layers + 1) * with_text) + [0] * (layers + 1),
        "transformer_depth_middle": 1,
        "context_dim": diffusion.CONFIG["cross_attention_dim"],
        "adm_in_channels": None,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "legacy": False,
    }


def _clip(weights: Weights, disable_dynamic: bool = False) -> CLIP:
    tokenizer = partial(sd1_clip.SDTokenizer, embedding_size=text.WIDTH)
    clip = CLIP(
        ClipTarget(partial(sd1_clip.SD1Tokenizer, tokenizer=tokenizer), sd1_clip.SD1ClipModel),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={"clip_l_model_config": text.CONFIG},
        disable_dynamic=disable_dynamic,
    )
    state = {f"clip_l.transformer.{name}": tensor for name, tensor in weights.text_encoder.items()}
    # Of no use to SD 1, whose checkpoints have neither; but the network has them.
    state["clip_l.transformer.text_projection.weight"] = torch.eye(text.WIDTH)
    state["clip_l.logit_scale"] = clip.cond_stage_model.clip_l.logit_scale
    _fill(clip.cond_stage_model, state, weights.path, assign=clip.patcher.is_dynamic())
    return clip


def _vae(weights: Weights) -> VAE:
    state = {_taesd_name(name): tensor for name, tensor in weights.vae.items()}
    # What SD 1's latent format multiplies latents with, so that the U-Net sees them as the encoder makes them.
    state |= {"vae_scale": torch.tensor(SD15.latent_format().scale_factor), "vae_shift": torch.tensor(0.0)}
    _fill(TAESD(latent_channels=diffusion.CONFIG["in_channels"]), state, weights.path)  # VAE only logs what is wrong
    return VAE(sd=state)


def _taesd_name(name: str) -> str:
    """ComfyUI's name of one of AutoencoderTiny's tensors: encoder.layers.N.rest becomes taesd_encoder.N.rest."""
    known = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
    if known is None:
        return name
    part, number, rest = known.groups()
    return f"taesd_{part}.{int(number) + (part == 'decoder')}.{rest}"  # the decoder's first layer is its clamp
