"""Whether a stored result still belongs to these weights, photos and settings: one short text for all of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def fingerprint(unet: nn.Module, tensors: Iterable[Tensor | None], settings: Mapping[str, object]) -> str:
    """SHA-256 over the weights' checksums, the bytes of the (small) tensors and the settings, as hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([weight_checksums(unet), settings]).encode())
    for tensor in tensors:
        digest.update(b"none" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor is not None:
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sketch(tensors: Iterable[Tensor]) -> list[float]:
    """Sixteen mean magnitudes: other numbers give others, and rounding does not."""
    row = torch.cat([tensor.detach().float().flatten().cpu() for tensor in tensors])
    return [part.abs().mean().item() for part in row.chunk(16)]


def weight_checksums(unet: nn.Module) -> list[list]:
    """Name, shape, dtype and checksum of every parameter."""
    parameters = dict(unet.named_parameters())
    sums = torch.stack([_bits(parameter.detach()) for parameter in parameters.values()]).tolist()  # one copy off a GPU
    return [[name, [*p.shape], str(p.dtype), sum] for (name, p), sum in zip(parameters.items(), sums, strict=True)]


def _bits(parameter: Tensor) -> Tensor:
    """The sum of all bits, read as numbers of 8 bytes: any one change counts.

    As fast as memory, where a hash of gigabytes would take seconds, and on a GPU a copy of them.
    """
    flat = parameter.clone() if parameter.storage_offset() or not parameter.is_contiguous() else parameter
    raw = flat.reshape(-1).view(torch.uint8)
    whole = len(raw) // 8 * 8
    return raw[:whole].view(torch.int64).sum() + raw[whole:].sum(dtype=torch.int64)
