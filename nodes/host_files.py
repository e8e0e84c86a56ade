"""ComfyUI's folders: names that came from a workflow become paths that stay inside them."""

import os
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ..trainers.pocket.subjects import PHOTOS, SUBJECTS

POCKET = " [pocket]"  # behind the names of subjects that come with the pack, as in ComfyUI's "x.png [output]"
SHIPPED = {name + POCKET: PHOTOS.resolve() / name for name in SUBJECTS}


class PhotoFolder(NamedTuple):
    """A folder with photos, and the folder that links in it may not leave."""

    path: Path
    root: Path


def photo_folders() -> list[str]:
    """What photo_folder takes: all folders inside the input folder, then the subjects that come with the pack."""
    own = folder_paths.get_input_subfolders()  # with forward slashes
    return own + [name for name in SHIPPED if name not in own]


def photo_folder(name: str) -> PhotoFolder:
    """The folder of this name inside the input folder, or else the shipped subject's. ValueError where neither is."""
    name, root = str(name), input_root()
    own = _inside(root, name)
    if own is not None and os.path.isdir(own):  # False, not an error, for a name too long
        return PhotoFolder(own, root)
    if name in SHIPPED:
        return PhotoFolder(SHIPPED[name], PHOTOS.resolve())
    if name.endswith(POCKET):
        raise ValueError(f"folder: the pack has no subject {name!r}; it has {', '.join(SHIPPED)}")
    if own is None:
        raise ValueError(f"folder: got {name!r}; needs a sub-folder of ComfyUI's input folder, {root}")
    raise ValueError(
        f"folder: there is no folder {name!r} in {root}; put the photos there, or reload the list (press R)"
    )


def input_root() -> Path:
    """ComfyUI's input folder, links resolved."""
    return Path(folder_paths.get_input_directory()).resolve()


def models_root(kind: str) -> Path:
    """The folder that ComfyUI lists first for models of this kind (loras), links resolved; it need not exist yet."""
    return Path(folder_paths.get_folder_paths(kind)[0]).resolve()


def model_file(kind: str, name: Path) -> Path:
    """The place of this name inside that folder. ValueError where a link in it leads outside."""
    root = models_root(kind)
    path = _inside(root, str(name))
    if path is None:
        raise ValueError(f"filename: {name} leads out of ComfyUI's {kind} folder, {root}; choose another name")
    return path


def _inside(root: Path, name: str) -> Path | None:
    """root / name with links resolved, or None if that is root itself, outside of it, or no path at all."""
    try:
        path = (root / name).resolve()
    except (ValueError, OSError, RuntimeError):  # a null byte, too long a name, links in a circle
        return None
    return path if root in path.parents else None
