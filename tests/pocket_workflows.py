"""Derives the workflows of the pocket model from those they are variants of, so that they differ in nothing else.

    python tests/pocket_workflows.py

writes workflows/pocket_*.json and their API twins again. Every setting in which they differ stands here.
"""

import json
import re
import uuid
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
PREFIX = "pocket_"
CHECKPOINT_LOADER, POCKET_LOADER = "CheckpointLoaderSimple", "EdgeTune_LoadPocketModel"
POCKET_TITLE = "Load Pocket Model"
NOT_NEEDED = "CLIPVisionLoader"  # the pocket world has judges of its own

# Class or title of a node -> its inputs with other values.
SETTINGS = {
    "EdgeTune_LoadSubjectImages": {
        "folder": "robot [pocket]",
        "instance_prompt": "a photo of a sks toy",
        "resolution": 128,
    },
    # At half size, 64 px, the model draws only heaps of blobs, and learns to.
    "EdgeTune_SelectiveTrainer": {
        "steps": 400,
        "rank": 16,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "low_res_ratio": 0.75,
        "zo_perturbations": 1,
    },
    "EdgeTune_HollowedNetTrainer": {
        "steps": 400,
        "rank": 16,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "cache_samples": 400,
    },
    "EdgeTune_ZOTextualInversion": {
        "token": "my_toy",
        "initial_word": "toy",
        "steps": 250,
        "learning_rate": 0.1,
        "zo_perturbations": 8,
        "captions": "one caption",
        "eval_every": 50,
    },
    "EdgeTune_PlanVRAM": {"resolution": 128, "rank": 16, "batch_size": 2, "low_res_ratio": 0.75},
    "EdgeTune_SaveLoRA": {"filename": "edgetune/my_toy"},
    "LoraLoader": {"lora_name": "edgetune/my_toy.safetensors"},
    "Prompt": {"text": "a photo of a sks toy on green grass"},
    "Prompt with the token": {"text": "a photo of a embedding:my_toy on green grass"},
    "Prompt without it": {"text": "a photo of a toy on green grass"},
    "Negative prompt": {"text": ""},  # the model was taught none
    "Picture size": {"width": 128, "height": 128, "batch_size": 4},
    "KSampler": {"cfg": 3, "sampler_name": "ddim", "scheduler": "simple"},
    "Prompt 1": {"text": "a photo of a sks toy on green grass"},  # grounds that no photo shows
    "Prompt 2": {"text": "a photo of a sks toy on a purple carpet"},
    "Prompt 3": {"text": "a photo of a sks toy on grey stones"},
    "EdgeTune_EvaluateSubject": {"features": "pocket judges"},
}

NOTES = {
    "train_and_compare": """## Train a LoRA of a toy and see what it learned

1. Press **Run**. Nothing has to be installed: the **pocket model** is a small one that comes with the pack.
2. Compare **Before** and **After** with **Photos**: prompt and seeds are the same, only the LoRA differs.
3. Choose another toy in **folder**, or write another **Prompt**. The model knows simple toys on simple grounds: \
grass, sand, snow, water, leaves, bricks, wood, tiles, carpet, cobblestones.

For photos of your own use the workflow **train_and_compare** with a real checkpoint.""",
    "evaluate_subject": """## Train a LoRA of a toy, and measure what it learned

1. Press **Run**. Nothing has to be installed: the **pocket model** is a small one that comes with the pack.
2. **Scores** says how near the pictures come to the photos, with an interval, and how near the photos come to each \
other. A picture can hardly come nearer than that.
3. Change a setting of the trainer and run again: it made a difference where the intervals part.

The *pocket judges* that compare know toys and nothing else. For photos of your own use the workflow \
**evaluate_subject** with a real checkpoint.""",
    "train_embedding": """## Learn a word for a toy

1. Press **Run**. Nothing has to be installed: the **pocket model** is a small one that comes with the pack.
2. Compare **Without the token** and **With the token** with **Photos**: seeds are the same, only the word differs.
3. Choose another toy in **folder**, or let the trainer take more **steps**.

One word cannot hold a whole toy: expect its colours rather than its parts. With **method** *gradient*, \
**learning_rate** 0.01 and 150 **steps** it learns more in less time here, in more memory. **Save Embedding** puts it \
where every **CLIP Text Encode** finds it. For photos of your own use the workflow **train_embedding** with a real \
checkpoint.""",
    "train_hollowed": """## Train a LoRA of a toy without the centre of the model

1. Press **Run**. Nothing has to be installed: the **pocket model** is a small one that comes with the pack.
2. The **Training report** says which blocks were left out, and how the memory compares with one forward pass.
3. Change **hollow_fraction** to leave out more or less, or choose another toy in **folder**.

**Before** and **After** have the same prompt and seeds; only the LoRA differs. For photos of your own use the \
workflow **train_hollowed** with a real checkpoint.""",
    "train_and_save": """## Train a LoRA of a toy and save it

1. Press **Run**. Nothing has to be installed: the **pocket model** is a small one that comes with the pack.
2. Choose another toy in **folder**, or train longer with **steps**.

**Save LoRA** puts the file where **Load LoRA** lists it. The workflow **pocket_use_trained_lora** makes pictures with \
it. For photos of your own use the workflow **train_and_save** with a real checkpoint.""",
    "memory_report": """## See where the memory of a training run goes

1. Press **Run**. Nothing has to be installed: the **pocket model** is a small one that comes with the pack.
2. **VRAM Report** shows what was held and when, and what it was: weights, LoRA, activations.

Lower **low_res_ratio** or turn on **gradient_checkpointing** and run again to see what each saves. No paper has \
figures for this model; with a real checkpoint, in the workflow **memory_report**, they stand beside.""",
    "plan_memory": """## See whether a training run fits, before you start it

1. Press **Run**. Nothing has to be installed: the **pocket model** is a small one that comes with the pack.
2. **Plan VRAM** counts what the run would take, in seconds and with nothing loaded; **VRAM Report** draws it.
3. Set **budget_gb** to less than that, in the plan and in the trainer: 0.09, for example. Both choose the same \
settings to keep to it.

The **Training report** says what was planned and what was taken. For photos of your own use the workflow \
**plan_memory** with a real checkpoint.""",
    "use_trained_lora": """## Make pictures with the LoRA of a toy

1. Run the workflow **pocket_train_and_save** first, then choose its LoRA in **Load LoRA**. New files are listed after \
you press **R**.
2. Write what you want to see. Call the toy what you called it in training: *sks toy*.
3. Press **Run**.

If the toy is too weak or too strong in the pictures, change **strength_model**.""",
}


