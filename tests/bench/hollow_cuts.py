"""Which blocks can leave which Stable Diffusion: the README's tables.

    python tests/bench/hollow_cuts.py [sd15 sd21 sdxl ssd1b]

Read off the true-size U-Nets without any weights (torch's meta device): takes seconds and no memory.
"""

import argparse
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401, I001
from checkpoints import FULL_SIZE  # noqa: E402
from comfy import supported_models  # noqa: E402
from pack.trainers.hollow_cuts import cuts, cuts_table  # noqa: E402

NAMES = {"sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2.1", "sdxl": "SDXL", "ssd1b": "SSD-1B"}


def table(kind: str) -> str:
    """The Markdown table of one model's cuts."""
    name, unet = FULL_SIZE[kind]
    config = getattr(supported_models, name)(unet)
    return cuts_table(cuts(config.get_model({}, device="meta").diffusion_model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=FULL_SIZE, metavar="KIND", help=", ".join(FULL_SIZE))
    for kind in parser.parse_args().kinds:
        print(f"{NAMES[kind]}:\n\n{table(kind)}\n")


if __name__ == "__main__":
    main()
