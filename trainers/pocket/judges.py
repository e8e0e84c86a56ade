"""Judges of pictures of the pocket world: what an object's shape, colour, material and ground are, and which one it is.

One small network with a head per attribute and an embedding of the object, whatever its ground and view. The heads of
shape, colour and material are for single objects; ground and identity are for toys too. train_judges.py trains it.

Dimensions: B pictures, D = 64 numbers of an identity.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .grounds import GROUNDS
from .shapes import SHAPES
from .world import COLOURS, MATERIALS, Scene

FILE = Path(__file__).with_name("judges.safetensors")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "material": MATERIALS,
    "ground": tuple(GROUNDS),
}
SIDE = 128  # of the pictures that are judged
SHRUNK = 64  # of what the network sees
WIDTHS = (32, 64, 96, 128)
HIDDEN = 192
IDENTITY = 64
CHUNK = 64  # pictures at a time, for memory


class Verdict(NamedTuple):
    """What the judge of one attribute says of each picture."""

    names: list[str]
    probabilities: Tensor  # (B,), of those names


class Judges(nn.Module):
    """The network. Rows of the picture stay apart until the end: what is on top of what is part of an identity."""

    def __init__(self):
        super().__init__()
        w1, w2, w3, w4 = WIDTHS
        self.trunk = nn.Sequential(  # (B, 3, 64, 64) -> (B, 128, 4, 4)
            _convolution(3, w1, kernel=5, stride=2),
            _convolution(w1, w2, stride=2),
            _convolution(w2, w3, stride=2),
            Refining(w3),
            _convolution(w3, w4, stride=2),
            Refining(w4),
        )
        rows = SHRUNK // 2 ** len(WIDTHS)
        self.features = nn.Sequential(nn.Linear(2 * w4 * rows, HIDDEN), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(HIDDEN, len(kinds)) for name, kinds in ATTRIBUTES.items()})
        self.embedding = nn.Linear(HIDDEN, IDENTITY)

    def forward(self, shrunk: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits (B, kinds) of each attribute and unit identities (B, D) of pictures (B, 3, 64, 64) in [0, 1]."""
        cells = self.trunk(shrunk * 4 - 2)  # (B, 128, 4, 4)
        rows = torch.cat([cells.mean(3), cells.amax(3)], 1)  # (B, 256, 4)
        features = self.features(rows.flatten(1))
        return {name: head(features) for name, head in self.heads.items()}, F.normalize(self.embedding(features))


class Refining(nn.Module):
    """A convolution that adds to what it gets."""

    def __init__(self, width: int):
        super().__init__()
        self.change = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def shrunk(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, 64, 64) of pictures (B, 3, 128, 128), by means of four pixels."""
    return F.avg_pool2d(pictures, SIDE // SHRUNK)


@cache
def load_judges(path: Path = FILE) -> Judges:
    """The trained network, in float32 on the CPU. It is loaded once."""
    judges = Judges()
    judges.load_state_dict(load_file(path))
    return judges.eval().requires_grad_(False)


def judge(pictures: Tensor, judges: Judges | None = None) -> dict[str, Verdict]:
    """The verdict on each attribute of pictures (B, 3, 128, 128) in [0, 1], each of a single object."""
    logits, _ = _seen(pictures, judges)
    verdicts = {}
    for name, kinds in ATTRIBUTES.items():
        probabilities, chosen = logits[name].softmax(1).max(1)
        verdicts[name] = Verdict([kinds[i] for i in chosen.tolist()], probabilities)
    return verdicts


def accuracy(pictures: Tensor, expected: Mapping[str, Sequence[str]], judges: Judges | None = None) -> dict[str, float]:
    """For each attribute in expected, the share of pictures (B, 3, 128, 128) that the judge gives the expected name."""
    verdicts = judge(pictures, judges)
    return {name: agreement(verdicts[name].names, names) for name, names in expected.items()}


def agreement(names: Sequence[str], expected: Sequence[str]) -> float:
    """Share of names that are as expected."""
    return sum(a == b for a, b in zip(names, expected, strict=True)) / len(expected)


def expectations(scenes: Sequence[Scene]) -> dict[str, list[str]]:
    """What the judges should say of scenes of single objects."""
    parts = [scene.parts[0] for scene in scenes]
    expected = {name: [getattr(part, name) for part in parts] for name in ("shape", "colour", "material")}
    return expected | {"ground": [scene.view.ground for scene in scenes]}


def identity(pictures: Tensor, judges: Judges | None = None) -> Tensor:
    """Unit vectors (B, D) of pictures (B, 3, 128, 128) in [0, 1]: near for one object, whatever its ground and view."""
    return _seen(pictures, judges)[1]


def identity_score(pictures: Tensor, photos: Tensor, judges: Judges | None = None) -> Tensor:
    """Mean cosine similarity (B,) of each picture (B, 3, 128, 128) to the photos (N, 3, 128, 128) of one object."""
    return (identity(pictures, judges) @ identity(photos, judges).T).mean(1)


@torch.no_grad()
def _seen(pictures: Tensor, judges: Judges | None) -> tuple[dict[str, Tensor], Tensor]:
    _check(pictures)
    network = judges or load_judges()
    seen = [_seen_twice(network, shrunk(chunk.detach().cpu().float())) for chunk in pictures.split(CHUNK)]
    logits = {name: torch.cat([by_name[name] for by_name, _ in seen]) for name in ATTRIBUTES}
    return logits, torch.cat([identities for _, identities in seen])


def _seen_twice(network: Judges, shrunk: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The mean of what the network says of the pictures and of their mirror images."""
    (logits, identities), (mirrored_logits, mirrored_identities) = network(shrunk), network(shrunk.flip(-1))
    means = {name: (logits[name] + mirrored_logits[name]) / 2 for name in ATTRIBUTES}
    return means, F.normalize(identities + mirrored_identities)


def _check(pictures: Tensor) -> None:
    if pictures.ndim != 4 or pictures.shape[1:] != (3, SIDE, SIDE) or not len(pictures):
        raise ValueError(f"judges need pictures of shape (B, 3, {SIDE}, {SIDE}), B > 0, got {tuple(pictures.shape)}")
    low, high = (x.item() for x in pictures.aminmax())
    if not (pictures.is_floating_point() and low >= 0 and high <= 1):
        raise ValueError(f"judges need floats in [0, 1], got {pictures.dtype} from {low:.4g} to {high:.4g}")
