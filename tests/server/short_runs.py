"""Prompts that train for a moment and do nothing else, from the twins of the pocket workflows."""

import json
from pathlib import Path

from pack.workflows.prompts import Prompt, is_link, read_workflow

PACKS = Path(__file__).with_name("packs")  # for a server's custom_nodes
SELECTIVE, HOLLOWED, TOKEN = "EdgeTune_SelectiveTrainer", "EdgeTune_HollowedNetTrainer", "EdgeTune_ZOTextualInversion"
TWINS = {SELECTIVE: "pocket_train_and_save", HOLLOWED: "pocket_train_hollowed", TOKEN: "pocket_train_embedding"}
SHORT = {
    SELECTIVE: {"strategy": "random", "rank": 4, "batch_size": 1, "low_res_ratio": 0.5},
    HOLLOWED: {"rank": 4, "batch_size": 1, "cache_samples": 4},
    TOKEN: {"zo_perturbations": 2, "eval_samples": 1, "eval_every": 10},
}
RESOLUTION = 64


def training(trainer: str, model: str | None = None, folder: str = "robot [pocket]", **settings) -> Prompt:
    """Loader "model", "subject", "trainer" and "report"; model names one of LoadOddModel's, else it is the pocket's."""
    twin = read_workflow(TWINS[trainer])
    inputs = next(node["inputs"] for node in twin.values() if node["class_type"] == trainer)
    inputs = {name: value for name, value in inputs.items() if not is_link(value)} | SHORT[trainer] | {"steps": 2}
    links = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "subject": ["subject", 0]}
    loader, chosen = ("LoadOddModel", {"kind": model}) if model else ("EdgeTune_LoadPocketModel", {})
    photos = {"folder": folder, "instance_prompt": "a photo of a sks toy", "resolution": RESOLUTION}
    return {
        "model": {"class_type": loader, "inputs": chosen},
        "subject": {"class_type": "EdgeTune_LoadSubjectImages", "inputs": photos},
        "trainer": {"class_type": trainer, "inputs": inputs | links | settings},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["trainer", 4 if trainer == TOKEN else 3]}},
    }


def report(entry: dict) -> dict:
    """The trainer's report in the history of a prompt."""
    return json.loads(entry["outputs"]["trainer"]["report"][0])
