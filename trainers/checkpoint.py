"""LoRA files: safetensors with metadata, complete or not there at all.

Metadata keys are kohya-ss/sd-scripts' `ss_*` and Stability's ModelSpec 1.0.1 `modelspec.*`, the two that model
browsers read; `edgetune.report` holds the whole report of the run as JSON. All values are strings.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .report import Report

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BASE_VERSIONS = {  # by token width, in kohya's words where there are any
    128: "edgetune_pocket",
    768: "sd_v1",
    1024: "sd_v2",
    2048: "sdxl_base_v1-0",
}
ARCHITECTURES = {
    "edgetune_pocket": "edgetune-pocket/lora",
    "sd_v1": "stable-diffusion-v1/lora",
    "sd_v2": "stable-diffusion-v2-512/lora",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base/lora",
}
SD2_V_PREDICTION = "stable-diffusion-v2-768-v/lora"
PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word, ModelSpec's word
MAX_NAME_BYTES = 200  # file systems stop at 255, and the file is first written under a longer name
RESERVED = re.compile(r'[<>:"|?*\x00-\x1f]')  # in file names on Windows
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def save_lora(
    lora: Mapping[str, Tensor], path: Path, dtype: torch.dtype, metadata: Mapping[str, str], overwrite: bool = False
) -> Path:
    """Write the LoRA, atomically; returns where: path, or path_2, path_3 ... if path is taken and to be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in lora.items()}
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"lora: {bad[0]} has values that are not finite as {dtype}; it was not saved")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        save_file(state, temporary, metadata=dict(metadata))
        return _publish(Path(temporary), path, overwrite)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _publish(temporary: Path, path: Path, overwrite: bool) -> Path:
    """Give the finished file its name; a hard link fails when the name is taken, so two runs cannot both get it."""
    os.chmod(temporary, 0o644)
    if overwrite:
        os.replace(temporary, path)
        return path
    number, candidate = 1, path
    while True:
        try:
            _link(temporary, candidate)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")


def _link(temporary: Path, candidate: Path) -> None:
    try:
        os.link(temporary, candidate)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, such as exFAT
        if candidate.exists():
            raise FileExistsError(candidate) from None
        os.replace(temporary, candidate)


def lora_file_name(filename: str) -> Path:
    """filename as a relative path that every operating system takes, with .safetensors at the end.

    Raises ValueError for names that would leave the folder or that Windows cannot store.
    """
    parts = filename.replace("\\", "/").removesuffix(".safetensors").split("/")
    if not all(_is_portable(part) for part in parts):
        raise ValueError(
            f"filename: got {filename!r}; needs a name such as my_dog or pets/my_dog, without .. or an absolute path, "
            f'without any of < > : " | ? *, no part ending in a dot or a space or over {MAX_NAME_BYTES} bytes long'
        )
    return Path(*parts[:-1], f"{parts[-1]}.safetensors")


def _is_portable(part: str) -> bool:
    if len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return False
    reserved = RESERVED.search(part) or part.split(".")[0].lower() in RESERVED_NAMES
    return bool(part.strip()) and part[-1] not in " ." and not reserved


def lora_metadata(lora: Mapping[str, Tensor], name: str, report: Report | None) -> dict[str, str]:
    """What the file says about itself: from its own tensors, and from the report where there is one."""
    downs = [value for key, value in lora.items() if key.endswith(".lora_down.weight")]
    if not downs:
        raise ValueError("lora: it has no lora_down tensors; connect the lora output of a trainer")
    alphas = [value.item() for key, value in lora.items() if key.endswith(".alpha")]
    rank = downs[0].shape[0]
    base = report.base_model if report else _base_version(lora)
    is_sd2_v = base == "sd_v2" and report is not None and report.prediction_type == "v_prediction"
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alphas[0] if alphas else rank),
        "ss_base_model_version": base,
        "ss_v2": str(base == "sd_v2"),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": SD2_V_PREDICTION if is_sd2_v else ARCHITECTURES.get(base, "unknown/lora"),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return metadata | (_report_metadata(report) if report else {})


def _base_version(lora: Mapping[str, Tensor]) -> str:
    keys = [key for key in lora if key.endswith("attn2_to_k.lora_down.weight")]
    return BASE_VERSIONS.get(lora[keys[0]].shape[1], "unknown") if keys else "unknown"


def _report_metadata(report: Report) -> dict[str, str]:
    settings = report.settings
    return {
        "ss_steps": str(report.steps),
        "ss_learning_rate": str(settings.get("learning_rate", "")),
        "ss_seed": str(settings.get("seed", "")),
        "ss_training_comment": report.summary(),
        "ss_tag_frequency": json.dumps({"edgetune": {report.instance_prompt: 1}}),
        "modelspec.prediction_type": PREDICTION_TYPES[report.prediction_type],
        "modelspec.trigger_phrase": report.instance_prompt,
        "modelspec.resolution": f"{report.resolution}x{report.resolution}",
        "modelspec.description": report.summary(),
        "edgetune.report": report.to_json(),
    }
