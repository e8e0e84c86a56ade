"""A token's vectors, one set for each text encoder, and all their numbers in a row.

Names of text encoders are those of ComfyUI's embedding files: clip_l (SD 1.x), clip_h (SD 2.x), clip_l and clip_g
(SDXL). Shapes: n vectors, w numbers in each, d = sum of n * w, K tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Vectors = Mapping[str, Tensor]  # (n, w) by text encoder, or (K, n, w)
Shapes = Mapping[str, torch.Size]  # (n, w) by text encoder


def packed(vectors: Vectors) -> Tensor:
    """A copy of one token as (d,) float32 numbers on the CPU."""
    return torch.cat([vector.detach().float().cpu().flatten() for vector in vectors.values()])


def unpacked(numbers: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Tokens (K, n, w) by text encoder from their numbers (K, d)."""
    parts = numbers.split([shape.numel() for shape in shapes.values()], dim=1)
    return {name: part.reshape(len(numbers), *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
