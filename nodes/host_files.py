"""ComfyUI's folders: names that came from a workflow become paths that stay inside them."""

import os
from pathlib import Path

import folder_paths


def input_root() -> Path:
    """ComfyUI's input folder, links resolved."""
    return Path(folder_paths.get_input_directory()).resolve()


def input_subfolders() -> list[str]:
    """Names of all folders inside the input folder, with forward slashes."""
    return folder_paths.get_input_subfolders()


def input_folder(name: str) -> Path:
    """The folder of this name inside the input folder. ValueError where there is none, or it leads outside."""
    root = input_root()
    path = _inside(root, str(name))
    if path is None:
        raise ValueError(f"folder: got {name!r}; needs a sub-folder of ComfyUI's input folder, {root}")
    if not os.path.isdir(path):  # False, not an error, for a name too long
        raise ValueError(
            f"folder: there is no folder {name!r} in {root}; put the photos there, or reload the list (press R)"
        )
    return path


def loras_root() -> Path:
    """The loras folder that ComfyUI lists first, links resolved; it need not exist yet."""
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def lora_file(name: Path) -> Path:
    """The place of this name inside the loras folder. ValueError where a link in it leads outside."""
    path = _inside(loras_root(), str(name))
    if path is None:
        raise ValueError(f"filename: {name} leads out of ComfyUI's loras folder, {loras_root()}; choose another name")
    return path


def _inside(root: Path, name: str) -> Path | None:
    """root / name with links resolved, or None if that is root itself, outside of it, or no path at all."""
    try:
        path = (root / name).resolve()
    except (ValueError, OSError, RuntimeError):  # a null byte, too long a name, links in a circle
        return None
    return path if root in path.parents else None
