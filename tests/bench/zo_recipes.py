"""Zeroth-order steps made otherwise, from one half-taught LoRA: momentum, Adam, low-rank or more perturbations.

    python tests/bench/zo_recipes.py RUNS.csv [--subjects robot clown] [--seeds 0]
    python tests/bench/zo_recipes.py --table RUNS.csv

A LoRA learns a toy of the pocket world by 50 steps of backpropagation at full size. From there each variant goes on by
100 perturbations, two forward passes each, at the same photos, noise and timesteps. Told are the denoising losses of
the photos and of eight fresh views under fixed noise over what they were before those steps (1 is nothing learnt), and
by how much identity changed. Backpropagation in as much time stands beside them. One thread. Goes on where it was
stopped.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from pack.nodes import host  # noqa: E402
from pack.trainers.lora import Lora, injected  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.objective import Network, collate, denoising_loss  # noqa: E402
from pack.trainers.run import Backprop  # noqa: E402
from pack.trainers.selective import Draw, choices  # noqa: E402
from reproduce import SUBJECTS, Stage, held_out, scored, stage  # noqa: E402
from reproduce_cells import BASE, ZO_EPSILON  # noqa: E402
from toys import Runs, World, load_world, read_rows  # noqa: E402

BP_STEPS, PERTURBATIONS, BP_IN_THAT_TIME = 50, 100, 90  # the last by reproduce.py's seconds
ONE_EACH = [1] * PERTURBATIONS
MORE_LATER = [1] * 40 + [2] * 15 + [3] * 10
COLUMNS = ["variant", "subject", "seed", "seconds", "loss_photos", "loss_fresh", "identity_before", "identity"]
KEY = ("variant", "subject", "seed")
Optimizer = Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]


class Variant(NamedTuple):
    optimizer: Optimizer
    counts: list[int] = ONE_EACH  # perturbations of each step
    is_low_rank: bool = False  # z = u v^T for every factor, of the same mean square


def sgd(rate: float, momentum: float = 0.0) -> Optimizer:
    return partial(torch.optim.SGD, lr=rate, momentum=momentum)


BP = "backpropagation in as much time"
VARIANTS = {
    "plain, 0.01": Variant(sgd(1e-2)),
    "plain, 0.1": Variant(sgd(1e-1)),
    "momentum 0.9, 0.01": Variant(sgd(1e-2, 0.9)),
    "Adam, 0.0003": Variant(partial(torch.optim.Adam, lr=3e-4)),
    "low-rank perturbations, 0.1": Variant(sgd(1e-1), is_low_rank=True),
    "more perturbations later, 0.1": Variant(sgd(1e-1), MORE_LATER),
    BP: None,
}


class Loss:
    """Of one draw, as a function of the weights alone."""

    def __init__(self, network: Network, draw: Draw):
        self.network, samples = network, [example.high for example in draw.examples]
        self.x0, self.condition = collate(samples)
        self.t = torch.full((len(samples),), draw.t)
        self.noise = torch.randn(self.x0.shape, generator=torch.Generator().manual_seed(draw.noise_seed))

    def __call__(self) -> torch.Tensor:
        return denoising_loss(self.network, self.x0, self.noise, self.t, self.condition).mean()


def perturbation(params: Sequence[torch.Tensor], seed: int, is_low_rank: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if not is_low_rank:
        return [torch.randn(p.shape, generator=generator) for p in params]
    return [
        torch.randn(len(p), 1, generator=generator) * torch.randn(1, p.shape[1], generator=generator) for p in params
    ]


@torch.no_grad()
def zo_step(loss: Loss, params: Sequence[torch.Tensor], seeds: Sequence[int], variant: Variant, optimizer) -> None:
    def moved(z: Sequence[torch.Tensor], scale: float) -> None:
        for p, direction in zip(params, z, strict=True):
            p.add_(direction, alpha=scale)

    for p in params:
        p.grad = torch.zeros_like(p)
    for seed in seeds:
        z = perturbation(params, seed, variant.is_low_rank)
        moved(z, ZO_EPSILON)
        above = loss().item()
        moved(z, -2 * ZO_EPSILON)
        below = loss().item()
        moved(z, ZO_EPSILON)
        for p, direction in zip(params, z, strict=True):
            p.grad.add_(direction, alpha=(above - below) / (2 * ZO_EPSILON * len(seeds)))
    optimizer.step()


def draws(ready: Stage, network: Network, seed: int) -> Iterator[Draw]:
    config, generator = replace(BASE, seed=seed), torch.Generator().manual_seed(seed)
    while True:
        yield choices(ready.examples, config, 1, network.scheduler.config.num_train_timesteps, generator)


def go_on(network: Network, lora: Lora, ready: Stage, variant: Variant | None, backprop: Backprop, seed: int) -> None:
    """From the LoRA as it is."""
    made = draws(ready, network, 1000 + seed)
    if variant is None:
        for _, draw in zip(range(BP_IN_THAT_TIME), made, strict=False):
            backprop.step(Loss(network, draw), tuple(ready.examples[0].high.latent.shape))
        return
    optimizer = variant.optimizer(lora.parameters())
    for count, draw in zip(variant.counts, made, strict=False):
        seeds = [draw.noise_seed + number for number in range(1, count + 1)]
        zo_step(Loss(network, draw), lora.parameters(), seeds, variant, optimizer)


def losses(network: Network, ready: Stage) -> tuple[float, float]:
    """Of the photos and of fresh views."""
    photos = [example.high for example in ready.examples]
    return fmean(held_out(network, photos).values()), fmean(held_out(network, ready.views).values())


def learn(world: World, toy: str, seed: int, names: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """Each variant's row, all from one half-taught LoRA; backpropagation, whose moments change, comes last."""
    ready, found, learnt = stage(world, toy, 1.0), {}, {}
    config = replace(BASE, seed=seed)
    with host.trainable(world.model) as network:
        keys, meter = host.lora_names(world.model), PhaseMeter(network.device)
        with injected(network.unet, config.rank, config.lora_alpha, config.target_modules, seed) as lora:
            params = lora.parameters()
            backprop = Backprop(network, params, config, meter)
            for _, draw in zip(range(BP_STEPS), draws(ready, network, seed), strict=False):
                backprop.step(Loss(network, draw), tuple(ready.examples[0].high.latent.shape))
            start, before = [p.detach().clone() for p in params], losses(network, ready)
            learnt[""] = lora.state_dict(keys)
            for name in sorted(names, key=BP.__eq__):
                with torch.no_grad():
                    for p, value in zip(params, start, strict=True):
                        p.copy_(value)
                began = time.process_time()
                go_on(network, lora, ready, VARIANTS[name], backprop, seed)
                seconds, after = time.process_time() - began, losses(network, ready)
                left = [f"{now / then:.5f}" for now, then in zip(after, before, strict=True)]
                found[name] = dict(seconds=f"{seconds:.1f}", loss_photos=left[0], loss_fresh=left[1])
                learnt[name] = lora.state_dict(keys)
                for p in params:
                    p.grad = None
    scores = {
        name: scored(host.with_lora(world.model, lora), world, ready.pictures, others=False)["identity"]
        for name, lora in learnt.items()
    }
    for name, row in found.items():
        yield name, row | {"identity_before": scores[""], "identity": scores[name]}


