"""Where a hollowed run keeps what it takes off the device: activations on disk, the centre's weights in RAM."""

from pathlib import Path

import folder_paths
import torch

# Not model_management.unet_offload_device(), which is the GPU itself when ComfyUI runs with --highvram: there, too,
# this trainer is chosen for the memory it saves.
OFFLOAD_DEVICE = torch.device("cpu")


def cache_path() -> Path:
    """The file of cached activations, one for all runs; ComfyUI empties its temp folder when it starts and ends."""
    return Path(folder_paths.get_temp_directory()) / "edgetune" / "hollowed_net.bin"
