"""Whether the lowest loss under fixed noise finds the best LoRA of a run, or the step to stop at, on the pocket world.

    python tests/bench/early_stop.py RUNS.csv [--subjects robot clown tower] [--seeds 0] [--rate 1e-3]
    python tests/bench/early_stop.py --table RUNS.csv

A run is a training by backpropagation at full size as reproduce.py has it, 600 steps, on a toy's five photos or on the
first four. After every 75 steps come its losses under fixed noise at four timesteps that are the middles of quarters:
of the photos it learns ("photos"), of the fifth, where it is kept out, under eight noises ("kept out"), and of eight
fresh views, which no user has ("views"); and, of pictures drawn with what was learnt so far, identity and ground on
five grounds that no photo shows, and others_kept. Identity is against all five photos. Step 0 is before training.

One thread. Goes on where it was stopped: a run that RUNS.csv has to its end is not run again. --table says what each
way to choose a step would have kept, and prints Markdown for RESULTS.md.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from pack.nodes import host  # noqa: E402
from pack.trainers.lora import Lora  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.objective import Network  # noqa: E402
from pack.trainers.selective import train_selective  # noqa: E402
from early_stop_tables import KEPT_OUT, KEY, PHOTOS, SCORES, VIEWS, by_run, table_of_steps, table_of_ways  # noqa: E402
from race_ours import Clock  # noqa: E402
from reproduce import SUBJECTS, Stage, held_out, scored, stage  # noqa: E402
from reproduce_cells import BASE  # noqa: E402
from toys import OTHERS, TIMES, Runs, World, draw, load_world, others_kept, read_rows  # noqa: E402

STEPS, EVERY = 600, 75
TRAINED_ON = {"five photos": 5, "four photos": 4}
NOISES = 8  # under which the photo that was kept out is looked at
OTHERS_EACH, DRAWING_STEPS = 2, 10
COLUMNS = ["trained_on", "learning_rate", "subject", "seed", "step", "seconds"]
COLUMNS += [f"{of} {t}" for of in (PHOTOS, KEPT_OUT, VIEWS) for t in TIMES] + [*SCORES]


def losses(network: Network, ready: Stage, count: int) -> dict[str, str]:
    """By column; nothing is kept out where all are trained on."""
    photos = [example.high for example in ready.examples]
    sets = {PHOTOS: photos[:count], KEPT_OUT: photos[count:] * NOISES, VIEWS: ready.views}
    return {
        f"{of} {t}": f"{loss:.6f}"
        for of, samples in sets.items()
        for t, loss in (held_out(network, samples).items() if samples else ())
    }


def drawn(model, world: World, ready: Stage) -> dict[str, str]:
    scores = scored(model, world, ready.pictures, each=1, others=False)
    others = draw(model, world.clip, world.vae, OTHERS, OTHERS_EACH, DRAWING_STEPS)
    return scores | {"others_kept": f"{others_kept(others):.3f}"}


def run(world: World, ready: Stage, count: int, rate: float, seed: int, steps: int) -> Iterator[dict]:
    """Its rows but the first."""
    config = replace(BASE, seed=seed, steps=steps, learning_rate=rate)
    clock, found = Clock(range(EVERY, steps + 1, EVERY)), []
    with host.trainable(world.model) as network:
        names = host.lora_names(world.model)

        def noted() -> dict[str, torch.Tensor]:  # time spent here is not the training's
            found.append(losses(network, ready, count))
            return Lora(network.unet, config.lora_alpha).state_dict(names)

        meter, photos = PhaseMeter(network.device), ready.examples[:count]
        train_selective(network, photos, config, names, meter, lambda step: clock.note(step.step, noted))
    for snapshot, evaluated in zip(clock.snapshots, found, strict=True):
        scores = drawn(host.with_lora(world.model, snapshot.learnt), world, ready)
        yield {"step": snapshot.step, "seconds": f"{snapshot.seconds:.1f}"} | evaluated | scores


def run_all(file: Path, subjects: Sequence[str], seeds: Sequence[int], rate: float, steps: int) -> None:
    torch.set_num_threads(1)
    world, runs = load_world(), Runs(file, COLUMNS, KEY)
    for seed in seeds:
        for subject in subjects:
            ready, untrained = stage(world, subject, 1.0), None
            for trained_on, count in TRAINED_ON.items():
                place = dict(trained_on=trained_on, learning_rate=rate, subject=subject, seed=seed)
                if place | {"step": steps} in runs:
                    continue
                untrained = untrained or drawn(world.model, world, ready)
                with host.trainable(world.model) as network:
                    first = {"step": 0, "seconds": 0} | losses(network, ready, count) | untrained
                for row in [first, *run(world, ready, count, rate, seed, steps)]:
                    if place | row not in runs:
                        print(runs.add(dict.fromkeys(COLUMNS, "") | place | row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", action="store_true", help="run nothing; print the tables of what FILE has")
    parser.add_argument("--subjects", nargs="+", default=["robot", "clown", "tower"], choices=SUBJECTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rate", type=float, default=BASE.learning_rate)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"a multiple of {EVERY}; fewer for a try")
    arguments = parser.parse_args()
    if arguments.table:
        groups = by_run(read_rows(arguments.file))
        print(f"{table_of_ways(groups)}\n\n{table_of_steps(groups)}")
        return
    run_all(arguments.file, arguments.subjects, arguments.seeds, arguments.rate, arguments.steps)


if __name__ == "__main__":
    main()
