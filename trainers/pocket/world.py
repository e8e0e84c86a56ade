"""The pocket world: scenes of one to three stacked shapes on a ground, drawn from a seed.

An object is a stack of parts; a stack of several is called a toy. Which toys are never drawn, subjects.py says.
Angles are in radians, lengths in radii of an object.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from .grounds import GROUNDS
from .shapes import FLAT, SHAPES

COLOURS = {  # sRGB
    "red": (0.85, 0.08, 0.08),
    "orange": (1.0, 0.50, 0.02),
    "yellow": (1.0, 0.88, 0.10),
    "green": (0.06, 0.55, 0.15),
    "cyan": (0.10, 0.85, 0.85),
    "blue": (0.10, 0.20, 0.90),
    "purple": (0.48, 0.10, 0.70),
    "pink": (1.0, 0.50, 0.72),
    "white": (0.96, 0.96, 0.96),
    "black": (0.06, 0.06, 0.07),
}
MATERIALS = ("matte", "shiny", "striped", "spotted", "glowing")
TOY_SHARE = 0.35  # of scenes
TALL = 0.3  # of toys that have three parts
UPRIGHT_TURN = 0.8  # a flat shape never shows its side alone


@dataclass(frozen=True)
class Part:
    """One shape of an object."""

    shape: str
    colour: str
    material: str = "matte"
    size: float = 1.0  # radius


@dataclass(frozen=True)
class View:
    """Camera, light and place of one picture."""

    ground: str
    yaw: float = 0.4  # by which the object is turned
    elevation: float = 0.5  # of the camera over the ground
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)  # of the object in the picture: right and up, in pictures
    light: tuple[float, float] = (0.8, 0.9)  # azimuth and elevation
    brightness: float = 1.0
    seed: int = 0  # of the ground's texture

    def __post_init__(self):
        if self.ground not in GROUNDS:
            raise ValueError(f"ground must be one of {', '.join(GROUNDS)}, got {self.ground!r}")


@dataclass(frozen=True)
class Scene:
    """What one picture shows. parts are listed from the ground up."""

    parts: tuple[Part, ...]
    view: View

    @property
    def is_toy(self) -> bool:
        return len(self.parts) > 1


def random_scene(rng: random.Random, is_held_out: Callable[[tuple[Part, ...]], bool] = lambda _: False) -> Scene:
    """A scene of an object that is not held out."""
    while True:
        parts = random_toy(rng) if rng.random() < TOY_SHARE else (random_part(rng),)
        if not is_held_out(parts):
            return Scene(parts, random_view(rng, parts))


def random_part(rng: random.Random, size: float = 1.0) -> Part:
    """Any shape, colour and material; nothing black glows."""
    material = rng.choice(MATERIALS)
    colours = [colour for colour in COLOURS if (material, colour) != ("glowing", "black")]
    return Part(rng.choice(list(SHAPES)), rng.choice(colours), material, size)


def random_toy(rng: random.Random) -> tuple[Part, ...]:
    """Two or three parts, each smaller than the one it stands on; most are matte."""
    sizes = [1.0, rng.uniform(0.6, 0.8)]
    if rng.random() < TALL:
        sizes.append(sizes[1] * rng.uniform(0.6, 0.8))
    parts = [random_part(rng, size) for size in sizes]
    return tuple(part if rng.random() < 0.5 else Part(part.shape, part.colour, "matte", part.size) for part in parts)


def random_view(rng: random.Random, parts: tuple[Part, ...], ground: str | None = None) -> View:
    """A view on which the whole object can be seen."""
    turn = UPRIGHT_TURN if any(part.shape in FLAT for part in parts) else math.pi
    return View(
        ground=ground or rng.choice(list(GROUNDS)),
        yaw=rng.uniform(-turn, turn),
        elevation=rng.uniform(0.35, 0.75),
        zoom=rng.uniform(0.8, 1.15),
        shift=(rng.uniform(-0.1, 0.1), rng.uniform(-0.06, 0.06)),
        light=(rng.uniform(-math.pi, math.pi), rng.uniform(0.7, 1.2)),
        brightness=rng.uniform(0.85, 1.1),
        seed=rng.randrange(2**16),
    )
