"""What the judges say of the pocket model's samples, and how good its autoencoder is.

    python -m trainers.pocket.evaluate [--weights FILE] [--captions 200] [--out FOLDER]

Captions are of single objects nobody chose: any shape, colour, material and ground. The judges see real renders of the
same scenes and their reconstructions too, which says how much of what goes wrong is the sampler's doing. Written are
evaluation.json, samples.png (in the order of its captions) and failures.png (in the order of its failures).
"""

import argparse
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .autoencoder import decode, encode, psnr
from .captions import full_caption
from .diffusion import GUIDANCE, SAMPLING_STEPS
from .judge_scores import single_scenes
from .judges import ATTRIBUTES, agreement, expectations, judge
from .modules import Modules, load_modules, sampled
from .pretrain import scenes
from .render import rendered
from .sheets import save_sheet
from .weights import FILE, checksum

log = logging.getLogger(__name__)

BATCH = 25  # samples at a time
PSNR_SCENES, PSNR_SEED = 256, 1_000_001  # pretraining draws its scenes with the seeds 0 to 4
SHEET_COLUMNS = 20
FAILURES_SHOWN = 100
CONFUSIONS_SHOWN = 5
TIMED = 3  # runs of one sample


def evaluation(modules: Modules, count: int, seed: int, guidance: float, steps: int) -> tuple[dict, dict[str, Tensor]]:
    """Everything measured, ready for JSON, and the pictures (count, 3, 128, 128) it was measured on by their origin."""
    drawn = single_scenes(count, seed)
    captions = [full_caption(scene.parts[0], scene.view.ground) for scene in drawn]
    expected = expectations(drawn)
    renders = torch.cat([*rendered(drawn)])
    batches = [captions[i : i + BATCH] for i in range(0, count, BATCH)]
    samples = [sampled(modules, batch, seed + number, guidance, steps) for number, batch in enumerate(batches)]
    pictures = {
        "renders": renders,
        "reconstructions": reconstructed(modules, renders),
        "samples": torch.cat(samples),
    }
    judged = {origin: {name: v.names for name, v in judge(seen).items()} for origin, seen in pictures.items()}
    result = {
        "settings": {"captions": count, "seed": seed, "guidance": guidance, "steps": steps},
        "accuracy": {
            origin: {name: agreement(names[name], expected[name]) for name in ATTRIBUTES}
            for origin, names in judged.items()
        },
        "autoencoder_psnr_db": mean_psnr(modules),
        "seconds_per_sample": seconds_per_sample(modules, captions[0], guidance, steps),
        "machine": machine(),
        "confusions": {
            origin: {name: confusions(names[name], expected[name]) for name in ATTRIBUTES}
            for origin, names in judged.items()
        },
        "captions": captions,
        "failures": failures(captions, judged["samples"], expected),
    }
    return result, pictures


def reconstructed(modules: Modules, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, 128, 128) as the autoencoder gives them back."""
    autoencoder = modules.autoencoder
    with torch.no_grad():
        return torch.cat([decode(autoencoder, encode(autoencoder, part)).clamp(0, 1) for part in pictures.split(BATCH)])


def mean_psnr(modules: Modules) -> float:
    """Decibels, over held-out scenes of which a third are toys."""
    pictures = torch.cat([*rendered(scenes(PSNR_SCENES, PSNR_SEED))])
    return psnr(reconstructed(modules, pictures), pictures).mean().item()


def seconds_per_sample(modules: Modules, caption: str, guidance: float, steps: int) -> float:
    """From one caption to its picture, the quickest of a few runs after a first."""
    seconds = []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        sampled(modules, [caption], 0, guidance, steps)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def machine() -> dict[str, str | int]:
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def confusions(names: Sequence[str], expected: Sequence[str]) -> list[str]:
    """The most common mistakes, such as "cone for cube: 3"."""
    wrong = Counter(f"{a} for {b}" for a, b in zip(names, expected, strict=True) if a != b)
    return [f"{mistake}: {count}" for mistake, count in wrong.most_common(CONFUSIONS_SHOWN)]


def failures(
    captions: Sequence[str], names: Mapping[str, Sequence[str]], expected: Mapping[str, Sequence[str]]
) -> list[dict]:
    """For each caption of which a judge disagrees: its number, and what was seen instead."""
    found = []
    for i, caption in enumerate(captions):
        seen = {name: names[name][i] for name in ATTRIBUTES if names[name][i] != expected[name][i]}
        if seen:
            found.append({"number": i, "caption": caption, "seen": seen})
    return found


def summary(result: dict) -> str:
    """The figures as text."""
    accuracy = result["accuracy"]
    lines = ["accuracy    " + "".join(f"{origin:>17}" for origin in accuracy)]
    for name in ATTRIBUTES:
        lines.append(f"{name:12}" + "".join(f"{100 * by_name[name]:16.1f}%" for by_name in accuracy.values()))
    for origin, mistakes in result["confusions"].items():
        lines += [f"{origin}, {name}: {', '.join(most)}" for name, most in mistakes.items() if most]
    lines.append(f"autoencoder: {result['autoencoder_psnr_db']:.2f} dB")
    settings, where = result["settings"], ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines.append(f"{result['seconds_per_sample']:.2f} s for one sample of {settings['steps']} steps: {where}")
    return "\n".join(lines)


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    modules = load_modules(arguments.weights)
    result, pictures = evaluation(modules, arguments.captions, arguments.seed, arguments.guidance, arguments.steps)
    result["weights_sha256"] = checksum(arguments.weights)
    log.info("%s", summary(result))
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_sheet(pictures["samples"], min(SHEET_COLUMNS, arguments.captions), out / "samples.png")
    failed = [failure["number"] for failure in result["failures"][:FAILURES_SHOWN]]
    if failed:
        save_sheet(pictures["samples"][failed], min(SHEET_COLUMNS, len(failed)), out / "failures.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=FILE)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--steps", type=int, default=SAMPLING_STEPS)
    parser.add_argument("--seed", type=int, default=2_000_003)
    parser.add_argument("--out", type=Path, default=Path("evaluation"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
