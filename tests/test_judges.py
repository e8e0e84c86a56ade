"""The shipped judges against the renderer, which knows what is in a picture, and against subjects they never saw."""

import json

import pytest
import torch
from pack.trainers.pocket import judge_scores, judges
from pack.trainers.pocket.captions import full_caption
from pack.trainers.pocket.evaluate import confusions, failures
from pack.trainers.pocket.render import rendered
from pack.trainers.pocket.subjects import SUBJECTS, is_held_out
from pack.trainers.pocket.train_judges import contrastive_loss, objects
from safetensors import safe_open

SCENES = 150


@pytest.fixture(scope="module")
def drawn():
    return judge_scores.single_scenes(SCENES, seed=11)


@pytest.fixture(scope="module")
def pictures(drawn):
    return torch.cat([*rendered(drawn)])


@pytest.fixture(scope="module")
def photos():
    """Of each subject, (5, 3, 128, 128)."""
    return {name: judge_scores.photos_of(name) for name in SUBJECTS}


def test_judges_are_right_about_renders(drawn, pictures):
    """97% is asked of them, of which a draw of so few may fall short by two standard deviations."""
    measured = judges.accuracy(pictures, judges.expectations(drawn))
    assert set(measured) == set(judges.ATTRIBUTES)
    assert min(measured.values()) >= 0.97 - 2 * (0.97 * 0.03 / SCENES) ** 0.5, measured


def test_the_file_says_how_good_the_judges_were_on_a_thousand_renders():
    with safe_open(judges.FILE, "pt") as file:
        scores = json.loads(file.metadata()["scores"])
    assert all(scores[name] >= 0.97 for name in judges.ATTRIBUTES), scores
    assert judges.FILE.stat().st_size < 2e6


def test_judges_disagree_with_wrong_names(drawn, pictures):
    """One picture on, hardly anything is as expected: the accuracy is not one of the judge with itself."""
    measured = judges.accuracy(pictures.roll(1, 0), judges.expectations(drawn))
    assert max(measured.values()) < 0.4, measured


def test_probabilities_belong_to_the_names_and_are_surer_when_right(drawn, pictures):
    names, probabilities = judges.judge(pictures)["material"]
    right = torch.tensor([a == b for a, b in zip(names, judges.expectations(drawn)["material"], strict=True)])
    assert probabilities.min() >= 1 / len(judges.ATTRIBUTES["material"]) and probabilities.max() <= 1
    assert probabilities[right].mean() > 0.9


def test_the_judgement_of_a_picture_does_not_depend_on_its_neighbours(pictures):
    together, alone = judges.identity(pictures), judges.identity(pictures[7:8])
    torch.testing.assert_close(together[7:8], alone)
    assert torch.equal(together, judges.identity(pictures))


def test_the_nearest_photo_shows_the_same_subject(photos):
    owners = torch.arange(len(photos)).repeat_interleave(5)
    assert judge_scores.nearest_is_same(judges.identity(torch.cat(list(photos.values()))), owners) >= 0.95


def test_a_subjects_score_is_highest_for_its_own_photos(photos):
    everyone = torch.cat([own[:2] for own in photos.values()])
    for number, own in enumerate(photos.values()):
        means = judges.identity_score(everyone, own).view(len(photos), -1).mean(1)
        assert means.argmax() == number, means


def test_judges_never_trained_on_a_subject():
    assert not any(is_held_out(parts) for parts in objects(seed=0))


def test_contrastive_loss_is_what_the_paper_writes():
    """Equation 2, term by term."""
    vectors = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 1, 0])
    terms = []
    for i in range(6):
        others = [k for k in range(6) if k != i]
        total = sum((vectors[i] @ vectors[k] / 0.1).exp() for k in others)
        same = [k for k in others if labels[k] == labels[i]]
        terms.append(-sum(((vectors[i] @ vectors[k] / 0.1).exp() / total).log() for k in same) / len(same))
    torch.testing.assert_close(contrastive_loss(vectors, labels), torch.stack(terms).mean())


def test_pairs_are_ranked_by_label():
    vectors, labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), torch.tensor([0, 0, 1, 1])
    assert judge_scores.same_above_different(vectors, labels) == 1
    assert judge_scores.same_above_different(torch.ones(4, 2), labels) == 0.5
    assert judge_scores.same_above_different(vectors, torch.tensor([0, 1, 0, 1])) == 0.25


@pytest.mark.parametrize(
    "wrong, said",
    [
        (torch.zeros(2, 128, 128, 3), r"\(B, 3, 128, 128\).*got \(2, 128, 128, 3\)"),
        (torch.zeros(3, 128, 128), r"got \(3, 128, 128\)"),
        (torch.zeros(0, 3, 128, 128), "B > 0"),
        (torch.full((1, 3, 128, 128), 255, dtype=torch.uint8), "floats in .0, 1., got torch.uint8 from 255"),
        (torch.full((1, 3, 128, 128), -1.0), "from -1 to -1"),
    ],
)
def test_pictures_of_another_kind_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        judges.judge(wrong)


def test_failures_say_what_was_seen_instead():
    drawn = judge_scores.single_scenes(3, seed=5)
    expected = judges.expectations(drawn)
    seen = {name: list(names) for name, names in expected.items()}
    seen["shape"][1] = "nothing"
    captions = [full_caption(scene.parts[0], scene.view.ground) for scene in drawn]
    assert failures(captions, seen, expected) == [{"number": 1, "caption": captions[1], "seen": {"shape": "nothing"}}]
    assert confusions(seen["shape"], expected["shape"]) == [f"nothing for {expected['shape'][1]}: 1"]
