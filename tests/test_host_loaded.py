"""What a report says was loaded in ComfyUI beside the model: names and sizes as ComfyUI has them."""

import tiny
import torch
from comfy import model_management
from pack.nodes import host
from pack.nodes.host_loaded import other_models


def test_other_models_are_named_with_their_bytes_and_the_model_itself_is_not():
    model, clip, other = tiny.tiny_model("sd1"), tiny.tiny_clip("sd1"), tiny.tiny_model("sdxl")
    model_management.unload_all_models()
    assert other_models(model) == ()
    with torch.inference_mode():
        model_management.load_models_gpu([model.clone(), clip.patcher, other], force_full_load=True)
    found = host.model_facts(model).other_models
    assert found == other_models(model)
    assert {loaded.name: loaded.bytes for loaded in found} == {
        "SDXL": sum(tensor.nbytes for tensor in other.model.state_dict().values()),
        "SD1ClipModel": sum(tensor.nbytes for tensor in clip.cond_stage_model.state_dict().values()),
    }
    assert [loaded.bytes for loaded in found] == sorted((loaded.bytes for loaded in found), reverse=True)
    model_management.unload_all_models()
