"""What every test with a server needs in it: a checkpoint the stock loader takes, and pictures."""

import numpy as np
import pytest
from checkpoints import cached_checkpoint
from comfyui import start_server
from PIL import Image

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"  # as the workflows name it


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server whose Load Checkpoint offers the small stand-in under the name that the workflows use."""
    folder = tmp_path_factory.mktemp("server")
    server = start_server(folder)
    (folder / "models/checkpoints" / CHECKPOINT).symlink_to(cached_checkpoint("standin"))
    with server as running:
        yield running


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Four small pictures of nothing in particular."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 80, 96, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]
