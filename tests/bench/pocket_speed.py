"""Seconds a picture of the pocket model takes in ComfyUI, and seconds a step of training a LoRA of it.

    python tests/bench/pocket_speed.py [--runs 5] [--steps 40]

A picture: 128 px, 20 steps of ddim with guidance, through the stock KSampler. A step: batch 1, bp_high at full size,
bp_low at half size, zo_high with one perturbation. Medians. Wants an otherwise idle machine.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
import nodes as core  # noqa: E402
from pack.nodes import host  # noqa: E402
from pack.nodes.host_pocket import load_pocket  # noqa: E402
from pack.trainers.config import SelectiveConfig  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.photos import SubjectSettings, load_subject  # noqa: E402
from pack.trainers.selective import train_selective  # noqa: E402

PHOTOS = ROOT / "trainers" / "pocket" / "photos"
STRATEGIES = {"bp_high": {}, "bp_low": {}, "zo_high": {"zo_perturbations": 1}}


def seconds_per_picture(model, clip, runs: int) -> float:
    encode = core.CLIPTextEncode().encode
    positive, negative = (encode(clip, text)[0] for text in ("a photo of a red cube on grass", ""))
    (latent,) = core.EmptyLatentImage().generate(128, 128)
    seconds = []
    for seed in range(runs + 1):
        start = time.perf_counter()
        core.KSampler().sample(model, seed, 20, 3.0, "ddim", "simple", positive, negative, latent)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def seconds_per_step(model, clip, vae, strategy: str, steps: int) -> float:
    subject = load_subject(PHOTOS / "robot", SubjectSettings("a photo of a sks toy", 128), PHOTOS).subject
    config = SelectiveConfig(steps=steps, strategy=strategy, **STRATEGIES[strategy])
    meter = PhaseMeter(model.load_device)
    examples = host.encode_subject(model, clip, vae, subject, config.low_res_ratio, meter)
    ends = []
    with host.trainable(model) as network:
        names = host.lora_names(model)
        train_selective(network, examples, config, names, meter, lambda _: ends.append(time.perf_counter()))
    return statistics.median(b - a for a, b in zip(ends[2:], ends[3:], strict=False))  # the first ones are metered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    with torch.inference_mode():  # as ComfyUI runs nodes
        model, clip, vae = load_pocket()
        print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"a picture of 20 steps: {seconds_per_picture(model, clip, arguments.runs):.2f} s")
        for strategy in STRATEGIES:
            print(f"a step of {strategy}: {seconds_per_step(model, clip, vae, strategy, arguments.steps):.3f} s")


if __name__ == "__main__":
    main()
