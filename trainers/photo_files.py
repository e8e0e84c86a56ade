"""Which files of a folder are photos, in which order, and whether they changed since the last look."""

import hashlib
import os
import re
from pathlib import Path

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".heic", ".heif", ".hif", ".avif",
}  # fmt: skip
CAPTION_SUFFIX = ".txt"
MASK_ENDING = ".mask"  # 01.mask.png is the mask of 01.jpg


def photo_paths(folder: Path) -> list[Path]:
    """The photos of a folder (not of folders in it, not hidden ones) in natural order: 2.jpg before 10.jpg."""
    return [path for path in _pictures(folder) if not _is_mask(path)]


def mask_paths(folder: Path) -> dict[str, Path]:
    """The mask files of a folder by the photo name they belong to, without its ending."""
    return {path.stem[: -len(MASK_ENDING)]: path for path in _pictures(folder) if _is_mask(path)}


def caption_paths(folder: Path) -> dict[str, Path]:
    """The caption files of a folder by the photo name they belong to, without its ending."""
    return {path.stem: path for path in _visible(folder) if path.suffix.lower() == CAPTION_SUFFIX}


def folder_fingerprint(folder: Path) -> str:
    """A hash that changes when a photo, mask or caption file is added, renamed, resized, rewritten or removed."""
    files = [path for path in _visible(folder) if path.suffix.lower() in {*IMAGE_SUFFIXES, CAPTION_SUFFIX}]
    return hashlib.sha256(repr([_identity(path) for path in files]).encode(errors="surrogatepass")).hexdigest()


def check_inside(path: Path, root: Path) -> None:
    """ValueError if the file is a link to somewhere outside of root, or no plain file."""
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(root)):
        raise ValueError(f"a link to {target}, outside of {root}; copy the file here instead")
    if not target.is_file():
        raise ValueError("a link to a file that is not there" if path.is_symlink() else "not a plain file")


def _pictures(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _is_mask(path: Path) -> bool:
    return path.stem.lower().endswith(MASK_ENDING)


def _visible(folder: Path) -> list[Path]:
    # A broken link is no directory and stays: it is reported, not dropped.
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir()]
    return sorted(files, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())]


def _identity(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError:  # a broken link, or gone since it was listed
        return path.name, -1, -1
    return path.name, stat.st_size, stat.st_mtime_ns
