"""What the trainers' presets come to, by memory and by model: python tests/bench/presets.py [MODEL ...]

Plans of the trainers' own steps on fake tensors of true-size models in 16 bit, for five square photos of the model's
own size, with the allowance that plans make for CUDA's context. No GPU and hardly any memory is needed, and no machine
changes the figures. Takes minutes on one core. Writes the table into tests/bench/RESULTS.md and the README.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "bench")]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from full_size import full_size_clip, full_size_model  # noqa: E402
from memory_table import NAMES  # noqa: E402
from pages import put_between_markers  # noqa: E402
from pack.nodes import host_plan  # noqa: E402
from pack.trainers.config import OFF, PRESETS, HollowConfig, SelectiveConfig, TokenConfig  # noqa: E402
from pack.trainers.plan import GIB, METHODS, Plan, allowance  # noqa: E402
from pack.trainers.planning import TrainerConfig  # noqa: E402
from pack.trainers.presets import settled  # noqa: E402

ROOT = TESTS.parent
SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024, "ssd1b": 1024}
PHOTOS = 5
DTYPE = torch.float16
WORDS = {  # what a table says of a setting that was changed
    "strategy": "{}",
    "method": "{}s",
    "target_modules": "feed-forward, too",
    "gradient_checkpointing": "checkpointed",
    "quantization": "{}",
    "low_res_ratio": "r = {}",
    "hollow_fraction": "{:.0%} left out",
    "candidates": "one by one",
}


class Planner:
    """Plans of runs on one true-size model, as on a GPU."""

    def __init__(self, kind: str):
        self.model, self.clip = full_size_model(kind, DTYPE), full_size_clip(kind, DTYPE)
        self.side_px = SIDES[kind]

    def __call__(self, config: TrainerConfig) -> Plan:
        found = host_plan.phases(self.model, (self.side_px, self.side_px), config, self.clip)
        return Plan(
            method=METHODS[type(config)],
            base_model="",
            resolution=self.side_px,
            device="as on CUDA",
            dtype=str(DTYPE),
            phases=found,
            allowance_bytes=allowance(max(phase.peak_bytes for phase in found)),
            free_bytes=None,
            budget_bytes=round(config.budget_gb * GIB),
            other_models=(),
            settings=asdict(config),
        )


def cell(config: TrainerConfig, planner: Planner) -> str:
    """What the preset makes of the settings, and what that needs."""
    try:
        found, plan = settled(config, planner, PHOTOS)
    except ValueError:
        return "does not fit"
    changed = {change.setting: change.chosen for change in plan.changes if change.setting in WORDS}
    words = [WORDS[name].format(value) for name, value in changed.items()]
    longer = f", {plan.slower:.1f} times as long" if plan.slower > 1.05 else ""
    return f"{', '.join(words) or 'all as it is'}{longer}: {plan.needed_bytes / GIB:.2f} GB"


def table(kinds: list[str]) -> str:
    tiers = [name for name in PRESETS if name != OFF]
    lines = [f"| model | trainer | {' | '.join(tiers)} |", "|---" * (2 + len(tiers)) + "|"]
    for kind in kinds:
        planner = Planner(kind)
        for make in (SelectiveConfig, HollowConfig, TokenConfig):
            began = time.monotonic()
            cells = [cell(make(preset=tier), planner) for tier in tiers]
            lines.append(f"| {NAMES[kind]}, {SIDES[kind]} px | {METHODS[make]} | {' | '.join(cells)} |")
            print(lines[-1], f"{time.monotonic() - began:.0f} s", flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help=f"of {' '.join(SIDES)}: print these, and write nothing")
    kinds = parser.parse_args().models
    body = table(kinds or list(SIDES))
    if not kinds:
        put_between_markers(TESTS / "bench/RESULTS.md", "presets", body)
        put_between_markers(ROOT / "README.md", "presets", body)


if __name__ == "__main__":
    main()
