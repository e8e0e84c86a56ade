"""Training with other ComfyUIs as one, where workflows/demo.py was started by torchrun."""

import atexit
import logging
import os
from datetime import timedelta

import torch
from torch import distributed as dist

logger = logging.getLogger(__name__)

SWITCH = "EDGETUNE_RANKS"  # others may start ComfyUI under torchrun for purposes of their own
TIMEOUT = timedelta(minutes=10)  # for a rank that died to be missed by the others


def join() -> None:
    """Set up the process group, once, if there is to be one; torchrun's variables say with whom."""
    if os.getenv(SWITCH) != "1" or dist.is_initialized():
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)  # its threads would now and then abort a process that ends with them
    logger.info("EdgeTune: rank %d of %d", dist.get_rank(), dist.get_world_size())
