"""Load Pocket Model on a real ComfyUI, among stock nodes."""

import io

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

PROMPT = {
    "1": {"class_type": "EdgeTune_LoadPocketModel", "inputs": {}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a photo of a red cube on grass"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 1,
            "steps": 4,
            "cfg": 3.0,
            "sampler_name": "ddim",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "pocket"}},
}


def test_it_is_listed_as_a_loader_without_inputs(server):
    listed = server.client.object_info("EdgeTune_LoadPocketModel")
    assert listed["display_name"] == "Load Pocket Model" and listed["category"] == "training/EdgeTune"
    assert not listed["input"].get("required") and listed["output"] == ["MODEL", "CLIP", "VAE"]


def test_stock_nodes_draw_a_picture_with_it(server):
    log_before = server.log.stat().st_size
    entry = server.client.run(PROMPT, timeout_s=120)
    (image,) = entry["outputs"]["7"]["images"]
    assert Image.open(io.BytesIO(server.client.download(image))).size == (128, 128)
    log = server.log.read_bytes()[log_before:].decode(errors="replace").lower()
    assert "missing" not in log and "unexpected" not in log
