"""Where a hollowed run keeps the activations that stand in for what it leaves out: on disk."""

from pathlib import Path

import folder_paths


def cache_path() -> Path:
    """The file of cached activations, one for all runs; ComfyUI empties its temp folder when it starts and ends."""
    return Path(folder_paths.get_temp_directory()) / "edgetune" / "hollowed_net.bin"
