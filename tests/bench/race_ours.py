"""Our three trainers as race.py runs them, and what all its racers share."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from pack.nodes import host, host_token
from pack.nodes.host_embeddings import with_token
from pack.trainers.config import HollowConfig, SelectiveConfig, TokenConfig
from pack.trainers.hollow import train_hollow
from pack.trainers.lora import Lora
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Example, Network
from pack.trainers.selective import Draw, train_selective
from pack.trainers.token_inversion import train_token
from reproduce_cells import BASE
from torch import Tensor
from toys import World

LORA_NAME, TOKEN_NAME, WORD = "sks toy", "my_toy", "toy"
TOKEN = f"embedding:{TOKEN_NAME}"
RANK, LORA_RATE, TOKEN_RATE, BATCH = BASE.rank, BASE.learning_rate, 1e-2, BASE.batch_size
OF_STEPS = ("inference", "cache", "bp", "zo", "evaluation")  # phases of a run but for the encoding of photos


class Snapshot(NamedTuple):
    """What was learnt after a step."""

    step: int
    seconds: float  # processor time of the training until then
    learnt: dict[str, Tensor]


class Run(NamedTuple):
    snapshots: list[Snapshot]
    peak_bytes: int


class Subject(NamedTuple):
    """A toy's five photos."""

    examples: list[Example]
    pictures: Tensor  # (5, 3, 128, 128)


class Clock:
    """Processor time of a training, and copies of what it has learnt at some steps; their making is not in it."""

    def __init__(self, marks: Sequence[int]):
        self.marks, self.snapshots, self._began = marks, [], time.process_time()

    def note(self, step: int, copy: Callable[[], dict[str, Tensor]]) -> None:
        if step in self.marks:
            now = time.process_time()
            self.snapshots.append(Snapshot(step, now - self._began, copy()))
            self._began += time.process_time() - now

    def of_lora(self, network: Network, config: SelectiveConfig | HollowConfig, names: dict) -> Callable[..., None]:
        """Notes the LoRA that is in the network after a step."""
        return lambda step: self.note(step.step, lambda: Lora(network.unet, config.lora_alpha).state_dict(names))


Racer = Callable[[World, Subject, int, Sequence[int]], Run]  # world, subject, seed, steps to keep; the last one ends it


def selective(choices: Callable[..., Draw] | None = None, **settings) -> Racer:
    """The Selective BP/ZO Trainer; choices are those of each step, where they are not its own."""

    def run(world: World, subject: Subject, seed: int, marks: Sequence[int]) -> Run:
        config, clock = replace(BASE, **settings, seed=seed, steps=marks[-1]), Clock(marks)
        with host.trainable(world.model, config.quantization) as network:
            names, meter = host.lora_names(world.model), PhaseMeter(network.device)
            on_step = clock.of_lora(network, config, names)
            train_selective(network, subject.examples, config, names, meter, on_step, drawing=choices)
        return Run(clock.snapshots, peak(meter))

    return run


def hollow(small: bool = False, **settings) -> Racer:
    """The Hollowed Net Trainer, on small photos if asked. The time has the making of its cache in it."""

    def run(world: World, subject: Subject, seed: int, marks: Sequence[int]) -> Run:
        shared = dict(rank=RANK, learning_rate=LORA_RATE, batch_size=BATCH, seed=seed, steps=marks[-1])
        config, clock = HollowConfig(**shared | settings), Clock(marks)
        with host.trainable(world.model, config.quantization) as network, tempfile.TemporaryDirectory() as folder:
            names, meter = host.lora_names(world.model), PhaseMeter(network.device)
            places = dict(cache_path=Path(folder) / "cache.bin", offload_device=torch.device("cpu"))
            photos = [example.low if small else example.high for example in subject.examples]
            train_hollow(network, photos, config, names, meter, clock.of_lora(network, config, names), **places)
        return Run(clock.snapshots, peak(meter))

    return run


def token(**settings) -> Racer:
    """Quantize + ZO Textual Inversion. Its last snapshot is what the node gives: the best of its evaluations."""

    def run(world: World, subject: Subject, seed: int, marks: Sequence[int]) -> Run:
        shared = dict(token=TOKEN_NAME, initial_word=WORD, eval_every=75, patience=0, seed=seed, steps=marks[-1])
        config, clock = TokenConfig(**shared | settings), Clock(marks)
        with (
            host.trainable(world.model, config.quantization) as network,
            host_token.text_encoder(world.clip, TOKEN_NAME, config.quantization) as encoder,
        ):
            latents = [example.high.latent for example in subject.examples]
            meter, ready = PhaseMeter(network.device), []
            captions = [[f"a photo of a {TOKEN}"]] * len(latents)
            examples = host_token.token_examples(world.model, network, encoder, latents, captions)

            def on_step(step) -> None:
                if step.step < config.steps:
                    clock.note(step.step, lambda: {name: part[0].clone().cpu() for name, part in ready[0]().items()})

            trained = train_token(
                network, encoder.module, examples, encoder.initial_vectors(WORD, 1), config, meter, on_step,
                host_token.free_bytes(network), on_ready=ready.append,
            )  # fmt: skip
            clock.note(config.steps, lambda: trained.vectors)
        return Run(clock.snapshots, peak(meter))

    return run


def peak(meter: PhaseMeter) -> int:
    """Of the whole run but the encoding of photos."""
    return max(meter.peak_bytes(name) for name in OF_STEPS)


def drawing(world: World, learnt: dict[str, Tensor]) -> tuple:
    """MODEL and CLIP with what was learnt, and what the toy is called in prompts."""
    if any(name.startswith("clip_") for name in learnt):
        return world.model, with_token(world.clip, TOKEN_NAME, learnt), TOKEN
    return host.with_lora(world.model, learnt), world.clip, LORA_NAME
