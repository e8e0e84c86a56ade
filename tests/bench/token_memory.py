"""Memory of textual inversion by part, on models of the true size: the trainer's steps, run on fake tensors.

    python tests/bench/token_memory.py [sd15 sd21 sdxl]

One photo and one caption, candidates one by one, the model in float16. Takes a minute or so a row, no GPU and hardly
any memory.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401, I001
from pack.trainers.config import TokenConfig  # noqa: E402
from token_bytes import token_memory  # noqa: E402

MIB = 2**20
SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
STEP = TokenConfig(steps=1, candidates="one_by_one", eval_samples=1, subspace="off")
ROWS = {
    "zo, int8": STEP,
    "zo, int8, 3 candidates at once": replace(STEP, candidates="batch"),
    "zo, int4": replace(STEP, quantization="int4"),
    "zo, none": replace(STEP, quantization="none"),
    "gradient, int8": replace(STEP, method="gradient"),
    "gradient, none": replace(STEP, method="gradient", quantization="none"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(SIDES), metavar="KIND", help=", ".join(SIDES))
    for kind in parser.parse_args().kinds:
        print(f"\n{kind}, {SIDES[kind]} px, MiB\n")
        print("| steps | U-Net | text encoder | work | total | words' table, in RAM |\n|---|---|---|---|---|---|")
        for name, config in ROWS.items():
            memory = token_memory(kind, SIDES[kind], config)
            cells = [f"{size / MIB:,.0f}" for size in memory]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
