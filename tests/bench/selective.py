"""Seconds per step and peak memory of each strategy beside core's TrainLoraNode: same model, photos and resolution.

    python tests/bench/selective.py [--kind sd15] [--resolution 512] [--steps 3] [--rows core bp_high ...]

Every row runs in a process of its own, one after the other, on a full-size checkpoint with random weights (made on the
first run in .checkpoints/): speed and memory do not depend on the values. Wants an otherwise idle machine. Memory is
the process's highest resident size while training (sampled every 20 ms), what that is beyond its size before, and, for
our rows, live tensor bytes on the training device.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "workflows")]
import checkpoints  # noqa: E402
from pictures import DREAMBOOTH  # noqa: E402

PROMPT = "a photo of a sks dog"
MIB = 2**20
ROWS = {
    "core TrainLoraNode": {},
    "bp_high": {"strategy": "bp_high"},
    "bp_high, checkpointed": {"strategy": "bp_high", "gradient_checkpointing": True},
    "bp_low": {"strategy": "bp_low"},
    "zo_high, N = 1": {"strategy": "zo_high", "zo_perturbations": 1},
    "two forwards alone": {},
}


class Watch(threading.Thread):
    """Highest resident size of this process while the block runs, in MiB, and when each step ended."""

    def __enter__(self):
        self.process, self.running, self.stamps = psutil.Process(), True, [time.perf_counter()]
        self.before = self.peak = self.process.memory_info().rss / MIB
        self.start()
        return self

    def run(self):
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss / MIB)
            time.sleep(0.02)

    def __exit__(self, *_):
        self.running = False
        self.join()

    def stamp(self, *_, **__):
        self.stamps.append(time.perf_counter())

    def row(self, **more) -> dict:
        gaps = [b - a for a, b in zip(self.stamps, self.stamps[1:], strict=False)][1:]  # the first step also loads
        return {"seconds": statistics.median(gaps), "rss_mib": self.peak, "added_mib": self.peak - self.before} | more


def inputs(checkpoint: Path, resolution: int):
    """The stock loader's model, clip and vae, and the photos, as a server would hold them before the trainer runs."""
    import comfy.sd
    from pack.trainers.photos import SubjectSettings, load_subject

    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_clipvision=False)
    subject = load_subject(DREAMBOOTH / "dog6", SubjectSettings(PROMPT, resolution), DREAMBOOTH).subject
    return model, clip, vae, subject


def core(checkpoint: Path, resolution: int, steps: int) -> dict:
    """Core's node with its defaults, but the rank that we use."""
    import comfy.utils
    from comfy_extras.nodes_train import TrainLoraNode
    from pack.trainers.photos import image_batch

    model, clip, vae, subject = inputs(checkpoint, resolution)
    latents = [{"samples": vae.encode(image_batch(subject))}]
    positive = [clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))]
    defaults = {item.id: [item.default] for item in TrainLoraNode.GET_SCHEMA().inputs if hasattr(item, "default")}
    with Watch() as watch:
        comfy.utils.set_progress_bar_global_hook(watch.stamp)
        settings = defaults | {"rank": [4], "steps": [steps + 1]}
        TrainLoraNode.execute(model=[model], latents=latents, positive=positive, **settings)
    return watch.row()


def ours(checkpoint: Path, resolution: int, steps: int, settings: dict) -> dict:
    from pack.nodes import host
    from pack.trainers.config import SelectiveConfig
    from pack.trainers.memory import PhaseMeter
    from pack.trainers.selective import train_selective

    model, clip, vae, subject = inputs(checkpoint, resolution)
    config = SelectiveConfig(steps=steps + 1, **settings)
    meter = PhaseMeter(model.load_device)
    examples = host.encode_subject(model, clip, vae, subject, config.low_res_ratio, meter)
    with Watch() as watch, host.trainable(model) as network:
        train_selective(network, examples, config, host.lora_names(model), meter, watch.stamp)
    return watch.row(live_mib=max(meter.peak_bytes("bp"), meter.peak_bytes("zo")) / MIB)


def forwards(checkpoint: Path, resolution: int, steps: int) -> dict:
    """Two predictions of the bare U-Net at full size, in turns with a ZO step of one perturbation on the same photo."""
    import torch
    from pack.nodes import host
    from pack.trainers.lora import injected
    from pack.trainers.memory import PhaseMeter
    from pack.trainers.objective import collate, denoising_loss
    from pack.trainers.zero_order import zero_order_step

    model, clip, vae, subject = inputs(checkpoint, resolution)
    examples = host.encode_subject(model, clip, vae, subject, 1.0, PhaseMeter(model.load_device))
    latents, condition = collate([examples[0].high])
    t, noise, zo = torch.tensor([500]), torch.randn_like(latents), []
    with Watch() as watch, host.trainable(model) as network:

        @torch.inference_mode()
        def loss() -> float:
            return denoising_loss(network, latents, noise, t, condition).item()

        for seed in range(2 * steps):
            loss(), loss()
            watch.stamp()
            with injected(network.unet, 4, 4.0, "attention", 0) as lora:
                start = time.perf_counter()
                zero_order_step(loss, lora.parameters(), [seed], 1e-2, 1e-2)
                zo.append(time.perf_counter() - start)
            watch.stamp()
    row = watch.row()
    bare = [b - a for a, b in zip(watch.stamps[::2], watch.stamps[1::2], strict=False)]
    row["seconds"] = statistics.median(bare[1:])
    return row | {"zo_ratio": statistics.median(zo[1:]) / row["seconds"]}


def run_row(name: str, checkpoint: Path, resolution: int, steps: int) -> dict:
    import torch

    with torch.inference_mode():  # as ComfyUI runs its nodes
        if name == "core TrainLoraNode":
            return core(checkpoint, resolution, steps)
        if name == "two forwards alone":
            return forwards(checkpoint, resolution, steps)
        return ours(checkpoint, resolution, steps, ROWS[name])


def table(results: dict[str, dict]) -> str:
    """Markdown, with core's figures as the unit where core is there."""
    unit = results.get("core TrainLoraNode")
    heads = ["run", "s / step", "of core", "process MiB", "of core", "added MiB", "live tensors MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in results.items():
        of = [f"{row[key] / unit[key]:.2f}" if unit else "" for key in ("seconds", "rss_mib")]
        live = f"{row['live_mib']:,.0f}" if "live_mib" in row else ""
        memory = [f"{row[key]:,.0f}" for key in ("rss_mib", "added_mib")]
        cells = [name, f"{row['seconds']:.2f}", of[0], memory[0], of[1], memory[1], live]
        lines.append("| " + " | ".join(cells) + " |")
    if bare := results.get("two forwards alone"):
        lines.append(f"\nTaken in turns, a ZO perturbation takes {bare['zo_ratio']:.3f} times two bare forward passes.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="sd15", choices=["standin", "sd15", "sd21", "sdxl", "ssd1b"])
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import conftest  # noqa: F401, the package `pack` and ComfyUI

    checkpoint = checkpoints.cached_checkpoint(arguments.kind)
    if arguments.row:
        print(json.dumps(run_row(arguments.row, checkpoint, arguments.resolution, arguments.steps)))
        return
    results = {}
    for name in arguments.rows:
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--row", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
    print(f"{arguments.kind}, {arguments.resolution} px, {psutil.cpu_count()} cores, {platform.processor()}\n")
    print(table(results))


if __name__ == "__main__":
    main()
