"""Prompts that a server has to refuse, and words of its answer: by what is wrong with them."""

from copy import deepcopy
from math import inf, nan
from pathlib import Path

from bad_inputs import make_folders
from pack.workflows.prompts import Prompt
from short_runs import HOLLOWED, SELECTIVE, TOKEN, training

NEEDS = "needs to be a Stable Diffusion 1.x"
MODELS = {  # of LoadOddModel -> words
    "flux": f"model: got Flux, {NEEDS}",
    "sd3": f"model: got SD3, {NEEDS}",
    "inpainting": "model: its U-Net takes 9 channels where 4 were expected, as inpainting",
    "quantised": "model: its layers are quantised; load the float16",
    "lcm": "model: its sampling",
}
SETTINGS = {
    SELECTIVE: {
        "steps": 0, "rank": -3, "learning_rate": nan, "zo_learning_rate": inf, "zo_epsilon": nan,
        "zo_perturbations": 0, "low_res_ratio": 1.5, "k": nan, "t_mid": 2000, "strategy": "magic", "seed": -1,
        "alpha": nan, "target_modules": "everything", "batch_size": 0, "quantization": "int2", "budget_gb": nan,
        "resume": "../../etc", "save_every": -1,
    },
    HOLLOWED: {
        "hollow_fraction": nan, "cache_samples": 0, "mode": "magic", "sampling": "magic", "cache_dtype": "int8",
        "budget_gb": 1e-6, "steps": "many",
    },
    TOKEN: {
        "token": "my dog", "initial_word": " ", "learning_rate": nan, "t_low": 950, "zo_epsilon": inf,
        "num_vectors": 0, "method": "magic", "subspace_nu": nan, "resume": "token_x/step_000001",
    },
}  # fmt: skip
TOKENS = ("../x", "a:b", "con", "")  # names that no file or prompt may have
FILES = ("../../x", "/etc/x", "a:b", "con", "x" * 300)  # of Save LoRA and Save Embedding
SUBJECT = {  # inputs of Load Subject Images -> words
    "folder": {"../..": "sub-folder of ComfyUI", "/etc": "sub-folder of ComfyUI", "nowhere": "no folder 'nowhere'"},
    "resolution": {63: "resolution", 5000: "resolution"},
    "instance_prompt": {"  ": "instance_prompt"},
    "crop": {"magic": "crop"},
}


def table(inputs: Path) -> dict[str, tuple[Prompt, str]]:
    """All of them; folders of photos that cannot be used are made in the input folder."""
    cases = {f"{kind}, {name}": (training(name, kind), words) for kind, words in MODELS.items() for name in SETTINGS}
    del cases[f"quantised, {TOKEN}"]  # which is learnt on such a model, too
    for trainer, settings in SETTINGS.items():
        for name, value in settings.items():
            cases[f"{trainer}, {name} {value}"] = (training(trainer, "mini", **{name: value}), name)
    for value in TOKENS:
        cases[f"token {value!r}"] = (training(TOKEN, "mini", token=value), f"token: got {value!r}")
    for name, values in SUBJECT.items():
        for value, words in values.items():
            prompt = training(SELECTIVE, "mini")
            prompt["subject"]["inputs"][name] = value
            cases[f"{name} {value!r}"] = (prompt, words)
    for folder, words in make_folders(inputs).items():
        cases[f"photos: {folder}"] = (training(SELECTIVE, "mini", folder), words)
    return cases | saving() | wiring()


def saving() -> dict[str, tuple[Prompt, str]]:
    cases = {}
    for node, trainer, socket in (("SaveLoRA", SELECTIVE, "lora"), ("SaveEmbedding", TOKEN, "embedding")):
        prompt = training(trainer, "mini")
        for filename in FILES:
            inputs = {socket: ["trainer", 1], "filename": filename}
            prompt["save"] = {"class_type": f"EdgeTune_{node}", "inputs": inputs}
            cases[f"{node} {filename:.10}"] = (deepcopy(prompt), "filename: got")
    return cases


def wiring() -> dict[str, tuple[Prompt, str]]:
    """Sockets left open or wired to another kind, parts of two models, and the nodes that do not train."""
    loose, crossed, mixed = (training(SELECTIVE, "mini") for _ in range(3))
    del loose["trainer"]["inputs"]["subject"]
    crossed["trainer"]["inputs"]["model"] = ["model", 1]
    mixed["other"] = {"class_type": "LoadOddModel", "inputs": {"kind": "sdxl"}}
    mixed["trainer"]["inputs"]["clip"] = ["other", 1]
    steps = {"steps": 10, "t_max": 1000, "t_mid": 750, "k": 0.05}
    plan = {"model": ["model", 0], "method": "Selective BP/ZO Trainer", "resolution": 64, "budget_gb": 0}
    flux = {"model": {"class_type": "LoadOddModel", "inputs": {"kind": "flux"}}}
    return {
        "no subject": (loose, "subject"),
        "a CLIP as the model": (crossed, "model.*mismatch|mismatch.*model"),
        "the CLIP of another model": (mixed, "clip: its tokens are 64 wide, the model needs 32"),
        "preview: k": ({"1": {"class_type": "EdgeTune_DTAPPreview", "inputs": steps | {"k": nan}}}, "k: got nan"),
        "preview: t_mid": ({"1": {"class_type": "EdgeTune_DTAPPreview", "inputs": steps | {"t_mid": -1}}}, "t_mid"),
        "plan: Flux": (flux | {"plan": {"class_type": "EdgeTune_PlanVRAM", "inputs": plan}}, MODELS["flux"]),
        "plan: method": (
            {**flux, "plan": {"class_type": "EdgeTune_PlanVRAM", "inputs": plan | {"method": "?"}}},
            "method",
        ),
        "report: nothing to draw": ({"1": {"class_type": "EdgeTune_VRAMReport", "inputs": {}}}, "report"),
        "evaluate: no pictures": ({"1": {"class_type": "EdgeTune_EvaluateSubject", "inputs": {}}}, "images"),
    }
