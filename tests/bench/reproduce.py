"""The selective paper's tables and figures (arXiv:2507.10029) on the pocket world: what holds there, and what does not.

    python tests/bench/reproduce.py RUNS.csv [--table table1 fig1a fig1b fig3 fractions] [--seeds 0 1 2] [--steps 200]
    python tests/bench/reproduce.py --tables RUNS.csv

And the curve of Hollowed Net's poster (arXiv:2411.01179): what leaving out more and more of the U-Net costs.
Every cell of the tables is a training that differs from the others in what its name says, with equal steps, photos,
noise and timesteps. A run learns one of five toys with one seed. Scored are: the denoising loss of eight fresh views
under fixed noise, over what it was before (1 is nothing learnt), at all timesteps and at 875 alone; and, of pictures on
five grounds that no photo shows, how near they are to the photos (identity, a cosine) and whether the ground is the
prompt's; and whether two other things are still drawn as asked. One thread. Goes on where it was stopped: what RUNS.csv
has is not run again. All cells of a subject and seed come before the next, so that an unfinished file is of use.
The second form writes the tables and the plot into tests/bench/RESULTS.md and reproduce.png.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from pack.nodes import host  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.objective import Network, Sample, collate, denoising_loss  # noqa: E402
from pack.trainers.selective import train_selective  # noqa: E402
from race_ours import Subject, hollow  # noqa: E402
from reproduce_cells import BASE, CELLS, STEPS, TABLES, UNTRAINED, Cell, Hollowed  # noqa: E402
from reproduce_tables import write_tables  # noqa: E402
from toys import OTHERS, TIMES, Runs, World, as_subject, draw, fresh_views, judged, load_world  # noqa: E402
from toys import on_new_grounds, others_kept, photos_of  # noqa: E402

NAME = "sks toy"
CAPTION = f"a photo of a {NAME}"
SUBJECTS = ["robot", "tower", "clown", "mushroom", "lifebuoy"]
EACH, DRAWING_STEPS = 2, 10  # pictures of a prompt
COLUMNS = ["cell", "subject", "seed", "steps", "steps_zo", "seconds", "peak_bytes", "held_out", "held_out_high_t"]
COLUMNS += ["identity", "ground", "others_kept"]
KEY = ("cell", "subject", "seed", "steps")
HIGH_T = max(TIMES)


class Stage(NamedTuple):
    """A toy, encoded."""

    examples: list
    views: list[Sample]
    pictures: torch.Tensor


def stage(world: World, name: str, ratio: float) -> Stage:
    def encoded(pictures: torch.Tensor) -> list:
        with torch.inference_mode():
            subject = as_subject(pictures, CAPTION)
            return host.encode_subject(*world, subject, ratio, PhaseMeter(torch.device("cpu")))

    return Stage(encoded(photos_of(name)), [view.high for view in encoded(fresh_views(name))], photos_of(name))


@torch.inference_mode()
def held_out(network: Network, views: Sequence[Sample]) -> dict[int, float]:
    """Loss of the views under fixed noise, by timestep."""
    x0, condition = collate(views)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    return {t: denoising_loss(network, x0, noise, torch.full((len(views),), t), condition).mean().item() for t in TIMES}


def run_cell(world: World, cell: Cell, ready: Stage, seed: int, steps: int, before: dict[int, float]) -> dict:
    config, after, began = cell.config(seed, steps), {}, time.process_time()
    with host.trainable(world.model, config.quantization) as network:
        meter = PhaseMeter(network.device)

        def on_step(step) -> None:  # the LoRA is in the network
            if step.step == step.steps:
                after.update(held_out(network, ready.views))

        names = host.lora_names(world.model)
        trained = train_selective(network, ready.examples, config, names, meter, on_step, drawing=cell.drawing(steps))
    seconds = time.process_time() - began
    return {
        "steps_zo": sum(step.kind == "zo" for step in trained.steps),
        "seconds": f"{seconds:.1f}",
        "peak_bytes": max(meter.peak_bytes(kind) for kind in {step.kind for step in trained.steps}),
    } | judged_run(world, ready, trained.lora, before, after)


def run_hollowed(world: World, cell: Hollowed, ready: Stage, seed: int, steps: int, before: dict[int, float]) -> dict:
    """The time has the making of the cache in it, in which no sample stands twice; the loss is of the whole U-Net."""
    samples = steps * BASE.batch_size
    train = hollow(**cell.settings, cache_samples=samples)
    run = train(world, Subject(ready.examples, ready.pictures), seed, (steps,))
    (last,) = run.snapshots
    with host.trainable(host.with_lora(world.model, last.learnt)) as network:
        after = held_out(network, ready.views)
    measured = {"steps_zo": 0, "seconds": f"{last.seconds:.1f}", "peak_bytes": run.peak_bytes}
    return measured | judged_run(world, ready, last.learnt, before, after)


def judged_run(world: World, ready: Stage, lora: dict, before: dict[int, float], after: dict[int, float]) -> dict:
    """Losses of the views, over those before, and scores of the pictures."""
    return {
        "held_out": f"{fmean(after.values()) / fmean(before.values()):.5f}",
        "held_out_high_t": f"{after[HIGH_T] / before[HIGH_T]:.5f}",
    } | scored(host.with_lora(world.model, lora), world, ready.pictures)


def untrained(world: World, ready: Stage) -> dict:
    nothing = {"steps_zo": 0, "seconds": 0, "peak_bytes": 0, "held_out": 1, "held_out_high_t": 1}
    return nothing | scored(world.model, world, ready.pictures)


def scored(model, world: World, photos: torch.Tensor, name: str = NAME, each: int = EACH, others: bool = True) -> dict:
    """What the judges say of pictures that the model and the world's CLIP draw of what is called so; and of others."""
    subject = draw(model, world.clip, world.vae, on_new_grounds(name), each, DRAWING_STEPS)
    identity, ground = judged(subject, photos)
    kept = others and others_kept(draw(model, world.clip, world.vae, OTHERS, each, DRAWING_STEPS))
    return {
        "identity": f"{identity:.5f}",
        "ground": f"{ground:.3f}",
        "others_kept": f"{kept:.3f}" if others else "",
    }


