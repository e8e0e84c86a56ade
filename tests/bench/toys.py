"""What studies on the pocket world share: its toys, what is drawn of them, judges, files of runs, and intervals."""

import csv
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import comfy.utils
import torch
from pack.nodes import host
from pack.nodes.host_pocket import load_pocket
from pack.trainers.memory import PhaseMeter
from pack.trainers.photos import Photo, Subject
from pack.trainers.pocket.captions import GROUND_PHRASES
from pack.trainers.pocket.judge_scores import photos_of
from pack.trainers.pocket.judges import identity_score, judge
from pack.trainers.pocket.render import rendered
from pack.trainers.pocket.subjects import GROUNDS as SEEN_GROUNDS
from pack.trainers.pocket.subjects import SUBJECTS
from pack.trainers.pocket.world import Scene, random_view
from pack.workflows.growing_rows import Rows
from torch import Tensor

SIDE = 128
NEW_GROUNDS = [ground for ground in GROUND_PHRASES if ground not in SEEN_GROUNDS]
OTHERS = ["a photo of a red cube on grass", "a photo of a blue striped ball on sand"]  # a LoRA should leave them alone
VIEWS, TIMES = 8, (125, 375, 625, 875)  # of a held-out loss


class World(NamedTuple):
    """What all runs share."""

    model: object
    clip: object
    vae: object


class Toy(NamedTuple):
    """One subject as latents of photos and of fresh views, and the pictures that judges compare with."""

    photos: list[Tensor]
    views: list[Tensor]
    pictures: Tensor  # (5, 3, 128, 128)


def load_world() -> World:
    """The pocket model in this process, which draws without a bar of progress from now on."""
    comfy.utils.set_progress_bar_enabled(False)
    with torch.inference_mode():
        return World(*load_pocket())


def on_new_grounds(name: str) -> list[str]:
    """Prompts that put what is called so on every ground that no photo shows."""
    return [f"a photo of a {name} {GROUND_PHRASES[ground][0]}" for ground in NEW_GROUNDS]


def fresh_views(name: str) -> Tensor:
    """Renders of a toy that no training sees, (VIEWS, 3, 128, 128)."""
    rng = random.Random(f"token study {name}")
    return torch.cat([*rendered([Scene(SUBJECTS[name], random_view(rng, SUBJECTS[name])) for _ in range(VIEWS)])])


def as_subject(pictures: Tensor, caption: str) -> Subject:
    """Pictures (N, 3, 128, 128) as the trainers take them."""
    photos = tuple(Photo(str(i), picture.movedim(0, 2), caption) for i, picture in enumerate(pictures))
    return Subject(photos, caption, "", SIDE, False)


def toy(world: World, name: str, caption: str) -> Toy:
    def latents(pictures: Tensor) -> list[Tensor]:
        meter = PhaseMeter(torch.device("cpu"))
        with torch.inference_mode():
            return host.encode_photos(world.model, world.vae, as_subject(pictures, caption), meter)

    return Toy(latents(photos_of(name)), latents(fresh_views(name)), photos_of(name))


def draw(model, clip, vae, texts: Iterable[str], each: int, steps: int) -> Tensor:
    """So many pictures of every text, (texts * each, 3, 128, 128) in [0, 1]; a text's number is its seed."""
    import nodes  # ComfyUI's

    drawn = []
    with torch.inference_mode():
        (empty,) = nodes.CLIPTextEncode().encode(clip, "")
        (size,) = nodes.EmptyLatentImage().generate(SIDE, SIDE, each)
        for seed, text in enumerate(texts):
            (positive,) = nodes.CLIPTextEncode().encode(clip, text)
            sample = (model, seed, steps, 3.0, "ddim", "simple", positive, empty, size)
            drawn += nodes.VAEDecode().decode(vae, nodes.KSampler().sample(*sample)[0])
    return torch.cat(drawn).movedim(3, 1)


def judged(drawn: Tensor, photos: Tensor) -> tuple[float, float]:
    """Identity of pictures on_new_grounds, and the share of them whose ground is the prompt's."""
    expected = [ground for ground in NEW_GROUNDS for _ in range(len(drawn) // len(NEW_GROUNDS))]
    found = judge(drawn)["ground"].names
    hits = [a == b for a, b in zip(found, expected, strict=True)]
    return identity_score(drawn, photos).mean().item(), fmean(hits)


def others_kept(drawn: Tensor) -> float:
    """The share of pictures of OTHERS that still show the prompt's colour and shape."""
    expected = [text.split() for text in OTHERS for _ in range(len(drawn) // len(OTHERS))]
    found = judge(drawn)
    pairs = zip(expected, found["colour"].names, found["shape"].names, strict=True)
    return fmean(colour in words and shape in words for words, colour, shape in pairs)


class Runs(Rows):
    """Rows of a CSV file that only grows, so that a study goes on where it was stopped; key names its columns."""

    def __init__(self, file: Path, columns: Sequence[str], key: Sequence[str]):
        super().__init__(file, columns, lambda row: tuple(str(row[name]) for name in key))

    def __contains__(self, wanted: Mapping[str, object]) -> bool:
        return super().__contains__(self.key(wanted))


def read_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
