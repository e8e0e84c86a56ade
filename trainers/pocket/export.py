"""The pocket model as a folder that diffusers loads, StableDiffusionPipeline.from_pretrained(folder)."""

import shutil
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from .diffusion import scheduler
from .modules import load_modules
from .text import LENGTH
from .weights import FILE, load_weights

VOCABULARY_FILES = ("vocab.json", "merges.txt")


def export_pipeline(folder: Path, tokenizer_folder: Path, weights: Path = FILE) -> None:
    """Write the folder, in float32. tokenizer_folder has CLIP's VOCABULARY_FILES.

    Raises FileExistsError rather than mix its files with others.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: name a new one")
    pipeline(tokenizer_folder, weights).save_pretrained(folder, safe_serialization=True)
    # transformers 4 cannot read what 5 writes of these two; both read the names and files that SD 1 is published with.
    state = {name: tensor.float() for name, tensor in load_weights(weights)["text_encoder"].items()}
    save_file(state, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    for name in VOCABULARY_FILES:
        shutil.copyfile(tokenizer_folder / name, folder / "tokenizer" / name)


def pipeline(tokenizer_folder: Path, weights: Path = FILE) -> StableDiffusionPipeline:
    """The pocket model in diffusers, in float32."""
    modules = load_modules(weights)
    return StableDiffusionPipeline(
        vae=modules.autoencoder,
        text_encoder=modules.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_folder, model_max_length=LENGTH),
        unet=modules.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
