"""Trains the judges on renders alone, and writes their weights.

    python -m trainers.pocket.train_judges [--cache FOLDER]

Attributes are learnt by cross-entropy, identity by the supervised contrastive loss of Khosla et al. 2020
(arXiv 2004.11362), from two views of each object on different grounds. Every toy comes with a twin that differs from it
in the colour or shape of one part, which is the negative that is hardest to tell. No subject is ever seen.
"""

import argparse
import json
import logging
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from .fit import fit
from .grounds import GROUNDS
from .judge_scores import scores
from .judges import ATTRIBUTES, FILE, Judges, expectations, shrunk
from .render import rendered_bytes
from .seeding import seeded
from .shapes import SHAPES
from .softening import moved, softened
from .subjects import is_held_out
from .world import COLOURS, Part, Scene, random_part, random_toy, random_view

log = logging.getLogger(__name__)

SINGLES, TOYS = 6000, 1000  # objects that are drawn, each seen twice; each toy has a twin
BATCH_SINGLES, BATCH_TOYS = 28, 3  # of a batch
LEARNING_RATE = 2e-3
TEMPERATURE = 0.1
IDENTITY_WEIGHT = 0.3
CHUNK = 1024  # scenes
NORM_BATCHES = 40  # from which the norms take mean and variance

Parts = tuple[Part, ...]


def objects(seed: int) -> list[Parts]:
    """First the single objects, then each toy followed by its twin."""
    rng = random.Random(f"judges {seed}")
    drawn: list[Parts] = [(random_part(rng),) for _ in range(SINGLES)]
    for _ in range(TOYS):
        toy = _drawn(lambda: random_toy(rng))
        drawn += [toy, _drawn(lambda toy=toy: twin(toy, rng))]
    return drawn


def twin(toy: Parts, rng: random.Random) -> Parts:
    """The toy with another colour or another shape of one part."""
    place = rng.randrange(len(toy))
    part = toy[place]
    if rng.random() < 0.5:
        changed = replace(part, shape=rng.choice([shape for shape in SHAPES if shape != part.shape]))
    else:
        changed = replace(part, colour=rng.choice([colour for colour in COLOURS if colour != part.colour]))
    return (*toy[:place], changed, *toy[place + 1 :])


def _drawn(draw) -> Parts:
    while is_held_out(parts := draw()):
        pass
    return parts


def two_views(drawn: Sequence[Parts], seed: int) -> list[Scene]:
    """Scenes (2 * objects), both of an object side by side, on different grounds."""
    rng = random.Random(f"judges' views {seed}")
    return [Scene(parts, random_view(rng, parts, ground)) for parts in drawn for ground in rng.sample(list(GROUNDS), 2)]


def shrunk_renders(scenes: Sequence[Scene], file: Path) -> Tensor:
    """Pictures (N, 3, 64, 64) as bytes, kept in the file."""
    if not file.is_file():
        log.info("rendering %d scenes", len(scenes))
        chunks = [rendered_bytes(scenes[i : i + CHUNK]) for i in range(0, len(scenes), CHUNK)]
        pictures = torch.cat([(shrunk(chunk.float())).round().byte() for chunk in chunks])
        save_file({"pictures": pictures}, file)
    return load_file(file)["pictures"]


def labels(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Numbers (N,) of each attribute's name, -1 for those that a toy has not, and of the object as "identity"."""
    numbers = {
        name: torch.tensor([ATTRIBUTES[name].index(kind) for kind in kinds])
        for name, kinds in expectations(scenes).items()
    }
    toys = torch.tensor([scene.is_toy for scene in scenes])
    for name in ("shape", "colour", "material"):
        numbers[name][toys] = -1
    looks = [tuple((part.shape, part.colour, part.material) for part in scene.parts) for scene in scenes]
    known = {look: number for number, look in enumerate(dict.fromkeys(looks))}
    return numbers | {"identity": torch.tensor([known[look] for look in looks])}


def batch_places(generator: torch.Generator) -> Tensor:
    """Where both views of a batch's objects are among the scenes; a toy comes with its twin."""
    singles = torch.randperm(SINGLES, generator=generator)[:BATCH_SINGLES]
    toys = SINGLES + 2 * torch.randperm(TOYS, generator=generator)[:BATCH_TOYS]
    chosen = torch.cat([singles, toys, toys + 1])
    return torch.cat([2 * chosen, 2 * chosen + 1])


def loss(judges: Judges, pictures: Tensor, expected: dict[str, Tensor]) -> Tensor:
    """Of pictures (B, 3, 64, 64): cross-entropies of the attributes and the contrastive loss of the identities."""
    logits, identities = judges(pictures)
    wrong = sum(F.cross_entropy(logits[name], expected[name], ignore_index=-1) for name in ATTRIBUTES)
    return wrong + IDENTITY_WEIGHT * contrastive_loss(identities, expected["identity"])


def contrastive_loss(identities: Tensor, labels: Tensor) -> Tensor:
    """Equation 2 (L_out) of the paper for unit vectors (B, D); every label (B,) is there twice or more."""
    itself = torch.eye(len(labels), dtype=torch.bool)
    similarity = (identities @ identities.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    same = (labels[:, None] == labels) & ~itself
    log_share = similarity.log_softmax(1).masked_fill(~same, 0.0)
    return -(log_share.sum(1) / same.sum(1)).mean()


def new_judges(seed: int) -> Judges:
    with seeded(seed):
        return Judges()


def train(folder: Path, steps: int, seed: int) -> Judges:
    """Renders and the state of training are kept in the folder."""
    scenes = two_views(objects(seed), seed)
    pictures, expected = shrunk_renders(scenes, folder / f"judges_{seed}.safetensors"), labels(scenes)
    judges = new_judges(seed)

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        places = batch_places(generator)
        return softened(moved(pictures[places].float() / 255, generator), generator), places

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        seen, places = batch(generator)
        return loss(judges, seen, {name: numbers[places] for name, numbers in expected.items()})

    fit(nn.ModuleDict({"j": judges}), loss_of, steps, LEARNING_RATE, folder / f"judges_{seed}.state", seed, warm_up=50)
    generator = torch.Generator().manual_seed(seed)
    update_bn((batch(generator)[0] for _ in range(NORM_BATCHES)), judges)  # which fit does not average
    return judges.eval().requires_grad_(False)


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        judges = train(folder, arguments.steps, arguments.seed)
    measured = save(judges, arguments.output, {"steps": arguments.steps, "seed": arguments.seed})
    for name, score in measured.items():
        log.info("%s: %.4f", name, score)


def save(judges: Judges, path: Path, settings: dict[str, int]) -> dict[str, float]:
    """Write the weights in float16, in the metadata what made them and how good they are, which is returned."""
    rounded = judges.half().float()
    measured = scores(rounded)
    weights = {name: p.half() for name, p in rounded.state_dict().items() if p.is_floating_point()}
    save_file(weights, path, {"settings": json.dumps(settings), "scores": json.dumps(measured)})
    return measured


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder that keeps renders and state for the next run")
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
