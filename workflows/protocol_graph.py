"""A workflow of any trainer, cut down to one picture and its scores: what the protocol runs again and again."""

import re

import prompts
from prompts import TRAINERS, Prompt, UnfitWorkflow, needed, only

TOKEN_TRAINER, POCKET_LOADER = "EdgeTune_ZOTextualInversion", "EdgeTune_LoadPocketModel"
PHOTO_LOADER, EVALUATE = "EdgeTune_LoadSubjectImages", "EdgeTune_EvaluateSubject"
PICTURE, SCORES = "protocol picture", "protocol scores"  # ids of the nodes that are added
RARE = "sks"


def measured(workflow: Prompt, features: str, clip_vision: str | None = None, clip: str | None = None) -> Prompt:
    """The part of the workflow that trains and draws with the result, one picture, and Evaluate Subject behind it.

    What is drawn is what the first VAE Decode behind the trainer gives. clip_vision and clip are files for CLIP's score
    of the prompt. Raises UnfitWorkflow where there is no trainer, no photo loader, or no such picture.
    """
    trainer, loader = only(workflow, TRAINERS), only(workflow, {PHOTO_LOADER})
    decoders = [node_id for node_id, node in workflow.items() if node["class_type"].startswith("VAEDecode")]
    drawn = next((node_id for node_id in decoders if trainer in needed(workflow, node_id)), None)
    if drawn is None:
        raise UnfitWorkflow("The workflow decodes no picture that depends on its trainer")
    kept = needed(workflow, drawn) | needed(workflow, loader)
    prompt = {
        node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in workflow.items() if node_id in kept
    }
    prompts.fill(prompt, {("EmptyLatentImage", "batch_size"): 1})
    prompt[PICTURE] = _node("SaveImage", images=[drawn, 0], filename_prefix="edgetune_protocol/picture")
    prompt[SCORES] = _node(EVALUATE, images=[drawn, 0], subject=[loader, 0], features=features, format="json")
    for socket, file, loading in (
        ("clip_vision", clip_vision, {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": clip_vision}}),
        ("clip", clip, {"class_type": "CLIPLoader", "inputs": {"clip_name": clip, "type": "stable_diffusion"}}),
    ):
        if file:
            prompt[f"protocol {socket}"] = loading
            prompt[SCORES]["inputs"][socket] = [f"protocol {socket}", 0]
    return prompt


def name_subject(prompt: Prompt, name: str, kind: str, folder: str) -> str:
    """Let the workflow learn the photos of a folder as a thing of that kind; returns what prompts then call it."""
    prompts.fill(prompt, {(PHOTO_LOADER, "folder"): folder})
    prompts.rename_subject(prompt, f"{RARE} {kind}")
    if not prompts.has(prompt, TOKEN_TRAINER):
        return f"{RARE} {kind}"
    token = "protocol_" + re.sub(r"\W", "_", name, flags=re.ASCII)
    prompts.fill(prompt, {(TOKEN_TRAINER, "token"): token, (TOKEN_TRAINER, "initial_word"): kind})
    return f"embedding:{token}"


def ask(prompt: Prompt, text: str, plain: str, seed: int, scores_prompt: bool) -> None:
    """Draw this text with this seed; plain is the text as CLIP is to compare it, without the subject's own name."""
    prompts.fill_positive(prompt, text)
    for node in list(prompt.values()):
        if "latent_image" in node["inputs"]:
            for name in {"seed", "noise_seed"} & set(node["inputs"]):
                prompts.set_input(prompt, node, name, seed)
    prompt[SCORES]["inputs"]["prompt"] = plain if scores_prompt else ""


def _node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}
