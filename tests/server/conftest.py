"""What tests with a server need in it beside the pocket model: pictures, and a checkpoint the stock loader takes."""

from collections.abc import Iterator

import numpy as np
import pytest
from checkpoints import cached_checkpoint
from comfyui import start_server
from pack.workflows.client import Server
from PIL import Image
from short_runs import PACKS

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"  # as the workflows name it


@pytest.fixture
def checkpoint(server) -> Iterator[None]:
    """The small stand-in, in Load Checkpoint's list under the name that the workflows use."""
    link = server.folders["base"] / "models/checkpoints" / CHECKPOINT
    link.symlink_to(cached_checkpoint("standin"))
    yield
    link.unlink()


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Four small pictures of nothing in particular."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 80, 96, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture(scope="session")
def odd_server(tmp_path_factory) -> Iterator[Server]:
    """A server that has LoadOddModel, too: a few megabytes of a model, with which runs take a second."""
    with start_server(tmp_path_factory.mktemp("odd") / "base", custom_nodes=[PACKS]) as running:
        yield running
