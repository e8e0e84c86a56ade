"""LoRA files: tensors and metadata.

Metadata keys are kohya-ss/sd-scripts' `ss_*` and Stability's ModelSpec 1.0.1 `modelspec.*`, the two that model
browsers read; `edgetune.report` holds the whole report of the run as JSON. All values are strings.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

from .report import Report
from .weight_files import save_tensors

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BASE_VERSIONS = {  # by token width, in kohya's words where there are any
    128: "edgetune_pocket",
    768: "sd_v1",
    1024: "sd_v2",
    2048: "sdxl_base_v1-0",
}
ARCHITECTURES = {
    "edgetune_pocket": "edgetune-pocket",
    "sd_v1": "stable-diffusion-v1",
    "sd_v2": "stable-diffusion-v2-512",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
}
SD2_V_PREDICTION = "stable-diffusion-v2-768-v"
PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word, ModelSpec's word


def save_lora(
    lora: Mapping[str, Tensor], path: Path, dtype: torch.dtype, metadata: Mapping[str, str], overwrite: bool = False
) -> Path:
    """Write the LoRA, atomically; returns where: path, or path_2, path_3 ... if path is taken and to be kept."""
    state = {key: value.detach().to("cpu", dtype) for key, value in lora.items()}
    return save_tensors("lora", state, path, metadata, overwrite)


def lora_metadata(lora: Mapping[str, Tensor], name: str, report: Report | None) -> dict[str, str]:
    """What the file says about itself: from its own tensors, and from the report where there is one."""
    downs = [value for key, value in lora.items() if key.endswith(".lora_down.weight")]
    if not downs:
        raise ValueError("lora: it has no lora_down tensors; connect the lora output of a trainer")
    alphas = [value.item() for key, value in lora.items() if key.endswith(".alpha")]
    rank = downs[0].shape[0]
    base = report.base_model if report else _base_version(lora)
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alphas[0] if alphas else rank),
        "ss_base_model_version": base,
        "ss_v2": str(base == "sd_v2"),
        "ss_output_name": name,
        **model_spec(name, base, "lora", report),
        **(_training_metadata(report) if report else {}),
    }


def _base_version(lora: Mapping[str, Tensor]) -> str:
    keys = [key for key in lora if key.endswith("attn2_to_k.lora_down.weight")]
    return BASE_VERSIONS.get(lora[keys[0]].shape[1], "unknown") if keys else "unknown"


def model_spec(name: str, base: str, kind: str, report: Report | None) -> dict[str, str]:
    """ModelSpec's keys, and the report. base is of BASE_VERSIONS, kind is ModelSpec's: lora, textual-inversion."""
    is_sd2_v = base == "sd_v2" and report is not None and report.prediction_type == "v_prediction"
    architecture = SD2_V_PREDICTION if is_sd2_v else ARCHITECTURES.get(base, "unknown")
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/{kind}",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if report is None:
        return metadata
    return metadata | {
        "modelspec.prediction_type": PREDICTION_TYPES[report.prediction_type],
        "modelspec.trigger_phrase": report.token.prompt if report.token else report.instance_prompt,
        "modelspec.resolution": f"{report.resolution}x{report.resolution}",
        "modelspec.description": report.summary(),
        "edgetune.report": replace(report, timeline=()).to_json(),
    }


def _training_metadata(report: Report) -> dict[str, str]:
    settings = report.settings
    return {
        "ss_steps": str(report.steps),
        "ss_learning_rate": str(settings.get("learning_rate", "")),
        "ss_seed": str(settings.get("seed", "")),
        "ss_training_comment": report.summary(),
        "ss_tag_frequency": json.dumps({"edgetune": {report.instance_prompt: 1}}),
    }
