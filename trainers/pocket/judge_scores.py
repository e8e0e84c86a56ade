"""How good the judges are on renders they never saw, and at telling apart subjects nobody showed them."""

import random
from pathlib import Path

import torch
from torch import Tensor

from .judges import Judges, accuracy, expectations, identity
from .render import rendered
from .sheets import picture
from .subjects import PHOTOS, SUBJECTS
from .world import Scene, random_part, random_view

SINGLES = 1000
VIEWS = 12  # of each subject, on random grounds


def scores(judges: Judges) -> dict[str, float]:
    """Accuracy of each attribute on fresh renders, and of the identity on the subjects' photos and fresh views."""
    scenes = single_scenes(SINGLES, seed=1)
    measured = accuracy(torch.cat([*rendered(scenes)]), expectations(scenes), judges)
    photos = torch.cat([photos_of(name) for name in SUBJECTS])
    owners = torch.arange(len(SUBJECTS)).repeat_interleave(len(photos) // len(SUBJECTS))
    views = subject_views(VIEWS, seed=1)
    numbers = torch.arange(len(SUBJECTS)).repeat_interleave(VIEWS)
    return measured | {
        "identity, nearest photo": nearest_is_same(identity(photos, judges), owners),
        "identity, nearest view": nearest_is_same(identity(views, judges), numbers),
        "identity, AUC of views": same_above_different(identity(views, judges), numbers),
    }


def single_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes of one part each."""
    rng = random.Random(f"judges' scores {seed}")
    parts = [(random_part(rng),) for _ in range(count)]
    return [Scene(part, random_view(rng, part)) for part in parts]


def subject_views(count: int, seed: int) -> Tensor:
    """Pictures (subjects * count, 3, 128, 128) of the subjects one after another."""
    rng = random.Random(f"judges' subjects {seed}")
    scenes = [Scene(parts, random_view(rng, parts)) for parts in SUBJECTS.values() for _ in range(count)]
    return torch.cat([*rendered(scenes)])


def photos_of(subject: str, folder: Path = PHOTOS) -> Tensor:
    """The subject's photos (5, 3, 128, 128) in [0, 1]."""
    files = sorted((folder / subject).glob("*.png"))
    if not files:
        raise ValueError(f"{folder / subject} holds no photos; subjects are {', '.join(SUBJECTS)}")
    return torch.stack([picture(file) for file in files])


def nearest_is_same(identities: Tensor, labels: Tensor) -> float:
    """Share of unit vectors (B, D) whose nearest other has the same label."""
    similarity = (identities @ identities.T).fill_diagonal_(-torch.inf)
    return (labels[similarity.argmax(1)] == labels).float().mean().item()


def same_above_different(identities: Tensor, labels: Tensor) -> float:
    """How often a pair of one label is nearer than a pair of two: the area under the ROC curve."""
    row, column = torch.triu_indices(len(labels), len(labels), 1)
    similarity, same = (identities @ identities.T)[row, column], labels[row] == labels[column]
    ordered, different = similarity[same], similarity[~same].sort().values
    below, up_to = torch.searchsorted(different, ordered), torch.searchsorted(different, ordered, right=True)
    return ((below + up_to).double().mean() / 2 / len(different)).item()
