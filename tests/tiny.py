"""Random models of a few million parameters with the block structure of SD 1.5, SD 2.1, SDXL and SSD-1B.

Built in a third of a second and accepted by every stock node. Import after ComfyUI is on the path (tests/comfyui.py).
"""

import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import pytest
import torch
from comfy.model_base import ModelType
from comfy.supported_models_base import ClipTarget
from comfy.taesd.taesd import TAESD
from comfy.text_encoders.sd2_clip import SD2ClipModel, SD2Tokenizer

KINDS = ("sd1", "sd2", "sdxl", "ssd1b")
SD1_FIRST = [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
WIDTH = 32  # of each text encoder
COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
SD1_BLOCKS = {
    "channel_mult": [1, 2, 2, 2],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
}
SDXL_BLOCKS = {
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
}
SDXL_INPUTS = {"context_dim": 2 * WIDTH, "adm_in_channels": WIDTH + 6 * 256, "num_classes": "sequential"}
MINI_BLOCKS = {
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1] * 4,
    "transformer_depth_middle": 1,
}
UNETS = {
    "mini": MINI_BLOCKS | {"context_dim": WIDTH, "use_linear_in_transformer": False, "adm_in_channels": None},
    "sd1": SD1_BLOCKS | {"context_dim": WIDTH, "use_linear_in_transformer": False, "adm_in_channels": None},
    "sd2": SD1_BLOCKS | {"context_dim": WIDTH, "use_linear_in_transformer": True, "adm_in_channels": None},
    "sdxl": SDXL_BLOCKS | SDXL_INPUTS | {"use_linear_in_transformer": True},
    "ssd1b": SDXL_BLOCKS
    | SDXL_INPUTS
    | {
        "use_linear_in_transformer": True,
        "transformer_depth_middle": -1,
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 1, 1],
    },
}
CONFIGS = {
    "mini": comfy.supported_models.SD15,  # SD 1 with a third of its blocks, for tests of many runs
    "sd1": comfy.supported_models.SD15,
    "sd2": comfy.supported_models.SD20,
    "sdxl": comfy.supported_models.SDXL,
    "ssd1b": comfy.supported_models.SSD1B,
}
TEXT_CONFIG = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "projection_dim": WIDTH,
}


@torch.inference_mode()  # as ComfyUI's loaders run
def tiny_model(kind: str, *, seed: int = 0, v_prediction: bool = False, dtype: torch.dtype = torch.float32):
    """A MODEL. Its cached_patcher_init makes the same one again, as core's trainer wants."""
    config = CONFIGS[kind](COMMON | UNETS[kind])
    config.unet_config |= (
        {"num_heads": 2, "num_head_channels": -1} if kind in ("sd1", "mini") else {"num_head_channels": 16}
    )
    config.unet_config["dtype"] = dtype
    config.set_inference_dtype(dtype, None)
    config.model_type = lambda *_: ModelType.V_PREDICTION if v_prediction else ModelType.EPS
    model = config.get_model({}, device=torch.device("cpu"))
    _randomise(model.diffusion_model, seed)
    patcher = comfy.model_patcher.CoreModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    patcher.cached_patcher_init = (_again, (kind, seed, v_prediction, dtype))
    return patcher


def _again(kind, seed, v_prediction, dtype, disable_dynamic=False):
    return tiny_model(kind, seed=seed, v_prediction=v_prediction, dtype=dtype)


@torch.inference_mode()
def tiny_clip(kind: str, *, seed: int = 1) -> comfy.sd.CLIP:
    """A CLIP with the real tokenizer and random text encoders."""
    target = {
        "sd1": ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "mini": ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sd2": ClipTarget(SD2Tokenizer, SD2ClipModel),
        "sdxl": ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }["sdxl" if kind == "ssd1b" else kind]
    names = {"sd1": ["clip_l"], "mini": ["clip_l"], "sd2": ["clip_h"]}.get(kind, ["clip_l", "clip_g"])
    options = {f"{name}_model_config": TEXT_CONFIG for name in names}
    if kind == "sd2":
        options |= {"model_name": "clip_h"}
    clip = comfy.sd.CLIP(target, model_options=options | {"dtype": torch.float32})
    _randomise(clip.cond_stage_model, seed)
    return clip


@torch.inference_mode()
def tiny_vae(*, seed: int = 2) -> comfy.sd.VAE:
    """A VAE of TAESD's shape."""
    network = TAESD(latent_channels=4)
    _randomise(network, seed)
    return comfy.sd.VAE(sd=network.state_dict(), dtype=torch.float32)


def _randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations near order one; norms at identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:  # TAESD's scale and shift
            continue
        if parameter.ndim == 1:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            fan_in = parameter[0].numel()
            values = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
            parameter.data.copy_(values)
