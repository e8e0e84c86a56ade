"""What a sweep has to do: a workflow filled in for each subject and setting, from folders of photos or from a table."""

import copy
import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import photos
import prompts
from demo import CHECKPOINT_LOADER, PHOTO_LOADER
from prompts import Prompt
from runtime import SetupError

SUBJECT, TOKEN = "subject", "token"  # columns of a table; all others are NODE.INPUT
CAPTIONS = ".txt"
PLAN = "EdgeTune_PlanVRAM"
PLANNED = "sweep plan"  # id of the node that plans
METHODS = {  # as Plan VRAM calls them
    "EdgeTune_SelectiveTrainer": "Selective BP/ZO Trainer",
    "EdgeTune_HollowedNetTrainer": "Hollowed Net Trainer",
    "EdgeTune_ZOTextualInversion": "Quantize + ZO Textual Inversion",
}
SAVERS = ("EdgeTune_SaveLoRA", "EdgeTune_SaveEmbedding")
SIZES = (  # what Plan VRAM takes of a trainer's inputs
    "rank batch_size low_res_ratio strategy hollow_fraction target_modules gradient_checkpointing quantization "
    "zo_perturbations candidates difference budget_gb preset clip"
).split()


class Request(NamedTuple):
    """A line of the table: what to learn, and what to set."""

    subject: str  # empty: what the workflow names
    folder: Path | None  # None: a toy that comes with the pack, or the workflow's
    token: str
    settings: dict[str, str]  # NODE.INPUT -> value


class Job(NamedTuple):
    """One run of the workflow. Its key changes with all that it depends on, and with nothing else."""

    key: str
    name: str
    request: Request
    prompt: Prompt
    folder: str  # of the server's input folder
    files: list[Path]  # which belong into it


def read_requests(named: Sequence[str], token: str = "") -> list[Request]:
    """From CSV tables, folders of subjects' folders, folders of photos, and names of toys."""
    requests = []
    for text in named:
        path = Path(text)
        if path.suffix.lower() == ".csv":
            requests += _table(path, token)
        elif not path.is_dir():
            requests.append(_request(text, Path(), token, {}))
        elif inside := [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _photos(folder)]:
            requests += [Request(folder.name, folder, token, {}) for folder in inside]
        else:
            requests.append(_request(text, Path(), token, {}))
    return requests


def _table(file: Path, token: str) -> list[Request]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SetupError(f"{file} cannot be read: {error}") from error
    if not rows:
        raise SetupError(f"{file} has no rows; it needs a line of column names and a line for each job")
    requests = []
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise SetupError(f"{file}, line {number}: it has another number of cells than the first line")
        settings = {name: cell for name, cell in row.items() if name not in (SUBJECT, TOKEN) and cell != ""}
        try:
            requests.append(_request(row.get(SUBJECT, ""), file.parent, row.get(TOKEN) or token, settings))
        except SetupError as error:
            raise SetupError(f"{file}, line {number}: {error}") from error
    return requests


def _request(named: str, beside: Path, token: str, settings: dict[str, str]) -> Request:
    folder = beside / named
    if not named:
        return Request("", None, token, settings)
    if not folder.is_dir() and named in photos.shipped_subjects():
        return Request(named, None, token, settings)
    if not folder.is_dir():
        toys = ", ".join(photos.shipped_subjects())
        raise SetupError(f"{SUBJECT} {named!r}: there is no folder {folder}, and no toy of that name ({toys})")
    if not _photos(folder):
        raise SetupError(f"{SUBJECT} {named!r}: there are no photos in {folder}, nor folders with photos")
    return Request(folder.resolve().name, folder, token, settings)


def _photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in photos.SUFFIXES and _is_seen(path))


def _is_seen(path: Path) -> bool:
    return not path.name.startswith(".") and not path.parent.name.startswith(".")


def make_jobs(
    workflow: Prompt, requests: Sequence[Request], checkpoint: str | None, taken: Mapping[str, str]
) -> list[Job]:
    """The jobs, without those that are asked for twice. taken: names of jobs that are done, and their keys."""
    filled = {}
    for request in requests:
        files = _photos(request.folder) if request.folder else []
        files += [text for photo in files if (text := photo.with_suffix(CAPTIONS)).is_file()]
        folder = photos.content_folder(request.subject, files) if files else ""
        prompt = _fill(workflow, request, folder, checkpoint)
        key = sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:8]
        filled[key] = (request, prompt, folder, files)
    counts = Counter(request.subject for request, *_ in filled.values())
    jobs = []
    for key, (request, prompt, folder, files) in filled.items():
        name = request.subject
        if not name or counts[name] > 1 or taken.get(name, key) != key:
            name = f"{name or 'job'}_{key}"
        prompts.prefix_files(prompt, name)
        for saver in SAVERS:
            prompts.fill(prompt, {(saver, "filename"): name})
        jobs.append(Job(key, name, request, prompt, folder, files))
    return jobs


def _fill(workflow: Prompt, request: Request, folder: str, checkpoint: str | None) -> Prompt:
    prompt = copy.deepcopy(workflow)
    if request.token:
        prompts.rename_subject(prompt, request.token)
    if request.subject:
        if not prompts.has(prompt, PHOTO_LOADER):
            raise prompts.UnfitWorkflow(f"The workflow has no {PHOTO_LOADER}, so it cannot learn {request.subject}")
        prompts.fill(prompt, {(PHOTO_LOADER, "folder"): folder or photos.shipped_folder(request.subject)})
    if checkpoint:
        name = Path(checkpoint).name if Path(checkpoint).is_file() else checkpoint
        prompts.fill(prompt, {(CHECKPOINT_LOADER, "ckpt_name"): name})
    for place, text in request.settings.items():
        prompts.set_value(prompt, place, text)
    return prompt


def plan_prompt(prompt: Prompt) -> Prompt:
    """Plan VRAM with the settings of the workflow's trainer, on the model it trains."""
    trainer = prompt[prompts.only(prompt, prompts.TRAINERS)]
    loader = prompt[prompts.only(prompt, {PHOTO_LOADER})]
    inputs = {name: trainer["inputs"][name] for name in ("model", *SIZES) if name in trainer["inputs"]}
    inputs |= {"method": METHODS[trainer["class_type"]], "resolution": loader["inputs"]["resolution"], "format": "json"}
    kept = {
        node_id for value in inputs.values() if prompts.is_link(value) for node_id in prompts.needed(prompt, value[0])
    }
    return {node_id: prompt[node_id] for node_id in kept} | {PLANNED: {"class_type": PLAN, "inputs": inputs}}


def plan_key(prompt: Prompt) -> str:
    """The same for jobs that take the same memory."""
    return sha256(json.dumps(plan_prompt(prompt), sort_keys=True).encode()).hexdigest()[:16]
