"""A node run as ComfyUI runs it: in inference mode, with the hidden inputs it asks for."""

import torch
from comfy_api.latest import io


def run_node(node: type[io.ComfyNode], **inputs) -> io.NodeOutput:
    """What the node gives for these inputs; its id is 7."""
    prepared = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
    with torch.inference_mode():
        return prepared.EXECUTE_NORMALIZED(**inputs)
