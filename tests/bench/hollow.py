"""The Hollowed Net Trainer's cache and steps beside LoRA on the whole U-Net: same model, photos, rank and resolution.

    python tests/bench/hollow.py [--kind sd15] [--resolution 512] [--rank 128] [--steps 3] [--fractions 0.39 ...]

One process; for every fraction the two trainers take turns, twice each, so that what else the machine does falls on
both. Beside the wall time stands the processor time of all threads, which other work does not stretch; on a GPU it
says nothing. The checkpoint is full size with random weights, which is enough for speed and memory.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import selective  # noqa: E402
from selective import MIB  # noqa: E402

TURNS = 2


class Stamps:
    """When each step ended; the first is left out, for it also makes AdamW's moments."""

    def __init__(self):
        self.times: list[tuple[float, float]] = []

    def __call__(self, *_) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def gaps(self) -> list[tuple[float, float]]:
        """Seconds on the wall and of the processor, for each step."""
        return [(b - a, d - c) for (a, c), (b, d) in zip(self.times, self.times[1:], strict=False)]


def whole(model, examples, steps: int, rank: int, checkpointing: bool) -> dict:
    from pack.nodes import host
    from pack.trainers.config import SelectiveConfig
    from pack.trainers.memory import PhaseMeter
    from pack.trainers.selective import train_selective

    stamps, meter = Stamps(), PhaseMeter(model.load_device)
    config = SelectiveConfig(steps=steps + 1, rank=rank, strategy="bp_high", gradient_checkpointing=checkpointing)
    with host.trainable(model) as network:
        train_selective(network, examples, config, host.lora_names(model), meter, stamps)
    return {"gaps": stamps.gaps(), "peak_mib": meter.peak_bytes("bp") / MIB}


def hollow(model, examples, steps: int, rank: int, checkpointing: bool, fraction: float) -> dict:
    from pack.nodes import host, host_weights
    from pack.trainers.config import HollowConfig
    from pack.trainers.hollow import train_hollow
    from pack.trainers.memory import PhaseMeter

    stamps, cached, meter = Stamps(), Stamps(), PhaseMeter(model.load_device)
    config = HollowConfig(
        steps=steps + 1, rank=rank, hollow_fraction=fraction, gradient_checkpointing=checkpointing, cache_samples=6
    )
    with tempfile.TemporaryDirectory() as folder, host.trainable(model) as network:
        trained = train_hollow(
            network,
            [example.high for example in examples],
            config,
            host.lora_names(model),
            meter,
            stamps,
            cache_path=Path(folder) / "cache",
            offload_device=host_weights.OFFLOAD_DEVICE,
            on_cached=cached,
        )
    return {
        "gaps": stamps.gaps(),
        "cache_gaps": cached.gaps(),
        "sample_mb": trained.cache.file_bytes / trained.cache.samples / 1e6,
        "share": trained.cut.share,
        "peak_mib": meter.peak_bytes("bp") / MIB,
        "inference_mib": meter.peak_bytes("inference") / MIB,
    }


def in_turns(model, examples, fraction: float, steps: int, rank: int, checkpointing: bool) -> dict:
    """Medians over all turns of both trainers."""
    ours = []
    full = []
    for _ in range(TURNS):
        full.append(whole(model, examples, steps, rank, checkpointing))
        ours.append(hollow(model, examples, steps, rank, checkpointing, fraction))
    return {
        **{name: ours[0][name] for name in ("share", "sample_mb", "peak_mib", "inference_mib")},
        "cache_s": _medians(ours, "cache_gaps"),
        "step_s": _medians(ours, "gaps"),
        "whole_s": _medians(full, "gaps"),
        "whole_mib": full[0]["peak_mib"],
    }


def _medians(turns: list[dict], name: str) -> tuple[float, ...]:
    gaps = [gap for turn in turns for gap in turn[name]]
    return tuple(statistics.median(seconds) for seconds in zip(*gaps, strict=True))


def table(rows: list[dict]) -> str:
    heads = [
        "leaves",
        "cache s / sample",
        "MB / sample",
        "s / step",
        "whole U-Net s / step",
        "ratio",
        "processor s / step",
        "whole U-Net",
        "ratio",
        "live MiB",
        "whole U-Net live MiB",
        "inference live MiB",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        lines.append(
            f"| {row['share']:.1%} | {row['cache_s'][0]:.2f} | {row['sample_mb']:.2f} | "
            + " | ".join(
                f"{step:.2f} | {whole:.2f} | {step / whole:.2f}"
                for step, whole in zip(row["step_s"], row["whole_s"], strict=True)
            )
            + f" | {row['peak_mib']:,.0f} | {row['whole_mib']:,.0f} | {row['inference_mib']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="sd15", choices=["standin", "sd15", "sd21", "sdxl", "ssd1b"])
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.39])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    import conftest  # noqa: F401, the package `pack` and ComfyUI
    import torch
    from pack.nodes import host
    from pack.trainers.memory import PhaseMeter

    checkpoint = selective.checkpoints.cached_checkpoint(arguments.kind)
    with torch.inference_mode():  # as ComfyUI runs its nodes
        model, clip, vae, subject = selective.inputs(checkpoint, arguments.resolution)
        examples = host.encode_subject(model, clip, vae, subject, 1.0, PhaseMeter(model.load_device))
        how = (arguments.steps, arguments.rank, arguments.gradient_checkpointing)
        rows = [in_turns(model, examples, fraction, *how) for fraction in arguments.fractions]
    print(table(rows))
    print(json.dumps({"kind": arguments.kind, "resolution": arguments.resolution, "rank": arguments.rank}))


if __name__ == "__main__":
    main()
