"""The pocket model's card says what was measured, and it was measured on the weights that are shipped."""

import json

import pytest
from pack.trainers.pocket.judges import ATTRIBUTES
from pack.trainers.pocket.subjects import SUBJECTS
from pack.trainers.pocket.weights import FILE, checksum

FOLDER = FILE.parent
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
MAX_BYTES = 40_000_000


def measured(name: str) -> dict:
    return json.loads((FOLDER / "card" / name).read_text(encoding="utf-8"))


def test_the_card_names_the_weights():
    assert checksum() in CARD
    assert f"{FILE.stat().st_size:,} bytes" in CARD


def test_what_is_shipped_is_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= MAX_BYTES


def test_the_figures_are_of_these_weights():
    assert measured("evaluation.json")["weights_sha256"] == checksum()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_table_has_the_measured_accuracies(name):
    accuracy = measured("evaluation.json")["accuracy"]
    cells = [f"{100 * accuracy[origin][name]:.1f}%" for origin in ("renders", "reconstructions", "samples")]
    assert f"| {name} | {' | '.join(cells)} |" in CARD


def test_the_subjects_were_learnt_with_these_weights():
    """At least 7 of 8 nearer to their photos than before, and the ground still what the prompt says."""
    result = measured("subjects.json")
    assert result["weights_sha256"] == checksum() and set(result["subjects"]) == set(SUBJECTS)
    scores = result["subjects"].values()
    assert sum(score["after"]["identity"] > score["before"]["identity"] + 0.2 for score in scores) >= 7
    assert all(score["after"]["ground"] >= 0.8 for score in scores)
    for subject, score in result["subjects"].items():
        assert f"| {subject} | {score['before']['identity']:.2f} | {score['after']['identity']:.2f} |" in CARD
