"""Writes checkpoint files with true names and shapes and random weights; the smallest is the stand-in for SD 1.5.

The stock Load Checkpoint takes it for SD 1.5: ComfyUI's detection fixes the width of the U-Net and of the
text, and reads the number of levels and blocks off the file. Here that is two levels with one block each, the true
text encoder, and a tiny autoencoder: 170M parameters, 340 MB. Its pictures are noise.
"""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

BLOCK_SIZE = 2**22  # random numbers drawn; larger tensors repeat them
EMBEDDING_STD = 0.02
DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}

UNET = {  # what SD 1.x, 2.x and XL have in common
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "model_channels": 320,
    "use_temporal_attention": False,
}
SMALL_UNET = UNET | {
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 768,
    "adm_in_channels": None,
    "use_linear_in_transformer": False,
}


def make_standin(path: Path) -> None:
    """Write the small SD 1.5 checkpoint. ComfyUI has to be importable."""
    from comfy.supported_models import SD15
    from comfy.taesd.taesd import TAESD

    with torch.device("meta"):
        vae = TAESD(latent_channels=4)
    vae.vae_scale = nn.Parameter(torch.tensor(0.18215))  # as ComfyUI sets it for SD 1.x
    vae.vae_shift = nn.Parameter(torch.tensor(0.0))
    write_random(path, checkpoint_layout(SD15(SMALL_UNET), vae))


def checkpoint_layout(config, vae: nn.Module) -> dict[str, Tensor]:
    """Names in the file and tensors without values, for one of comfy.supported_models and an autoencoder.

    What is not a weight, a scale or a table of positions, has its value.
    """
    config.set_inference_dtype(torch.float16, None)
    unet = config.get_model({}, device="meta").diffusion_model
    clip = config.clip_target().clip(device="meta", dtype=torch.float16)
    return {
        **config.process_unet_state_dict_for_saving(unet.state_dict()),
        **config.process_clip_state_dict_for_saving(clip.state_dict()),
        **config.process_vae_state_dict_for_saving(vae.state_dict()),
    }


def write_random(path: Path, layout: Mapping[str, Tensor], seed: int = 0) -> None:
    """Write a safetensors file, weights in float16, that appears under its name only when it is whole."""
    rng = np.random.default_rng(seed)
    block = np.tile(rng.standard_normal(BLOCK_SIZE, dtype=np.float32), 2)  # any BLOCK_SIZE of it in a row are new
    tensors = dict(sorted(layout.items(), key=lambda item: -_stored_dtype(item[1]).itemsize))  # keeps all aligned
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # another process may be at the same
    try:
        with partial.open("wb") as file:
            file.write(_header(tensors))
            for name, tensor in tensors.items():
                file.write(_values(name, tensor, block[rng.integers(BLOCK_SIZE) :]))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """The length and the JSON that a safetensors file begins with, padded to 8 bytes."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        dtype = _stored_dtype(tensor)
        begin, end = end, end + tensor.numel() * dtype.itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(entries).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def _stored_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float16 if tensor.is_meta else tensor.dtype


def _values(name: str, tensor: Tensor, normal: np.ndarray) -> memoryview:
    """Bytes that keep activations near 1: norms are 1, biases 0, weights have a variance of 1 / fan-in."""
    if not tensor.is_meta:
        return tensor.detach().contiguous().numpy().reshape(-1).view(np.uint8).data
    if tensor.ndim < 2:
        return np.full(tensor.numel(), float(name.endswith("weight")), dtype=np.float16).data
    std = EMBEDDING_STD if "embedding" in name else (tensor.numel() / tensor.shape[0]) ** -0.5
    scaled = (normal[: min(tensor.numel(), BLOCK_SIZE)] * std).astype(np.float16)
    return np.resize(scaled, tensor.numel()).data
