"""A learnt token as it travels between nodes, and as a file that ComfyUI, diffusers and other programs read.

The file holds emb_params where there is one text encoder (SD 1.x, 2.x), and clip_l and clip_g for SDXL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .checkpoint import BASE_VERSIONS, model_spec
from .report import Report
from .saving import Product
from .token_prompts import check_token_name
from .weight_files import safetensors_name, save_tensors

ONE_ENCODER = "emb_params"
OTHER_SUFFIXES = (".pt", ".bin")  # of embeddings that prompts would call by the same name


@dataclass(frozen=True)
class Embedding:
    """A token: what prompts call it, its vectors, and where they come from."""

    name: str
    vectors: Mapping[str, Tensor]  # (n, w) float32 by text encoder: clip_l, clip_h, clip_g
    report: Report | None = None


def embedding_file_name(filename: str, embedding: Embedding) -> Path:
    """filename as a relative path whose last part prompts can call; the token's own name where it is empty."""
    path = safetensors_name(filename.strip() or embedding.name)
    for part in (*path.parts[:-1], path.stem):
        try:
            check_token_name(part)
        except ValueError as error:
            raise ValueError(f"filename: got {filename!r}; {error}") from error
    return path


def save_embedding(embedding: Embedding, path: Path, overwrite: bool = False) -> Path:
    """Write the file, atomically, with every bit of the vectors; returns where, as save_tensors() does."""
    product = as_file(embedding, path.stem)
    return save_tensors("embedding", product.tensors, path, product.metadata, overwrite, OTHER_SUFFIXES)


def as_file(embedding: Embedding, name: str) -> Product:
    """What the file of this name holds."""
    vectors = {name: vector.detach().cpu() for name, vector in embedding.vectors.items()}
    state = vectors if len(vectors) > 1 else dict(zip([ONE_ENCODER], vectors.values(), strict=True))
    return Product(state, _metadata(name, embedding))


def _metadata(name: str, embedding: Embedding) -> dict[str, str]:
    width = sum(vector.shape[-1] for vector in embedding.vectors.values())
    report = embedding.report
    base = report.base_model if report else BASE_VERSIONS.get(width, "unknown")
    return model_spec(name, base, "textual-inversion", report)
