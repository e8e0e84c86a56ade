"""The demo under torchrun, with a real ComfyUI for each rank: the LoRA is that of one process, to the bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pack.workflows.runtime import ROOT, find_comfyui
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def learnt(ranks: int, folder: Path) -> dict:
    """What the demo learns in a few steps. Its ComfyUI is not the one that this checkout fetches for itself."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    options = ["--workflow", "pocket_train_and_save", "--steps", "6", "--out", str(folder / f"out{ranks}")]
    comfyui = folder / "ComfyUI"
    if not comfyui.exists():
        comfyui.symlink_to(find_comfyui(), target_is_directory=True)
    demo = subprocess.run(
        [sys.executable, *torchrun, str(ROOT / "workflows/demo.py"), *options],
        env=os.environ | {"COMFYUI_PATH": str(comfyui)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    (path,) = re.findall(r"^ +LoRA +(.+)$", demo.stdout, re.MULTILINE)
    try:
        return load_file(path)
    finally:
        Path(path).unlink()


def test_two_servers_train_what_one_trains(tmp_path):
    alone, together = (learnt(ranks, tmp_path) for ranks in (1, 2))
    assert alone.keys() == together.keys()
    assert all(alone[name].equal(together[name]) for name in alone)
