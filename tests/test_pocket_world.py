"""The pocket world: renders are a function of the scene, captions are true, and the subjects stay unseen."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from pack.trainers.pocket.captions import GROUND_PHRASES, MATERIAL_WORDS, SHAPE_WORDS, caption, full_caption, vocabulary
from pack.trainers.pocket.grounds import GROUNDS
from pack.trainers.pocket.render import render
from pack.trainers.pocket.shapes import BOUND, FOOT, SHAPES, TOP
from pack.trainers.pocket.sheets import sheet
from pack.trainers.pocket.subjects import PHOTOS, SUBJECTS, is_held_out, views
from pack.trainers.pocket.text import WORDS, tokens
from pack.trainers.pocket.world import COLOURS, MATERIALS, Part, Scene, View, random_scene, random_toy
from PIL import Image

SIZE = 48


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng, is_held_out) for _ in range(count)]


def test_the_world_is_as_rich_as_promised():
    assert len(SHAPES) >= 8 and len(COLOURS) >= 10 and len(MATERIALS) >= 5 and len(GROUNDS) >= 10 and len(SUBJECTS) >= 8


def test_a_scene_looks_the_same_whatever_it_is_rendered_with():
    drawn = scenes(6)
    together = render(drawn, SIZE)
    assert together.shape == (6, 3, SIZE, SIZE)
    assert 0 <= together.min() and together.max() <= 1
    for scene, picture in zip(drawn, together, strict=True):
        torch.testing.assert_close(render([scene], SIZE)[0], picture, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fits_its_bound_and_stands_on_its_foot(shape):
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(4000, 3, generator=generator)
    outside = direction / direction.norm(dim=1, keepdim=True) * BOUND
    assert SHAPES[shape](tuple(outside.unbind(1))).min() > 0
    points = (torch.rand(200_000, 3, generator=generator) * 2 - 1) * BOUND
    inside = points[SHAPES[shape](tuple(points.unbind(1))) <= 0, 1]
    assert inside.min() == pytest.approx(-FOOT[shape], abs=0.06)
    assert inside.max() == pytest.approx(TOP[shape], abs=0.12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_distance_never_says_more_than_there_is(shape):
    """Or rays would jump through thin parts: no two points differ by more than their distance."""
    generator = torch.Generator().manual_seed(1)
    a = (torch.rand(20_000, 3, generator=generator) * 2 - 1) * 1.5
    b = a + torch.randn(a.shape, generator=generator) * 0.1
    change = SHAPES[shape](tuple(a.unbind(1))) - SHAPES[shape](tuple(b.unbind(1)))
    assert (change.abs() <= (a - b).norm(dim=1) * 1.001 + 1e-6).all()


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_material_can_be_seen_on_every_shape(shape, material):
    view = View("snow")
    plain, other = render([Scene((Part(shape, "red", m),), view) for m in ("matte", material)], SIZE)
    assert material == "matte" or (plain - other).abs().amax(0).gt(0.15).float().mean() > 0.005


def test_an_unknown_ground_is_named():
    with pytest.raises(ValueError, match="ground must be one of grass, .*got 'lava'"):
        View("lava")


def test_captions_say_nothing_that_is_not_so():
    rng = random.Random(0)
    words = {name: {name} for name in (*SHAPES, *MATERIALS)}
    words |= {name: set(table[name]) for table in (SHAPE_WORDS, MATERIAL_WORDS) for name in table}
    for scene in scenes(2000):
        said = caption(scene, rng)
        ground = next((p for p in sorted(GROUND_PHRASES[scene.view.ground], key=len)[::-1] if said.endswith(p)), "")
        thing = set(said.removesuffix(ground).split())
        true = set().union(*(words[part.shape] | words[part.material] | {part.colour} for part in scene.parts))
        claims = thing & (set(COLOURS) | set().union(*words.values()))
        assert claims <= true, f"{said!r} of {scene}"
        assert ground or not any(said.endswith(phrase) for phrases in GROUND_PHRASES.values() for phrase in phrases)


def test_captions_vary_and_leave_things_out():
    rng = random.Random(0)
    scene = Scene((Part("cube", "red", "shiny"),), View("grass"))
    said = [caption(scene, rng) for _ in range(500)]
    assert len(set(said)) > 100
    for word in ("red", "shiny", "cube", "toy", "grass", "*"):
        share = sum(word in text.split() for text in said) / len(said)
        assert 0.02 < share < 0.98, word
    assert full_caption(scene.parts[0], "grass") == "a photo of a red shiny cube on grass"


def test_every_word_has_its_tokens():
    assert set(vocabulary()) <= set(WORDS)
    made = tokens(["a toy", "", "a cyan * ball"], torch.Generator().manual_seed(0))
    assert made.shape == (3, 77)
    assert made[0].tolist()[:4] == [49406, 320, 5988, 49407] and (made[1, 1:] == 49407).all()
    with pytest.raises(KeyError):
        tokens(["a zebra"])


def test_subjects_are_never_drawn_but_would_be_noticed():
    rng = random.Random(0)
    assert not any(is_held_out(scene.parts) for scene in scenes(3000))
    assert all(is_held_out(parts) for parts in SUBJECTS.values())
    changed = [(replace(parts[0], material="glowing"), *parts[1:]) for parts in SUBJECTS.values()]
    assert all(is_held_out(parts) for parts in changed)
    assert sum(is_held_out(random_toy(rng)) for _ in range(2000)) < 20


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_shipped_photos_are_renders_of_the_subject(name):
    files = sorted((PHOTOS / name).glob("*.png"))
    assert len(files) == 5
    for file, picture in zip(files, render(views(name)), strict=True):
        shipped = np.asarray(Image.open(file), dtype=np.float32)
        made = np.asarray(sheet(picture[None], 1), dtype=np.float32)
        assert np.abs(shipped - made).mean() < 0.1  # edges may differ where arithmetic does
