"""Truthful captions of scenes, in several phrasings, each of which leaves something out now and then."""

import random

from .shapes import SHAPES
from .world import COLOURS, MATERIALS, Part, Scene

OPENINGS = ("a photo of ", "a photo of ", "a picture of ", "an image of ", "")
GROUND_PHRASES = {
    "grass": ("on grass", "on green grass", "in the grass"),
    "sand": ("on sand", "on the sand", "on the beach"),
    "snow": ("on snow", "in the snow", "on white snow"),
    "water": ("on water", "in the water", "on blue water"),
    "leaves": ("on leaves", "on autumn leaves", "on orange leaves"),
    "bricks": ("on bricks", "on a brick floor", "on red bricks"),
    "wood": ("on wood", "on a wooden floor", "on top of a wooden floor"),
    "tiles": ("on tiles", "on a tile floor", "on black and white tiles"),
    "carpet": ("on a carpet", "on a purple carpet", "on top of a purple carpet"),
    "cobblestones": ("on cobblestones", "on stones", "on grey stones"),
}
SHAPE_WORDS = {"ball": ("ball", "sphere"), "cube": ("cube", "box"), "cylinder": ("cylinder", "can")}
MATERIAL_WORDS = {"shiny": ("shiny", "glossy"), "spotted": ("spotted", "dotted")}
ANY_WORD = "*"  # stands for one random token, so that a word nobody described changes nothing
ANY_WORD_SHARE = 0.1  # of captions
DROPPED = {"ground": 0.1, "colour": 0.1, "material": 0.3}  # share of captions that leave it out
SHAPE_SHARE = 0.8  # of single parts that are named; the others are a toy or an object


def caption(scene: Scene, rng: random.Random) -> str:
    """One phrasing of what the scene shows."""
    opening = rng.choice(OPENINGS)
    thing = _toy(scene.parts, rng) if scene.is_toy else _single(scene.parts[0], rng)
    if rng.random() < ANY_WORD_SHARE:
        thing = f"{ANY_WORD} {thing}"
    ground = "" if rng.random() < DROPPED["ground"] else " " + rng.choice(GROUND_PHRASES[scene.view.ground])
    return opening + _with_article(thing) + ground


def full_caption(part: Part, ground: str) -> str:
    """The caption that leaves nothing out, as the judges are asked about it."""
    return f"a photo of {_with_article(f'{part.colour} {part.material} {part.shape}')} {GROUND_PHRASES[ground][0]}"


def vocabulary() -> list[str]:
    """Every word a caption can hold."""
    texts = [*OPENINGS, *(phrase for phrases in GROUND_PHRASES.values() for phrase in phrases)]
    texts += [*COLOURS, *MATERIALS, *SHAPES, "an toy object with top made of and"]
    texts += [word for table in (SHAPE_WORDS, MATERIAL_WORDS) for words in table.values() for word in words]
    return sorted({word for text in texts for word in text.split()})


def _single(part: Part, rng: random.Random) -> str:
    shape = _word(SHAPE_WORDS, part.shape, rng) if rng.random() < SHAPE_SHARE else rng.choice(("toy", "toy", "object"))
    return " ".join([*_adjectives(part, rng, DROPPED["material"]), shape])


def _toy(parts: tuple[Part, ...], rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return "toy"
    foot, top = parts[0], parts[1]
    if kind < 0.6 and foot.colour != top.colour:
        return f"{foot.colour} and {top.colour} toy"
    lower, upper = (_named(part, rng) for part in (foot, top))
    if kind < 0.8:
        return f"{lower} with {_with_article(upper)} on top"
    return f"toy made of {_with_article(lower)} and {_with_article(upper)}"


def _named(part: Part, rng: random.Random) -> str:
    return " ".join([*_adjectives(part, rng, 0.6), _word(SHAPE_WORDS, part.shape, rng)])


def _adjectives(part: Part, rng: random.Random, without_material: float) -> list[str]:
    words = [] if rng.random() < DROPPED["colour"] else [part.colour]
    if rng.random() >= without_material:
        words.insert(rng.randrange(len(words) + 1), _word(MATERIAL_WORDS, part.material, rng))
    return words


def _word(table: dict[str, tuple[str, ...]], name: str, rng: random.Random) -> str:
    return rng.choice(table.get(name, (name,)))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
