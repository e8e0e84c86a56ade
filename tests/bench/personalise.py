"""How well a trainer learns the pocket world's eight unseen subjects, and what it forgets, on a real ComfyUI.

    python tests/bench/personalise.py OUT [--subjects robot ...] [--set strategy=bp_high steps=300 ...]

For each subject: five photos in, a LoRA trained by the Selective trainer, pictures before and after with the same
seeds on five grounds that no photo shows, and of two things the LoRA should leave alone. The judges say how near the
pictures are to the photos (identity, a cosine) and whether the ground is the prompt's. Writes a sheet per subject
(photos, two rows before, two rows after), results.json and a table.
"""

import argparse
import io
import json
import platform
import sys
import time
from pathlib import Path

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
import comfyui  # noqa: E402
from pack.trainers.pocket.judge_scores import photos_of  # noqa: E402
from pack.trainers.pocket.judges import load_judges  # noqa: E402
from pack.trainers.pocket.sheets import picture, save_sheet  # noqa: E402
from pack.trainers.pocket.subjects import SUBJECTS  # noqa: E402
from pack.trainers.pocket.weights import checksum  # noqa: E402
from toys import OTHERS, judged, on_new_grounds, others_kept  # noqa: E402

PROMPTS = on_new_grounds("sks toy")
SELECTIVE = "EdgeTune_SelectiveTrainer"
SETTINGS = {
    "steps": 400,
    "rank": 16,
    "learning_rate": 1e-3,
    "batch_size": 2,
    "zo_learning_rate": 1e-2,
    "zo_epsilon": 1e-2,
    "zo_perturbations": 4,
    "low_res_ratio": 0.5,
    "k": 0.05,
    "t_mid": 750,
    "strategy": "bp_high",
    "seed": 0,
}
SAMPLER = {"steps": 20, "cfg": 3.0, "sampler_name": "ddim", "scheduler": "simple", "denoise": 1.0}
EACH = 4  # pictures per prompt


def workflow(subject: str, settings: dict, trainer: str = SELECTIVE) -> dict:
    """A prompt in API format: before and after for every text, saved under its number."""
    nodes = {
        "model": node("EdgeTune_LoadPocketModel"),
        "subject": node(
            "EdgeTune_LoadSubjectImages",
            folder=f"{subject} [pocket]",
            instance_prompt="a photo of a sks toy",
            resolution=128,
        ),
        "train": node(
            trainer,
            model=["model", 0],
            clip=["model", 1],
            vae=["model", 2],
            subject=["subject", 0],
            **settings,
        ),
        "empty": node("CLIPTextEncode", text="", clip=["model", 1]),
        "size": node("EmptyLatentImage", width=128, height=128, batch_size=EACH),
    }
    for i, text in enumerate([*PROMPTS, *OTHERS]):
        nodes[f"text{i}"] = node("CLIPTextEncode", text=text, clip=["model", 1])
        for when, model in (("before", ["model", 0]), ("after", ["train", 0])):
            links = {"model": model, "positive": [f"text{i}", 0], "negative": ["empty", 0], "latent_image": ["size", 0]}
            nodes[f"{when}_latent{i}"] = node("KSampler", seed=i, **SAMPLER, **links)
            nodes[f"{when}_pixels{i}"] = node("VAEDecode", samples=[f"{when}_latent{i}", 0], vae=["model", 2])
            nodes[f"{when}{i}"] = node("SaveImage", images=[f"{when}_pixels{i}", 0], filename_prefix=f"{when}{i}")
    return nodes


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def pictures(client, entry: dict, name: str) -> torch.Tensor:
    """What a SaveImage node wrote, (EACH, 3, 128, 128) in [0, 1]."""
    return torch.stack([picture(io.BytesIO(client.download(view))) for view in entry["outputs"][name]["images"]])


def scores(shown: dict[str, torch.Tensor], photos: torch.Tensor) -> dict:
    """Identity and ground of the subject's pictures, and how many of the others are still what they should be."""
    result = {}
    for when in ("before", "after"):
        identity, ground = judged(torch.cat([shown[f"{when}{i}"] for i in range(len(PROMPTS))]), photos)
        others = torch.cat([shown[f"{when}{len(PROMPTS) + i}"] for i in range(len(OTHERS))])
        result[when] = {"identity": identity, "ground": ground, "others_kept": others_kept(others)}
    return result


def run(client, subject: str, settings: dict, sheet: Path, trainer: str = SELECTIVE) -> dict:
    """Train and draw on the server; writes the sheet and returns the scores."""
    began = time.perf_counter()
    entry = client.run(workflow(subject, settings, trainer), timeout_s=3600)
    names = [f"{when}{i}" for when in ("before", "after") for i in range(len(PROMPTS) + len(OTHERS))]
    shown = {name: pictures(client, entry, name) for name in names}
    photos = photos_of(subject)
    columns = len(PROMPTS) + len(OTHERS)
    rows = [torch.nn.functional.pad(photos, (0, 0, 0, 0, 0, 0, 0, columns - len(photos)))]
    rows += [shown[f"{when}{i}"][j : j + 1] for when in ("before", "after") for j in (0, 1) for i in range(columns)]
    save_sheet(torch.cat(rows), columns, sheet)
    report = json.loads(entry["outputs"]["train"]["report"][0])
    seconds = {"training_s": report["seconds"], "all_s": time.perf_counter() - began}
    return scores(shown, photos) | seconds | {"peak_bytes": report["peak_bytes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the trainer")
    arguments = parser.parse_args()
    settings = SETTINGS | {name: read(value) for name, value in (item.split("=", 1) for item in arguments.set)}
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    load_judges()
    results = {}
    with comfyui.start_server(out / "server") as server:
        for subject in arguments.subjects:
            results[subject] = run(server.client, subject, settings, out / f"{subject}.png")
            print(row(subject, results[subject]), flush=True)
    summary = {"settings": settings} | circumstances() | {"subjects": results}
    (out / "results.json").write_text(json.dumps(summary, indent=1))
    learnt = sum(r["after"]["identity"] > r["before"]["identity"] for r in results.values())
    print(f"{learnt} of {len(results)} subjects nearer to their photos after training; {json.dumps(settings)}")


def circumstances() -> dict:
    """What the figures depend on beside the settings."""
    machine = {"platform": platform.platform(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"sampler": SAMPLER, "machine": machine, "weights_sha256": checksum()}


def read(value: str) -> object:
    """A number where it is one."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def row(subject: str, result: dict) -> str:
    cells = [
        f"{result[when][name]:.2f}" for name in ("identity", "ground", "others_kept") for when in ("before", "after")
    ]
    return f"| {subject} | {' | '.join(cells)} | {result['training_s']:.0f} |"


if __name__ == "__main__":
    main()