def table(rows: Sequence[dict]) -> str:
    lines = ["| variant | runs | photos' loss left | fresh views' | identity, change | lowest | highest | CPU s |"]
    lines.append("|---" + "|---:" * 7 + "|")
    for name in VARIANTS:
        found = [row for row in rows if row["variant"] == name]
        changes = [float(row["identity"]) - float(row["identity_before"]) for row in found]
        means = [f"{fmean(float(row[key]) for row in found):.4f}" for key in ("loss_photos", "loss_fresh")]
        cells = [name, str(len(found)), *means, *(f"{f(changes):+.3f}" for f in (fmean, min, max))]
        lines.append(f"| {' | '.join(cells)} | {fmean(float(row['seconds']) for row in found):.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", action="store_true", help="run nothing; print the table of what FILE has")
    parser.add_argument("--subjects", nargs="+", default=["robot", "clown"], choices=SUBJECTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_rows(arguments.file)))
        return
    torch.set_num_threads(1)
    world, runs = load_world(), Runs(arguments.file, COLUMNS, KEY)
    for seed in arguments.seeds:
        for toy in arguments.subjects:
            place = {"subject": toy, "seed": seed}
            missing = [name for name in VARIANTS if place | {"variant": name} not in runs]
            for name, row in learn(world, toy, seed, missing) if missing else ():
                print(runs.add(place | {"variant": name} | row), flush=True)


if __name__ == "__main__":
    main()
