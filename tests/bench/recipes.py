"""Beyond the papers: which recipe learns a toy of the pocket world best, in equal processor time and in equal memory.

    python tests/bench/recipes.py RUNS.csv [--recipes NAME ...] [--subjects robot clown tower] [--seeds 0 1]
    python tests/bench/recipes.py --calibrate [--recipes NAME ...]
    python tests/bench/recipes.py --tables RUNS.csv

Every recipe has so many steps that its training takes about as long as 200 steps of plain backpropagation at full
size; --calibrate prints what a step of each takes. Photos, judges and prompts are reproduce.py's. One thread. Goes on
where it was stopped. The last form writes the table into tests/bench/RESULTS.md.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from math import cos, pi
from pathlib import Path
from typing import NamedTuple

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from options import FIVE, encoded, photographed  # noqa: E402
from pack.nodes.host_embeddings import with_token  # noqa: E402
from pack.nodes import host  # noqa: E402
from race_ours import TOKEN, TOKEN_NAME, TOKEN_RATE, Run, Subject, hollow, selective, token  # noqa: E402
from recipe_tables import write_tables  # noqa: E402
from reproduce import CAPTION, NAME, SUBJECTS, scored  # noqa: E402
from reproduce_cells import BASE, Cell  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402
from toys import Runs, World, load_world, photos_of  # noqa: E402

COLUMNS = ["recipe", "subject", "seed", "steps", "seconds", "peak_bytes", "identity", "ground", "others_kept"]
KEY = ("recipe", "subject", "seed", "steps")
MASKED = 0.1  # what counts beside the subject


class Learnt(NamedTuple):
    """What a recipe made, and what draws with it."""

    seconds: float
    peak_bytes: int
    model: object
    clip: object
    name: str  # what prompts call the toy


class Recipe(NamedTuple):
    """A training of so many steps."""

    steps: int
    learn: Callable[[World, str, int, int], Learnt]  # world, toy, seed, steps


def photos(world: World, toy: str, ratio: float = 1.0, masked: bool = False, caption: str = CAPTION) -> Subject:
    subject = photographed(toy, FIVE, MASKED if masked else None)
    subject = replace(subject, photos=tuple(photo._replace(caption=caption) for photo in subject.photos))
    return Subject(encoded(world, subject, ratio), photos_of(toy))


def lora(world: World, run: Run) -> Learnt:
    last = run.snapshots[-1]
    return Learnt(last.seconds, run.peak_bytes, host.with_lora(world.model, last.learnt), world.clip, NAME)


def plain(steps: int, span: tuple[int, int] | None = None, masked: bool = False, **settings) -> Recipe:
    """Backpropagation at full size, unless the settings have another strategy."""

    def learn(world: World, toy: str, seed: int, steps: int) -> Learnt:
        chosen = Cell(span=span).drawing(steps) if span else None
        subject = photos(world, toy, settings.get("low_res_ratio", 1.0), masked)
        return lora(world, selective(chosen, **settings)(world, subject, seed, (steps,)))

    return Recipe(steps, learn)


def hollowed(steps: int, ratio: float = 1.0, **settings) -> Recipe:
    """The centre left out; at a ratio below 1 the photos are smaller, too, which is hollowed and selective in one."""

    def learn(world: World, toy: str, seed: int, steps: int) -> Learnt:
        return lora(world, hollow(ratio < 1, **settings)(world, photos(world, toy, ratio), seed, (steps,)))

    return Recipe(steps, learn)


def averaged(steps: int, decay: float) -> Recipe:
    """Plain, but what is drawn with is an exponential moving average of the factors over all steps."""

    def learn(world: World, toy: str, seed: int, steps: int) -> Learnt:
        run = selective()(world, photos(world, toy), seed, range(1, steps + 1))
        mean = run.snapshots[0].learnt
        for snapshot in run.snapshots[1:]:
            mean = {name: torch.lerp(old, snapshot.learnt[name], 1 - decay) for name, old in mean.items()}
        return lora(world, run._replace(snapshots=[run.snapshots[-1]._replace(learnt=mean)]))

    return Recipe(steps, learn)


def warmed_up(steps: int, warm_up: float) -> Recipe:
    """Plain, but the learning rate rises over that share of the steps and falls to 0 along a cosine."""

    def learn(world: World, toy: str, seed: int, steps: int) -> Learnt:
        past, rising = count(1), warm_up * steps

        def set_rate(optimizer, *_) -> None:
            step = next(past)
            share = step / rising if step < rising else (1 + cos(pi * (step - rising) / (steps - rising))) / 2
            for group in optimizer.param_groups:
                group["lr"] = BASE.learning_rate * share

        hook = register_optimizer_step_pre_hook(set_rate)
        try:
            return plain(steps).learn(world, toy, seed, steps)
        finally:
            hook.remove()

    return Recipe(steps, learn)


def by_token(steps: int) -> Recipe:
    """A token alone, by gradients."""

    def learn(world: World, toy: str, seed: int, steps: int) -> Learnt:
        run = token_run(world, toy, seed, steps)
        clip = with_token(world.clip, TOKEN_NAME, run.snapshots[-1].learnt)
        return Learnt(run.snapshots[-1].seconds, run.peak_bytes, world.model, clip, TOKEN)

    return Recipe(steps, learn)


def token_run(world: World, toy: str, seed: int, steps: int) -> Run:
    settings = dict(method="gradient", quantization="none", learning_rate=TOKEN_RATE)
    return token(**settings)(world, photos(world, toy), seed, (steps,))


def token_then_lora(
    token_steps: int, steps: int, span: tuple[int, int] | None = None, masked: bool = False, **settings
) -> Recipe:
    """First the token by gradients, then the LoRA with the token in its captions; prompts use both."""

    def learn(world: World, toy: str, seed: int, steps: int) -> Learnt:
        first = token_run(world, toy, seed, token_steps)
        clip = with_token(world.clip, TOKEN_NAME, first.snapshots[-1].learnt)
        taught = world._replace(clip=clip)
        subject = photos(taught, toy, masked=masked, caption=f"a photo of a {TOKEN}")
        chosen = Cell(span=span).drawing(steps) if span else None
        made = lora(taught, selective(chosen, **settings)(taught, subject, seed, (steps,)))
        seconds, peak = first.snapshots[-1].seconds + made.seconds, max(first.peak_bytes, made.peak_bytes)
        return made._replace(seconds=seconds, peak_bytes=peak, name=TOKEN)

    return Recipe(steps, learn)


HIGH_T = (500, 750)  # figure 1b's best
SAVING = {"quantization": "int8", "gradient_checkpointing": True}
MORE_LAYERS, MIN_SNR = {"target_modules": "attention and feed-forward"}, {"min_snr_gamma": 5.0}
BOTH = MORE_LAYERS | MIN_SNR
MIDPOINTS = (250, 500, 750, 1000)  # of DTAP in timesteps; 750 is the paper's
RECIPES = {
    "BP-high": plain(200),
    "rank 4": plain(200, rank=4),
    "rate 2e-3": plain(200, learning_rate=2e-3),
    "t 500-750": plain(200, HIGH_T),
    "min-SNR 5": plain(200, **MIN_SNR),
    "feed-forward": plain(170, **MORE_LAYERS),
    "masked": plain(200, masked=True),
    "feed-forward, min-SNR 5": plain(170, **BOTH),
    "feed-forward, t 500-750": plain(170, HIGH_T, **MORE_LAYERS),
    "feed-forward, min-SNR 5, masked": plain(170, masked=True, **BOTH),
    "int8, checkpointed": plain(110, **SAVING),
    "feed-forward, min-SNR 5, int8, checkpointed": plain(100, **BOTH, **SAVING),
    "DTAP, r = 0.75, int8, checkpointed": plain(130, strategy="dtap", low_res_ratio=0.75, **SAVING),
    **{f"DTAP, r = 0.75, midpoint {t}": plain(230, strategy="dtap", low_res_ratio=0.75, t_mid=t) for t in MIDPOINTS},
    "BP-low, r = 0.75": plain(230, strategy="bp_low", low_res_ratio=0.75),
    "hollowed 39%": hollowed(180),
    "hollowed 39%, residual": hollowed(150, mode="residual"),
    "hollowed 39%, r = 0.75": hollowed(210, 0.75),
    "hollowed 77%": hollowed(210, hollow_fraction=0.774),
    "hollowed 77%, feed-forward, min-SNR 5": hollowed(190, hollow_fraction=0.774, **BOTH),
    "hollowed 77%, int8, checkpointed": hollowed(130, hollow_fraction=0.774, **SAVING),
    "token alone": by_token(250),
    "token, then LoRA": token_then_lora(35, 170),
    "token, then LoRA, feed-forward, min-SNR 5": token_then_lora(35, 145, **BOTH),
    "EMA of the factors, 0.99": averaged(200, 0.99),
    "warm-up of a tenth, then cosine": warmed_up(200, 0.1),
    "feed-forward, min-SNR 5, more than twice as long": plain(375, **BOTH),
}


def learn(world: World, recipe: Recipe, toy: str, seed: int) -> dict:
    made = recipe.learn(world, toy, seed, recipe.steps)
    found = {"seconds": f"{made.seconds:.1f}", "peak_bytes": made.peak_bytes}
    return found | scored(made.model, world._replace(clip=made.clip), photos_of(toy), made.name)


def calibrate(world: World, names: list[str], steps: int = 12) -> None:
    """Print the processor time of a step of each recipe, beside BP-high's."""
    of = {name: RECIPES[name].learn(world, SUBJECTS[0], 0, steps).seconds / steps for name in ["BP-high", *names]}
    for name, seconds in of.items():
        print(f"{name}: {1000 * seconds:.0f} ms, {200 * of['BP-high'] / seconds:.0f} steps", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--calibrate", action="store_true", help="train little, and print what a step takes")
    parser.add_argument("--tables", action="store_true", help="run nothing; write the tables of what FILE has")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--subjects", nargs="+", default=["robot", "clown", "tower"], choices=SUBJECTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables(arguments.file, list(RECIPES))
        return
    torch.set_num_threads(1)
    world = load_world()
    if arguments.calibrate:
        calibrate(world, arguments.recipes)
        return
    runs = Runs(arguments.file, COLUMNS, KEY)
    for seed in arguments.seeds:
        for toy in arguments.subjects:
            for name in arguments.recipes:
                place = {"recipe": name, "subject": toy, "seed": seed, "steps": RECIPES[name].steps}
                if place not in runs:
                    print(runs.add(place | learn(world, RECIPES[name], toy, seed)), flush=True)


if __name__ == "__main__":
    main()
