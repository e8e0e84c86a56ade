"""Activations on disk: tensors of one shape in one file, written once, memory-mapped to be read in any order.

Beside the raw numbers stands a JSON that says what they are and for whom: a fingerprint of model, photos and settings.
It is removed before the first tensor is written and written after the last one, so a file without it is incomplete,
whatever its size.
"""

import errno
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from .atomic import replacing

DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Layout:
    """What a file holds: that many tensors of one shape."""

    count: int
    shape: tuple[int, ...]
    dtype: str = "float16"  # key of DTYPES

    def __post_init__(self):
        if self.count < 1 or not self.shape or min(self.shape) < 1:
            raise ValueError(f"activations: got {self.count} of shape {self.shape}; needs at least one, of one value")
        if self.dtype not in DTYPES:
            raise ValueError(f"activations: got dtype {self.dtype}, needs to be one of {', '.join(DTYPES)}")

    @property
    def tensor_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def file_bytes(self) -> int:
        return self.count * self.tensor_bytes

    def offset(self, index: int) -> int:
        """Where a tensor starts in the file, in bytes."""
        if not 0 <= index < self.count:
            raise IndexError(f"activations: got index {index}, there are {self.count}")
        return index * self.tensor_bytes


class ActivationWriter:
    """Fills a file, in any order."""

    def __init__(self, file: BinaryIO, layout: Layout):
        self.layout = layout
        self.missing = set(range(layout.count))  # indices that were not written yet
        self._file = file

    def write(self, index: int, activation: Tensor) -> None:
        """Store one tensor of the layout's shape, from any device and dtype."""
        if tuple(activation.shape) != self.layout.shape:
            raise ValueError(f"activation {index}: got {tuple(activation.shape)}, needs {self.layout.shape}")
        values = activation.detach().to("cpu", DTYPES[self.layout.dtype]).contiguous()
        if not torch.isfinite(values).all():
            raise ValueError(f"activation {index}: it has values that are not finite as {self.layout.dtype}")
        self._file.seek(self.layout.offset(index))
        # Written, not mapped: on a full disk this raises, where a store to mapped memory kills the process.
        self._file.write(values.numpy())
        self.missing.discard(index)


class Activations:
    """A complete file to read from. Leave its `with` block before the file is removed: Windows keeps mapped ones."""

    def __init__(self, path: Path, layout: Layout):
        self.layout = layout
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), layout.file_bytes, access=mmap.ACCESS_READ)

    def __enter__(self) -> "Activations":
        return self

    def __exit__(self, *_) -> None:
        self._map.close()

    def __len__(self) -> int:
        return self.layout.count

    def read(self, index: int) -> Tensor:
        """A copy of one tensor, on the CPU, of the layout's shape and dtype."""
        count = math.prod(self.layout.shape)
        values = np.frombuffer(self._map, self.layout.dtype, count, self.layout.offset(index))
        return torch.from_numpy(values.reshape(self.layout.shape).copy())

    def prefetch(self, index: int) -> None:
        """Have the system fetch one tensor from the disk in the background, to be read soon."""
        start = self.layout.offset(index)
        if hasattr(self._map, "madvise"):  # not on Windows
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + self.layout.tensor_bytes - page)


@contextmanager
def writing(path: Path, layout: Layout, fingerprint: str) -> Iterator[ActivationWriter]:
    """A file of full size to write all tensors into: complete after the block, gone when the block raises.

    What was at path is removed. Raises RuntimeError at once, before anything is computed, when the disk has not enough
    space, when it cannot be written to later, and after the block when tensors are missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    discard(path)
    try:
        with open(path, "xb") as file:
            _allocate(file, path.parent, layout.file_bytes)
            writer = ActivationWriter(file, layout)
            yield writer
            if writer.missing:
                raise RuntimeError(f"{path.name}: {len(writer.missing)} of {layout.count} activations are missing")
            file.flush()
            os.fsync(file.fileno())  # before the JSON calls it complete
        _write_description(path, layout, fingerprint)
    except BaseException as error:
        discard(path)
        if isinstance(error, OSError):
            raise _no_room(path.parent, layout.file_bytes, error) from error
        raise


def stored(path: Path, fingerprint: str) -> Activations | None:
    """The activations at path, if they are complete and were written with this fingerprint."""
    try:
        about = json.loads(_description(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if about["fingerprint"] != fingerprint:
        return None
    layout = Layout(about["count"], tuple(about["shape"]), about["dtype"])
    is_whole = path.is_file() and path.stat().st_size == layout.file_bytes
    return Activations(path, layout) if is_whole else None


def discard(path: Path) -> None:
    """Remove the activations at path, if there are any."""
    _description(path).unlink(missing_ok=True)  # first: from here on the file counts as incomplete
    path.unlink(missing_ok=True)


def _description(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_description(path: Path, layout: Layout, fingerprint: str) -> None:
    with replacing(_description(path)) as partial:
        partial.write_text(json.dumps({"fingerprint": fingerprint, **asdict(layout)}), encoding="utf-8")


def _allocate(file: BinaryIO, folder: Path, size: int) -> None:
    """Reserve the whole size on the disk."""
    if size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS and Windows
        file.truncate(size)


def _no_room(folder: Path, size: int, error: OSError) -> RuntimeError:
    free = shutil.disk_usage(folder).free
    return RuntimeError(
        f"The activation cache needs {size:,} bytes in {folder}, where {free:,} are free ({error.strerror}). Free some "
        "space there, or cache fewer samples"
    )
