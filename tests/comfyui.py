"""The real ComfyUI for the tests: finds it, makes it importable, and starts servers on it with the checkout as a pack.

The fixtures are for conftest.py to import.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

try:
    from pack.workflows import client, runtime
except ImportError:  # used by a script, without conftest.py
    sys.path.append(str(Path(__file__).resolve().parents[1] / "workflows"))
    import client
    import runtime

PACK_NAME = "Edge-Tune.main"  # not the checkout's name, nor a Python name: nothing may depend on that
MODEL_FOLDERS = ("checkpoints", "loras", "embeddings", "clip_vision")


def comfyui_path() -> Path:
    """The ComfyUI the tests run against."""
    folder = runtime.find_comfyui()
    if folder is None:
        raise RuntimeError("There is no ComfyUI to test with: run tests/run.py, which fetches one, or set COMFYUI_PATH")
    return folder


def put_on_path() -> Path:
    """Make ComfyUI importable in this process, on the CPU unless there is a CUDA device."""
    import torch

    folder = comfyui_path()
    if sys.path[0] != str(folder):  # before the checkout, whose nodes/ would pass for ComfyUI's nodes.py
        sys.path.insert(0, str(folder))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    return folder


def start_server(
    folder: Path,
    *,
    pack_name: str | None = PACK_NAME,
    custom_nodes: Sequence[Path] = (),
    arguments: Sequence[str] = (),
) -> client.Server:
    """A server, for a `with` block, that has everything it reads and writes under `folder`, models included.

    custom_nodes are folders with further packs in them. Without a pack_name the checkout is not loaded.
    """
    (folder / "custom_nodes").mkdir(parents=True, exist_ok=True)
    for name in MODEL_FOLDERS:
        (folder / "models" / name).mkdir(parents=True, exist_ok=True)
    if pack_name:
        runtime.link_pack(folder / "custom_nodes", pack_name)
    return client.Server(
        comfyui_path(),
        folders={"base": folder} | {name: folder / name for name in ("input", "output", "user", "temp")},
        custom_nodes=custom_nodes,
        arguments=["--disable-api-nodes", *arguments],
        log=folder / "server.log",
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[client.Server]:
    """One server for all tests, with the checkout loaded as PACK_NAME; server.folders["base"] is its folder."""
    with start_server(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser's path. Where there is none the test is skipped, and fails on CI."""
    path = runtime.find_chromium()
    if path is None:
        reason = "no chromium or Chrome on the PATH (on Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
