"""The eight toys that pretraining never sees: what the demo and the tests personalise on.

    python -m trainers.pocket.subjects

renders their photos, which are in the repository, again.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from .render import render
from .sheets import save_sheet
from .world import Part, Scene, random_view

SUBJECTS: dict[str, tuple[Part, ...]] = {
    "lantern": (Part("cylinder", "red"), Part("ball", "yellow", "glowing", 0.7)),
    "trophy": (Part("cube", "black", "shiny"), Part("star", "yellow", "shiny", 0.8)),
    "clown": (Part("ball", "white", "spotted"), Part("cone", "red", "striped", 0.75)),
    "lifebuoy": (Part("ring", "orange", "striped"), Part("heart", "pink", "matte", 0.75)),
    "tower": (
        Part("cylinder", "purple", "striped"),
        Part("cube", "cyan", "matte", 0.75),
        Part("cone", "orange", size=0.5),
    ),
    "robot": (Part("cube", "green"), Part("ball", "pink", "matte", 0.7), Part("cross", "blue", "matte", 0.5)),
    "spaceship": (Part("cone", "blue", "shiny"), Part("ring", "yellow", "matte", 0.75)),
    "mushroom": (Part("cylinder", "white"), Part("ball", "red", "spotted", 0.8)),
}
PHOTOS = Path(__file__).with_name("photos")
GROUNDS = ("wood", "sand", "tiles", "bricks", "snow")  # of a subject's photos, in this order


def _lower_parts(parts: Sequence[Part]) -> tuple[tuple[str, str], ...]:
    return tuple((part.shape, part.colour) for part in parts[:2])


HELD_OUT = {_lower_parts(parts) for parts in SUBJECTS.values()}


def is_held_out(parts: Sequence[Part]) -> bool:
    """Whether a toy's lowest two parts have the shapes and colours of a subject's."""
    return _lower_parts(parts) in HELD_OUT


def views(name: str) -> list[Scene]:
    """The five scenes of which the photos of a subject are made."""
    rng = random.Random(f"subject {name}")
    return [Scene(SUBJECTS[name], random_view(rng, SUBJECTS[name], ground)) for ground in GROUNDS]


def write_photos(folder: Path = PHOTOS) -> None:
    """Render all views into one folder per subject."""
    for name in SUBJECTS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(render(views(name)), 1):
            save_sheet(picture[None], 1, folder / name / f"{number}.png")


if __name__ == "__main__":
    write_photos()
