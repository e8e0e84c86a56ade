"""What masks and output preservation are worth, on toys of the pocket world.

    python tests/bench/options.py RUNS.csv [--group masks preservation] [--seeds 0 1] [--subjects robot tower clown]
    python tests/bench/options.py --table RUNS.csv

A run is a training by backpropagation at full size as reproduce.py has it, and its scores: loss of fresh views under
fixed noise over what it was before (1 is nothing learnt), identity and ground on five grounds that no photo shows,
others_kept. Masks are exact: the photos are rendered by us.

Three kinds of photos: on five grounds, as the toys come; all on one ground, as when all were taken at home; cut out,
with white around. "masked 0.1" has a loss in which what is not the toy counts a tenth. Preservation adds to the loss
weight * |eps with the LoRA - eps without|^2 for the class prompt, at the same noised photos; no class photos.

One thread. Goes on where it was stopped: what RUNS.csv has is not run again. --table prints Markdown for RESULTS.md.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from pack.nodes import host  # noqa: E402
from pack.trainers.lora import ADAPTER, Lora, injected  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.objective import Condition, Network, collate, denoising_loss  # noqa: E402
from pack.trainers.photos import Subject  # noqa: E402
from pack.trainers.pocket.render import render  # noqa: E402
from pack.trainers.pocket.subjects import views  # noqa: E402
from pack.trainers.pocket.world import Scene  # noqa: E402
from pack.trainers.run import Backprop  # noqa: E402
from pack.trainers.selective import choices  # noqa: E402
from reproduce import CAPTION, Stage, held_out, run_cell, scored  # noqa: E402
from reproduce_cells import BASE, Cell  # noqa: E402
from toys import Runs, World, as_subject, fresh_views, load_world, photos_of, read_rows  # noqa: E402

CLASS_PROMPT = "a photo of a toy"
HOME = "wood"  # the ground of photos that were all taken in one place
OTHERS = ("snow", "leaves", "bricks")  # grounds to find masks by
FIVE, ONE, CUT_OUT = "five grounds", "one ground", "cut out"
PLAIN = "all of the photo"
MASKS = [
    (ONE, None), (ONE, 0.1), (CUT_OUT, None), (CUT_OUT, 0.1), (FIVE, None), (FIVE, 0.1), (ONE, 0.0), (ONE, 0.3),
]  # fmt: skip
PRESERVED = (0.0, 1.0)  # weights
VERBS = {"masks": "masked", "preservation": "preserved"}
STEPS, LONG = 200, 600
COLUMNS = ["group", "photos", "setting", "subject", "seed", "steps", "seconds", "held_out"]
COLUMNS += ["identity", "ground", "others_kept"]
KEY = ("group", "photos", "setting", "subject", "seed", "steps")
SCORES = ("held_out", "identity", "ground", "others_kept")


def on_ground(scenes: Sequence[Scene], ground: str) -> torch.Tensor:
    return render([replace(scene, view=replace(scene.view, ground=ground)) for scene in scenes])


def exact_masks(scenes: Sequence[Scene]) -> torch.Tensor:
    """(N, H, W): 1 where a picture is the same whatever lies under the toy."""
    pictures = torch.stack([on_ground(scenes, ground) for ground in OTHERS])
    return ((pictures.amax(0) - pictures.amin(0)).amax(1) < 1 / 255).float()


def photographed(name: str, kind: str, background_weight: float | None) -> Subject:
    """The toy's photos of a kind; with masks unless the weight is None."""
    scenes = views(name)
    masks = exact_masks(scenes)
    pictures = photos_of(name)
    if kind == ONE:
        pictures = on_ground(scenes, HOME)
    elif kind == CUT_OUT:
        pictures = pictures * masks[:, None] + (1 - masks[:, None])
    subject = as_subject(pictures, CAPTION)
    if background_weight is None:
        return subject
    photos = tuple(photo._replace(mask=mask) for photo, mask in zip(subject.photos, masks, strict=True))
    return replace(subject, photos=photos, background_weight=background_weight)


def encoded(world: World, subject: Subject, ratio: float = 1.0) -> list:
    with torch.inference_mode():
        return host.encode_subject(*world, subject, ratio, PhaseMeter(torch.device("cpu")))


def stage(world: World, name: str, kind: str, background_weight: float | None) -> Stage:
    """Identity is always measured against the photos on five grounds."""
    fresh = [view.high for view in encoded(world, as_subject(fresh_views(name), CAPTION))]
    return Stage(encoded(world, photographed(name, kind, background_weight)), fresh, photos_of(name))


@contextmanager
def without(lora: Lora) -> Iterator[None]:
    """The network as it was, inside the block."""
    scales = [layer.scaling[ADAPTER] for layer in lora.layers.values()]
    try:
        for layer in lora.layers.values():
            layer.scaling[ADAPTER] = 0.0
        yield
    finally:
        for layer, scale in zip(lora.layers.values(), scales, strict=True):
            layer.scaling[ADAPTER] = scale


