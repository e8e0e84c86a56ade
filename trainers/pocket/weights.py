"""The pocket model's one file: three parts under the names diffusers and transformers give them, in float16.

unet.* is a UNet2DConditionModel, vae.* an AutoencoderTiny, text_encoder.* a CLIPTextModel. Of the table of words the
file has only the rows that were learnt; the others come from a seed.
"""

import hashlib
from pathlib import Path

from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from .text import LEVEL, inner, learnt_ids, seeded_table

FILE = Path(__file__).with_name("pocket.safetensors")
TABLE = f"{LEVEL}embeddings.token_embedding.weight"
ROWS = f"{LEVEL}embeddings.token_embedding.rows"  # of TABLE


def save_weights(path: Path, unet: UNet2DConditionModel, text: CLIPTextModel, autoencoder: AutoencoderTiny) -> None:
    """Write the file. text has the rows of LearntRows."""
    parts = {
        "unet": unet.state_dict(),
        "text_encoder": inner(text).state_dict(prefix=LEVEL),
        "vae": autoencoder.state_dict(),
    }
    tensors = {
        f"{part}.{name}": t for part, state in parts.items() for name, t in state.items() if t.is_floating_point()
    }
    save_file({name: t.detach().half().cpu().contiguous() for name, t in tensors.items()}, path, {"format": "pt"})


def load_weights(path: Path = FILE) -> dict[str, dict[str, Tensor]]:
    """State dicts of unet, text_encoder and vae, in float16, the table of words whole."""
    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "text_encoder": {}, "vae": {}}
    for name, tensor in load_file(path).items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    table = seeded_table().half()
    table[learnt_ids()] = parts["text_encoder"].pop(ROWS)
    parts["text_encoder"][TABLE] = table
    return parts


def checksum(path: Path = FILE) -> str:
    """SHA-256 of the file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
