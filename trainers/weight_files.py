"""Files of weights: safetensors that are whole or not there, under names every operating system takes."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

MAX_NAME_BYTES = 200  # file systems stop at 255, and the file is first written under a longer name
RESERVED = re.compile(r'[<>:"|?*\x00-\x1f]')  # in file names on Windows
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def save_tensors(
    socket: str,
    state: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str],
    overwrite: bool = False,
    rivals: Sequence[str] = (),
) -> Path:
    """Write the tensors, atomically; returns where: path, or path_2, path_3 ... if path is taken and to be kept.

    A name is also taken by files with one of the rivals' suffixes. ValueError, naming the socket, for values that are
    not finite; RuntimeError where the file cannot be written, as on a full disk.
    """
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(
            f"{socket}: {bad[0]} has values that are not finite as {state[bad[0]].dtype}; it was not saved"
        )
    try:
        return _written(state, path, metadata, overwrite, rivals)
    except OSError as error:
        raise RuntimeError(
            f"{socket}: it could not be written to {path} ({error}). Nothing there was changed. Free some space, or "
            "allow ComfyUI to write there, then press Run again: what has run before need not run anew"
        ) from error


def write_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """A file at this path. Raises OSError where it cannot be written, for which safetensors has its own error."""
    try:
        save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _written(
    state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str], overwrite: bool, rivals: Sequence[str]
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        write_safetensors(state, Path(temporary), metadata)
        return _publish(Path(temporary), path, overwrite, rivals)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _publish(temporary: Path, path: Path, overwrite: bool, rivals: Sequence[str]) -> Path:
    """Give the finished file its name; a hard link fails when the name is taken, so two runs cannot both get it."""
    os.chmod(temporary, 0o644)
    if overwrite:
        os.replace(temporary, path)
        return path
    number, candidate = 1, path
    while True:
        try:
            _check_rivals(candidate, rivals)
            _link(temporary, candidate)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")


def _check_rivals(candidate: Path, rivals: Sequence[str]) -> None:
    for suffix in rivals:
        if candidate.with_suffix(suffix).exists():
            raise FileExistsError(candidate.with_suffix(suffix))


def _link(temporary: Path, candidate: Path) -> None:
    try:
        os.link(temporary, candidate)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, such as exFAT
        if candidate.exists():
            raise FileExistsError(candidate) from None
        os.replace(temporary, candidate)


def safetensors_name(filename: str) -> Path:
    """filename as a relative path that every operating system takes, with .safetensors at the end.

    Raises ValueError for names that would leave the folder or that Windows cannot store.
    """
    parts = filename.replace("\\", "/").removesuffix(".safetensors").split("/")
    if not all(_is_portable(part) for part in parts):
        raise ValueError(
            f"filename: got {filename!r}; needs a name such as my_dog or pets/my_dog, without .. or an absolute path, "
            f'without any of < > : " | ? *, no part ending in a dot or a space or over {MAX_NAME_BYTES} bytes long'
        )
    return Path(*parts[:-1], f"{parts[-1]}.safetensors")


def _is_portable(part: str) -> bool:
    if len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return False
    reserved = RESERVED.search(part) or part.split(".")[0].lower() in RESERVED_NAMES
    return bool(part.strip()) and part[-1] not in " ." and not reserved