def canvas_variant(name: str) -> dict:
    """The workflow as the canvas stores it, with the pocket model in place of a checkpoint."""
    workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"edgetune/{PREFIX}{name}"))
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            node["widgets_values"] = [NOTES[name]]
        elif node["type"] == CHECKPOINT_LOADER:
            _replace_loader(node)
        else:
            _set_widgets(node, _settings(node["type"], node.get("title")))
    _remove(workflow, NOT_NEEDED)
    return workflow


def api_variant(name: str) -> dict:
    """The same in API form."""
    prompt = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"] == CHECKPOINT_LOADER:
            node |= {"inputs": {}, "class_type": POCKET_LOADER, "_meta": {"title": POCKET_TITLE}}
        node["inputs"] |= _settings(node["class_type"], node["_meta"]["title"])
    gone = {node_id for node_id, node in prompt.items() if node["class_type"] == NOT_NEEDED}
    for node in prompt.values():
        node["inputs"] = {
            name: value for name, value in node["inputs"].items() if not (isinstance(value, list) and value[0] in gone)
        }
    return {node_id: node for node_id, node in prompt.items() if node_id not in gone}


def canvas_text(workflow: dict) -> str:
    """JSON with places, sizes and links on one line each."""
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    numbers = rf'\[\s+{number}(?:,\s+{number})*(?:,\s+"[A-Z_]+")?\s+\]'
    return re.sub(numbers, lambda found: json.dumps(json.loads(found[0])), json.dumps(workflow, indent=2)) + "\n"


def api_text(prompt: dict) -> str:
    return json.dumps(prompt, indent=2) + "\n"


def _settings(node_type: str, title: str | None) -> dict:
    return SETTINGS.get(node_type, {}) | SETTINGS.get(title, {})


def _replace_loader(node: dict) -> None:
    node |= {"type": POCKET_LOADER, "inputs": [], "properties": {"Node name for S&R": POCKET_LOADER}}
    for output in node["outputs"]:
        output["name"] = output["name"].lower()
    del node["widgets_values"]


def _remove(workflow: dict, node_type: str) -> None:
    """Take out such nodes and what leads from them."""
    gone = {node["id"] for node in workflow["nodes"] if node["type"] == node_type}
    cut = {link for link, source, *_ in workflow["links"] if source in gone}
    workflow["nodes"] = [node for node in workflow["nodes"] if node["id"] not in gone]
    workflow["links"] = [link for link in workflow["links"] if link[0] not in cut]
    for node in workflow["nodes"]:
        for slot in node["inputs"]:
            slot["link"] = None if slot["link"] in cut else slot["link"]


def _set_widgets(node: dict, values: dict) -> None:
    """A seed's widget is followed by its "control after"."""
    names = []
    for slot in node["inputs"]:
        if "widget" in slot:
            names += [slot["name"], None] if slot["name"] == "seed" else [slot["name"]]
    for name, value in values.items():
        node["widgets_values"][names.index(name)] = value


def main() -> None:
    for name in NOTES:
        (FOLDER / f"{PREFIX}{name}.json").write_text(canvas_text(canvas_variant(name)), encoding="utf-8")
        (FOLDER / "api" / f"{PREFIX}{name}.json").write_text(api_text(api_variant(name)), encoding="utf-8")


if __name__ == "__main__":
    main()