def run_all(file: Path, cells: list[str], subjects: list[str], seeds: list[int], steps: int) -> None:
    torch.set_num_threads(1)
    world, runs = load_world(), Runs(file, COLUMNS, KEY)

    def missing(cell: str, subject: str, seed: int) -> bool:
        return {"cell": cell, "subject": subject, "seed": seed, "steps": steps} not in runs

    for seed in seeds:
        for subject in subjects:
            wanted = [cell for cell in [UNTRAINED, *cells] if missing(cell, subject, seed)]
            if not wanted:
                continue
            before, encoded = None, {}
            for cell in wanted:
                ratio = CELLS[cell].settings.get("low_res_ratio", 1.0) if cell in CELLS else 1.0
                ready = encoded[ratio] = encoded.get(ratio) or stage(world, subject, ratio)
                if before is None:
                    with host.trainable(world.model) as network:
                        before = held_out(network, ready.views)
                if cell == UNTRAINED:
                    found = untrained(world, ready)
                else:
                    run = run_hollowed if isinstance(CELLS[cell], Hollowed) else run_cell
                    found = run(world, CELLS[cell], ready, seed, steps, before)
                print(runs.add({"cell": cell, "subject": subject, "seed": seed, "steps": steps} | found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tables", action="store_true", help="run nothing; write the tables of what FILE has")
    parser.add_argument(
        "--table", nargs="+", default=["table1", "fig3", "fig1a", "fig1b", "fractions"], choices=list(TABLES)
    )
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, choices=SUBJECTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="of the longest backpropagation; fewer for a try")
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables(arguments.file)
        return
    cells = list(dict.fromkeys(cell for name in arguments.table for cell in TABLES[name]))
    run_all(arguments.file, cells, arguments.subjects, arguments.seeds, arguments.steps)


if __name__ == "__main__":
    main()
