"""Crops: each against its own law."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.trainers.crops import fitted, resized


def disc(height: int, width: int, row: int, column: int) -> torch.Tensor:
    """A bright textured disc of radius 20 on gray, (height, width, 3)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y - row) ** 2 + (x - column) ** 2 < 400
    texture = torch.where((x // 4 + y // 4) % 2 == 0, 1.0, 0.6)
    return torch.where(inside, texture, 0.4)[..., None].expand(-1, -1, 3)


@pytest.mark.parametrize("at", [25, 100, 200, 375])
@pytest.mark.parametrize("portrait", [False, True])
def test_the_smart_crop_finds_the_subject(at, portrait):
    image = disc(100, 400, 50, at)
    whole = (image == 1).sum()
    if portrait:
        image = image.transpose(0, 1)
    cropped = fitted(image, 100, "smart")
    assert cropped.image.shape == (100, 100, 3)
    assert (cropped.image == 1).sum() == whole, cropped.steps


def test_the_smart_crop_of_a_flat_photo_is_its_centre():
    steps = fitted(torch.full((100, 300, 3), 0.5), 64, "smart").steps
    assert steps[0] == "cropped to 100x100 at x=100, y=0"


def test_the_centre_crop_is_the_centre():
    image = torch.rand(64, 100, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fitted(image, 64, "center").image, image[:, 18:82])


@given(height=st.integers(1, 300), width=st.integers(1, 300), resolution=st.sampled_from([64, 104, 256]))
@settings(max_examples=60, deadline=None)
def test_uncropped_photos_keep_their_area_and_aspect_in_multiples_of_8(height, width, resolution):
    column = torch.linspace(0, 1, width)
    whole = fitted(column.expand(height, width)[..., None].expand(-1, -1, 3), resolution, "none").image
    rows, columns, _ = whole.shape
    assert rows % 8 == 0 and columns % 8 == 0
    scale = resolution / (height * width) ** 0.5
    assert 0 <= rows - max(1, round(height * scale)) < 8 and 0 <= columns - max(1, round(width * scale)) < 8
    if width > 1:  # both ends of the ramp are still there: nothing was cropped
        assert whole[0, 0, 0] < whole[0, -1, 0]
        step = 1 / min(width - 1, round(width * scale) or 1)
        assert whole.min() <= step and whole.max() >= 1 - step


def test_resizing_keeps_more_than_8_bits():
    """A ramp of 2 levels in 255 steps of 8 bits would be 3 values; here every column stays different."""
    ramp = torch.linspace(0.5, 0.5 + 2 / 255, 256).expand(256, 256)[..., None].expand(-1, -1, 3)
    assert resized(ramp, 64, 64)[0, :, 0].unique().numel() == 64