def preserved_run(world: World, ready: Stage, weight: float, seed: int, steps: int, before: dict[int, float]) -> dict:
    """A training with output preservation; with weight 0 it is the plain one, and as quick."""
    config, began = replace(BASE, seed=seed, steps=steps), time.process_time()
    class_prompt = encoded(world, as_subject(photos_of("robot")[:1], CLASS_PROMPT))[0].high.context
    with host.trainable(world.model) as network:
        names, meter = host.lora_names(world.model), PhaseMeter(network.device)
        with injected(network.unet, config.rank, config.lora_alpha, config.target_modules, seed) as lora:
            backprop = Backprop(network, lora.parameters(), config, meter)
            generator = torch.Generator().manual_seed(seed)
            for step in range(1, steps + 1):
                draw = choices(ready.examples, config, step, network.scheduler.config.num_train_timesteps, generator)
                loss = _PreservingLoss(network, lora, draw, class_prompt, weight)
                backprop.step(loss, tuple(loss.x0.shape))
            seconds, after = time.process_time() - began, held_out(network, ready.views)
            learnt = lora.state_dict(names)
    return {
        "seconds": f"{seconds:.1f}",
        "held_out": f"{fmean(after.values()) / fmean(before.values()):.5f}",
    } | scored(host.with_lora(world.model, learnt), world, ready.pictures)


class _PreservingLoss:
    def __init__(self, network: Network, lora: Lora, draw, class_prompt: torch.Tensor, weight: float):
        self.network, self.lora, self.weight = network, lora, weight
        self.x0, self.condition = collate([example.high for example in draw.examples])
        self.of_class = Condition(class_prompt.expand(len(self.x0), *class_prompt.shape))
        self.t = torch.full((len(self.x0),), draw.t)
        self.noise = torch.randn(self.x0.shape, generator=torch.Generator().manual_seed(draw.noise_seed))

    def __call__(self) -> torch.Tensor:
        loss = denoising_loss(self.network, self.x0, self.noise, self.t, self.condition).mean()
        if not self.weight:
            return loss
        x_t = self.network.scheduler.add_noise(self.x0, self.noise, self.t)
        with torch.no_grad(), without(self.lora):
            was = self.network.predict(x_t, self.t, self.of_class)
        return loss + self.weight * (self.network.predict(x_t, self.t, self.of_class) - was).square().mean()


def run_all(file: Path, groups: list[str], subjects: list[str], seeds: list[int]) -> None:
    torch.set_num_threads(1)
    world, runs = load_world(), Runs(file, COLUMNS, KEY)
    cells = [("masks", kind, weight, STEPS) for kind, weight in MASKS if "masks" in groups]
    cells += [("preservation", FIVE, weight, LONG) for weight in PRESERVED if "preservation" in groups]
    for group, kind, weight, steps in cells:
        for seed in seeds:
            for subject in subjects:
                setting = PLAIN if weight is None else f"{VERBS[group]} {weight:g}"
                place = dict(group=group, photos=kind, setting=setting, subject=subject, seed=seed, steps=steps)
                if place in runs:
                    continue
                ready = stage(world, subject, kind, weight if group == "masks" else None)
                with host.trainable(world.model) as network:
                    before = held_out(network, ready.views)
                if group == "preservation":
                    found = preserved_run(world, ready, weight, seed, steps, before)
                else:
                    found = run_cell(world, Cell(), ready, seed, steps, before)
                print(runs.add(place | {name: found[name] for name in COLUMNS if name in found}), flush=True)


def table(rows: Sequence[dict]) -> str:
    """Means over toys and seeds, in Markdown."""
    lines = ["| photos | setting | runs | steps | loss left | identity | ground | others kept | CPU s |"]
    lines.append("|---" * 9 + "|")
    for cell in dict.fromkeys((row["photos"], row["setting"], row["steps"]) for row in rows):
        found = [row for row in rows if (row["photos"], row["setting"], row["steps"]) == cell]
        means = [f"{fmean(float(row[score]) for row in found):.3f}" for score in SCORES]
        seconds = f"{fmean(float(row['seconds']) for row in found):.0f}"
        lines.append(f"| {' | '.join([*cell[:2], str(len(found)), cell[2], *means, seconds])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", action="store_true", help="run nothing; print the table of what FILE has")
    parser.add_argument("--group", nargs="+", default=["masks", "preservation"], choices=["masks", "preservation"])
    parser.add_argument("--subjects", nargs="+", default=["robot", "tower"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_rows(arguments.file)))
        return
    run_all(arguments.file, arguments.group, arguments.subjects, arguments.seeds)


if __name__ == "__main__":
    main()
