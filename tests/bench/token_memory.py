"""Memory of textual inversion by part, on models of the true size: the trainer's steps, run on fake tensors.

    python tests/bench/token_memory.py [sd15 sd21 sdxl]

One photo and one caption, candidates one by one, the model in float16. Takes a minute or so a row, no GPU and hardly
any memory. Gradients are as Plan VRAM counts them, with prompts encoded beforehand: the second encoding of a backward
pass cannot run on fake tensors, takes less than the U-Net's pass and gives it back before.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401, I001
import torch  # noqa: E402
from full_size import full_size_clip, full_size_model  # noqa: E402
from pack.nodes import host_plan  # noqa: E402
from pack.trainers.config import TokenConfig  # noqa: E402
from token_bytes import TokenMemory, token_memory  # noqa: E402

MIB = 2**20
SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
STEP = TokenConfig(steps=1, candidates="one_by_one", eval_samples=1, subspace="off")
ROWS = {
    "zo, int8": STEP,
    "zo, int8, 3 candidates at once": replace(STEP, candidates="batch"),
    "zo, int4": replace(STEP, quantization="int4"),
    "zo, none": replace(STEP, quantization="none"),
}
GRADIENT_ROWS = {
    f"gradient, {name}": (f"zo, {name}", replace(ROWS[f"zo, {name}"], method="gradient")) for name in ("int8", "none")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(SIDES), metavar="KIND", help=", ".join(SIDES))
    for kind in parser.parse_args().kinds:
        print(f"\n{kind}, {SIDES[kind]} px, MiB\n")
        print("| steps | U-Net | text encoder | work | total | words' table, in RAM |\n|---|---|---|---|---|---|")
        found = {name: token_memory(kind, SIDES[kind], config) for name, config in ROWS.items()}
        for name, (alike, config) in GRADIENT_ROWS.items():
            found[name] = with_gradients(kind, found[alike], config)
        for name, memory in found.items():
            print(f"| {name} | {' | '.join(f'{size / MIB:,.0f}' for size in memory)} |", flush=True)


def with_gradients(kind: str, alike: TokenMemory, config: TokenConfig) -> TokenMemory:
    """Of a step of backpropagation; the weights are those of a ZO step of the same precision."""
    model, clip = (full_size(kind, torch.float16) for full_size in (full_size_model, full_size_clip))
    peaks = {p.name: p.peak_bytes for p in host_plan.phases(model, (SIDES[kind],) * 2, config, clip)}
    return alike._replace(work=peaks["bp"] - alike.unet - alike.text_encoder, total=peaks["bp"])


if __name__ == "__main__":
    main()
