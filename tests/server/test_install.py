"""The README's other way in: cloned into the custom_nodes folder of a ComfyUI that exists already."""

import json
import shutil
import subprocess
import sys

import pytest
from comfyui import start_server
from pack.workflows.runtime import ROOT

NODES = {  # as the design has them
    "EdgeTune_LoadPocketModel": "Load Pocket Model",
    "EdgeTune_LoadSubjectImages": "Load Subject Images",
    "EdgeTune_SelectiveTrainer": "Selective BP/ZO Trainer",
    "EdgeTune_HollowedNetTrainer": "Hollowed Net Trainer",
    "EdgeTune_ZOTextualInversion": "Quantize + ZO Textual Inversion",
    "EdgeTune_SaveLoRA": "Save LoRA",
    "EdgeTune_SaveEmbedding": "Save Embedding",
    "EdgeTune_DTAPPreview": "DTAP Scheduler Preview",
    "EdgeTune_PlanVRAM": "Plan VRAM",
    "EdgeTune_VRAMReport": "VRAM Report",
    "EdgeTune_EvaluateSubject": "Evaluate Subject",
}


def test_all_nodes_are_there(server):
    """An exception in comfy_entrypoint would be one line in the log and no nodes."""
    info = server.client.object_info()
    ours = {key: value["display_name"] for key, value in info.items() if key.startswith("EdgeTune_")}
    assert ours == NODES
    assert all(info[key]["category"] == "training/EdgeTune" for key in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edgetune", "Edge-Tune.2"])
def test_a_clone_works_under_any_name(tmp_path, name):
    """git clone and pip install -r requirements.txt; what is committed is all there is."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    target = tmp_path / "custom_nodes" / name
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)], check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "-r", str(target / "requirements.txt")]
    subprocess.run(install, check=True)
    with start_server(tmp_path, pack_name=None) as server:
        assert NODES.keys() <= server.client.object_info().keys()
        assert f"/extensions/{name}/training.js" in json.loads(server.client.get("/extensions"))
        assert server.client.get(f"/extensions/{name}/training.js")
        assert "train_and_compare" in json.loads(server.client.get("/api/workflow_templates"))[name]
