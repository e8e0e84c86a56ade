"""Scores of pictures: closed forms, intervals that cover, and messages."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pack.trainers.evaluation import mean_with_interval, prompt_cosines, prompts_for, subject_scores
from pack.trainers.evaluation_sheet import GAP, TILE, contact_sheet


def at(*degrees: float) -> torch.Tensor:
    """Vectors in a plane, of any length."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, len(degrees) + 1)[:, None]


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_a_picture_scores_its_mean_cosine_to_all_photos_and_names_the_nearest():
    scores = subject_scores("DINO", at(0, 90), at(10, 40), ["a.jpg", "b.jpg"])
    first, second = scores.pictures
    assert first.subject == pytest.approx((cosine(10) + cosine(40)) / 2)
    assert (first.nearest_photo, second.nearest_photo) == ("a.jpg", "b.jpg")
    assert second.nearest == pytest.approx(cosine(50))
    assert scores.subject.mean == pytest.approx((first.subject + second.subject) / 2)
    assert scores.photos == pytest.approx(cosine(30))


def test_one_picture_and_one_photo_have_no_interval_and_no_pair():
    scores = subject_scores("DINO", at(0), at(60), ["a.jpg"])
    assert (scores.subject.low, scores.photos, scores.prompt) == (None, None, None)
    assert scores.subject.mean == pytest.approx(0.5)
    assert "0.500" in str(scores) and "prompt fidelity: not measured" in str(scores)


def test_prompts_are_compared_pair_by_pair():
    found = prompt_cosines(at(0, 90), at(60, 90))
    assert found == pytest.approx([0.5, 1.0])
    scores = subject_scores("CLIP-I", at(0, 90), at(0), ["a.jpg"], found, ["one", "two"])
    assert scores.prompt.mean == pytest.approx(0.75) and [one.prompt for one in scores.pictures] == found


def test_the_record_reads_back_as_json():
    record = json.loads(subject_scores("DINO", at(0, 20), at(5, 9), ["a.jpg", "b.jpg"]).to_json())
    assert record["features"] == "DINO" and record["subject"]["low"] <= record["subject"]["mean"]
    assert [picture["nearest_photo"] for picture in record["pictures"]] == ["a.jpg", "b.jpg"]


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(100):
        low, high = mean_with_interval(torch.randn(30, generator=generator).tolist(), seed)[1:]
        covered += low <= 0 <= high
    assert 85 <= covered <= 100  # 95 less what bootstrap loses at 30


def test_the_interval_is_a_function_of_values_and_seed():
    assert mean_with_interval([0.1, 0.5, 0.3]) == mean_with_interval([0.1, 0.5, 0.3])
    assert mean_with_interval([0.25] * 5) == (0.25, 0.25, 0.25)


@given(st.lists(st.text("ab ", min_size=1).filter(str.strip), min_size=1, max_size=5), st.integers(1, 6))
def test_prompts_are_one_for_all_or_one_for_each(lines, count):
    text = "\n\n".join(lines)
    if len(lines) in (1, count):
        found = prompts_for(text, count)
        assert len(found) == count and set(found) == {line.strip() for line in lines}
    else:
        with pytest.raises(ValueError, match=f"prompt: got {len(lines)} lines for {count} pictures"):
            prompts_for(text, count)


def test_the_sheet_has_a_tile_for_every_photo_and_picture():
    photos = [torch.zeros(64, 96, 3), torch.zeros(80, 64, 3)]
    pictures = torch.rand(8, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    scores = subject_scores("DINO", at(*range(8)), at(1, 2), ["a", "b"])
    sheet = contact_sheet(photos, pictures, scores)
    assert sheet.shape[0] == 1 and sheet.shape[2] == GAP + 6 * (TILE + GAP) and sheet.dtype == torch.float32
    assert 0 <= sheet.min() and sheet.max() <= 1
    assert (sheet[0, :, : GAP + TILE] == 0).all(-1).sum() >= TILE * TILE / 2  # the first photo, black, is there
