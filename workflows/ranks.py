"""The demo under torchrun: every rank has a ComfyUI of its own, and all train as one (trainers/ranks.py).

    .venv/bin/torchrun --nproc-per-node 2 workflows/demo.py --workflow pocket_train_embedding

The first rank does what the demo does; the others train alike, on the next GPU where there are several, and throw away
what they learn. Run the demo once without torchrun before, which sets up what it needs.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from prompts import TRAINERS, Prompt, needed, only

SWITCH = "EDGETUNE_RANKS"  # tells the nodes to train with the other ranks (nodes/host_ranks.py)


def is_among_ranks() -> bool:
    """Whether torchrun started this with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this is the rank, or the one process, whose results count."""
    return os.environ.get("RANK", "0") == "0"


def server_options(scratch: Path, flags: Sequence[str], is_on_gpu: bool) -> dict:
    """For client.Server: each rank has its GPU, and all but the first have output folders and logs of their own."""
    if not is_among_ranks():
        return {}
    os.environ[SWITCH] = "1"  # a server inherits it
    device = ("--cuda-device", os.environ["LOCAL_RANK"]) if is_on_gpu else ()
    options = {"arguments": [*flags, *device]}
    if not is_first():
        options["folders"] = {name: scratch / name for name in ("output", "temp")}
        options["log"] = scratch / "server.log"
    return options


def training_alone(prompt: Prompt) -> Prompt:
    """The workflow without what comes of its training: nothing is drawn, and no LoRA or embedding saved, twice."""
    trainer = only(prompt, TRAINERS)
    kept = {node_id: prompt[node_id] for node_id in needed(prompt, trainer)}
    return kept | {"end": {"class_type": "PreviewAny", "inputs": {"source": [trainer, 2]}}}  # a prompt, or losses
