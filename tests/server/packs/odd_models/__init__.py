"""A node for the test server: models that trainers take, and models that they have to refuse, all a few megabytes."""

import importlib.util
from pathlib import Path
from unittest.mock import patch

import comfy.supported_models
import torch
from comfy.model_patcher import CoreModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

spec = importlib.util.spec_from_file_location("edgetune_tiny_models", Path(__file__).parents[3] / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

CPU = torch.device("cpu")
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 16, "theta": 10000,
    "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6],
    "patch_size": 2, "guidance_embed": False, "qkv_bias": True, "txt_ids_dims": [], "dtype": torch.float32,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "patch_size": 2, "depth": 1, "pos_embed_scaling_factor": None, "pos_embed_max_size": 8,
    "num_patches": 64, "adm_in_channels": 32, "dtype": torch.float32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 64}},
}  # fmt: skip


def transformer(family: str, sizes: dict) -> CoreModelPatcher:
    config = getattr(comfy.supported_models, family)(dict(sizes))
    config.set_inference_dtype(torch.float32, None)
    return CoreModelPatcher(config.get_model({}, device=CPU), CPU, CPU)


def inpainting() -> CoreModelPatcher:
    with patch.dict(tiny.COMMON, in_channels=9):
        return tiny.tiny_model("mini")


def quantised() -> CoreModelPatcher:
    with patch.object(comfy.supported_models.SD15, "quant_config", {"mixed_ops": True}, create=True):
        return tiny.tiny_model("mini")


MODELS = {
    "mini": lambda: tiny.tiny_model("mini"),
    "sdxl": lambda: tiny.tiny_model("sdxl"),
    "inpainting": inpainting,
    "quantised": quantised,
    "lcm": lambda: ModelSamplingDiscrete().patch(tiny.tiny_model("mini"), "lcm", False)[0],
    "flux": lambda: transformer("Flux", FLUX),
    "sd3": lambda: transformer("SD3", SD3),
}


class LoadOddModel:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(MODELS),)}}

    def load(self, kind):
        return MODELS[kind](), tiny.tiny_clip("sdxl" if kind == "sdxl" else "mini"), tiny.tiny_vae()


NODE_CLASS_MAPPINGS = {"LoadOddModel": LoadOddModel}
