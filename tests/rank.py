"""One rank of test_ranks.py: python tests/rank.py FOLDER [--failing RANK], alone or under torchrun.

Trains by zeroth-order steps, and writes what is learnt to FOLDER, a file for each training and rank.
"""

import argparse
import atexit
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import conftest  # noqa: F401, I001, the package `pack` and ComfyUI
import torch
from every_trainer import ON_U_NETS, TOYS
from pack.trainers.ranks import over_ranks
from safetensors.torch import save_file
from torch import distributed as dist

PERTURBATIONS = 5  # which neither 2 nor 3 ranks share evenly


def trainings() -> list:
    chosen = [trainer for trainer in (*TOYS, *ON_U_NETS) if trainer.name != "token gradient on a U-Net"]
    settings = dict(zo_perturbations=PERTURBATIONS)
    return [
        replace(t, config=replace(t.config, **settings, **({"candidates": "one_by_one"} if "token" in t.name else {})))
        for t in chosen
        if t.name.startswith(("selective random", "selective zo_high", "selective on", "token zo"))
    ]


def fail(rank: int, failing: int) -> list[float]:
    if rank == failing:
        raise MemoryError("this rank has no memory")
    return [1.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--failing", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("gloo")
        atexit.register(dist.destroy_process_group)
    if arguments.failing is not None:
        try:
            over_ranks([lambda: fail(rank, arguments.failing)] * ranks)
        except (MemoryError, RuntimeError) as error:
            (arguments.folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        return
    for trainer in trainings():
        learnt, _ = trainer.run(arguments.folder)
        save_file(learnt, arguments.folder / f"{trainer.name}.{rank}.safetensors")


if __name__ == "__main__":
    main()
