"""Speed of textual inversion: zeroth-order steps on int8 weights, beside gradient steps on the weights as they are.

    python tests/bench/zo_ti.py [pocket | sd15] [--rounds 5] [--side 128]

In one process and in turns: a bare forward pass of the U-Net on a batch of 3, int8; a ZO step with n = 2, int8, which
runs such a batch; a gradient step. Medians of processor time, which other work on the machine stretches less than wall
time, and of wall time. Weights of sd15 are random, of the true size.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401, I001
from checkpoints import cached_checkpoint  # noqa: E402
from comfy.sd import load_checkpoint_guess_config  # noqa: E402
from pack.nodes import host, host_token  # noqa: E402
from pack.nodes.host_pocket import load_pocket  # noqa: E402
from pack.trainers.config import TokenConfig  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.objective import Condition  # noqa: E402
from pack.trainers.token_steps import Draw, GradientRun, TokenLoss, ZeroOrderRun  # noqa: E402
from pack.trainers.token_vectors import packed  # noqa: E402

SIDES = {"pocket": 128, "sd15": 512}
NAME = "my_toy"
ZO, GRADIENT, BARE = "ZO step, n = 2, int8", "gradient step, none", "bare forward of 3, int8"


def load(kind: str) -> tuple:
    """MODEL and CLIP."""
    with torch.inference_mode():
        if kind == "pocket":
            return load_pocket()[:2]
        return load_checkpoint_guess_config(str(cached_checkpoint(kind)), output_vae=False)[:2]


def step(stack: ExitStack, model, clip, side: int, method: str, quantization: str) -> tuple[Callable, object, Draw]:
    """One training step to call, the network it runs on, and what it draws; batched, as where there is room."""
    config = TokenConfig(method=method, quantization=quantization, candidates="batch", subspace="off")
    network = stack.enter_context(host.trainable(model, quantization))
    encoder = stack.enter_context(host_token.text_encoder(clip, NAME, quantization))
    latent = torch.randn(4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    (example,) = host_token.token_examples(model, network, encoder, [latent], [[f"a photo of a embedding:{NAME}"]])
    initial = encoder.initial_vectors("toy", 1)
    shapes = {name: vector.shape for name, vector in initial.items()}
    loss, draw = TokenLoss(network, encoder.module, shapes, _Unmetered(network.device)), Draw(example, 0, 700, 1, 2)
    run = (
        ZeroOrderRun(loss, packed(initial), config, True)
        if method == "zo"
        else GradientRun(loss, packed(initial), config)
    )
    return lambda: run.step(draw), network, draw


class _Unmetered(PhaseMeter):
    """Counts no bytes: its dispatch mode would be timed with the first step."""

    def phase(self, name, resident, circumstances=None):
        return ExitStack()


def timed(action: Callable) -> tuple[float, float]:
    """Processor and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=list(SIDES), default="pocket")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int)
    arguments = parser.parse_args()
    model, clip = load(arguments.kind)
    side = arguments.side or SIDES[arguments.kind]
    seconds: dict[str, list[tuple[float, float]]] = {BARE: [], ZO: [], GRADIENT: []}
    for number in range(arguments.rounds + 1):
        with ExitStack() as stack:
            zo, network, draw = step(stack, model, clip, side, "zo", "int8")
            x = draw.example.latent.expand(3, -1, -1, -1).to(network.device)
            condition = draw.example.encoders[0]({"clip_l": torch.zeros(3, 1, _width(clip))})
            condition = Condition(condition.context.detach(), condition.vector)
            t = torch.full((3,), 700, device=network.device)

            def bare():
                with torch.inference_mode():
                    network.predict(x, t, condition)  # noqa: B023

            zo(), bare()  # the first of each is not counted
            found = {BARE: [timed(bare), timed(bare)], ZO: [timed(zo), timed(zo)]}
        with ExitStack() as stack:
            gradient, *_ = step(stack, model, clip, side, "gradient", "none")
            gradient()
            found[GRADIENT] = [timed(gradient)]
        if number:
            for name, values in found.items():
                seconds[name] += values
            print(f"round {number}: " + ", ".join(f"{n} {v[0][0]:.3f} s" for n, v in found.items()), flush=True)
    print(f"\n{arguments.kind}, {side} px, {torch.get_num_threads()} threads\n")
    print("| | processor s | of a bare forward | steps / s | wall s |\n|---|---|---|---|---|")
    first = median(cpu for cpu, _ in seconds[BARE])
    for name, values in seconds.items():
        cpu, wall = (median(column) for column in zip(*values, strict=True))
        print(f"| {name} | {cpu:.3f} | {cpu / first:.2f} | {1 / cpu:.2f} | {wall:.3f} |")


def _width(clip) -> int:
    return clip.cond_stage_model.clip_l.transformer.get_input_embeddings().embedding_dim


if __name__ == "__main__":
    main()
