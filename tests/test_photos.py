"""Photos: a folder or a batch becomes a Subject with nothing left out, and the report says what was done."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.trainers.decoding import flattened
from pack.trainers.photo_files import folder_fingerprint, photo_paths
from pack.trainers.photo_report import photo_report
from pack.trainers.photos import SubjectSettings, downscaled, image_batch, load_subject, mirrored, subject_from_images
from pictures import DREAMBOOTH, PICTURE, save
from PIL import Image, ImageOps


def load(folder: Path, root: Path | None = None, **options):
    return load_subject(folder, SubjectSettings(**options), root=root or folder)


def report_of(folder: Path, **options) -> str:
    return photo_report(load(folder, **options), SubjectSettings(**options), "folder dog")


def huge_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 60_000])
def test_a_decompression_bomb_is_refused_by_its_pixel_count(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(huge_png(side))
    with pytest.raises(ValueError, match=rf"bomb\.png: too many pixels .*{side * side}"):
        load(tmp_path)


def test_one_error_names_every_broken_file_and_no_good_one_is_loaded_without_it(tmp_path):
    save(tmp_path, "good.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.webp").touch()
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    message = str(error.value)
    assert "3 of 4 photos" in message
    assert all(name in message for name in ("text.jpg", "empty.webp", "lost.png", "save it again as PNG"))
    assert "good.png" not in message


def test_a_link_may_lead_to_another_folder_inside_but_not_outside(tmp_path):
    inside, outside = tmp_path / "input" / "dog", tmp_path / "private"
    inside.mkdir(parents=True)
    outside.mkdir()
    save(outside, "secret.png")
    save(inside.parent, "shared.png")
    (inside / "0.png").symlink_to(inside.parent / "shared.png")
    assert len(load(inside, root=inside.parent).subject.photos) == 1
    (inside / "1.png").symlink_to(outside / "secret.png")
    with pytest.raises(ValueError, match=r"1\.png: a link to .*secret\.png, outside of"):
        load(inside, root=inside.parent)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_named_like_a_photo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: not a plain file"):
        load(tmp_path)


def test_an_empty_folder_says_which_files_are_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("no photos here")
    with pytest.raises(ValueError, match=r"no photos in .*\.jpg.*\.png"):
        load(tmp_path)


def test_other_files_are_ignored_and_photos_come_in_natural_order(tmp_path):
    for name in ("10.png", "2.PNG", "1.png", "b1.png", "B0.png", ".hidden.png"):
        save(tmp_path, name, format="PNG")
    for name in (".DS_Store", "meta.json", "._1.png"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in photo_paths(tmp_path)] == ["1.png", "2.PNG", "10.png", "B0.png", "b1.png"]


def test_the_fingerprint_changes_with_names_sizes_and_times_and_with_nothing_else(tmp_path):
    seen = set()

    def is_new() -> bool:
        fingerprint = folder_fingerprint(tmp_path)
        assert fingerprint == folder_fingerprint(tmp_path)
        return len(seen) < (seen.add(fingerprint) or len(seen))

    assert is_new()
    path = save(tmp_path, "1.png")
    assert is_new()
    os.utime(path, ns=(1, 1))
    assert is_new()
    path.rename(tmp_path / "2.png")
    assert is_new()
    (tmp_path / "2.txt").write_text("a")
    assert is_new()
    (tmp_path / "2.json").write_text("{}")
    (tmp_path / ".hidden.png").write_text("")
    assert not is_new()
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
    assert is_new()


def test_the_same_folder_gives_the_same_subject(tmp_path):
    save(tmp_path, "1.jpg")
    save(tmp_path, "2.png", PICTURE.rotate(90))
    first, second = (load(tmp_path, crop="smart", resolution=64).subject for _ in range(2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(first.photos, second.photos, strict=True))


def test_photos_are_contiguous_float32_squares_that_hold_no_larger_image_alive(tmp_path):
    save(tmp_path, "1.png", PICTURE.resize((640, 64)))
    image = load(tmp_path, resolution=64).subject.photos[0].image
    assert image.dtype == torch.float32 and image.is_contiguous() and image.shape == (64, 64, 3)
    assert image.untyped_storage().nbytes() == image.numel() * 4


def test_exact_duplicates_are_kept_and_named(tmp_path):
    save(tmp_path, "1.png")
    save(tmp_path, "2.png", PICTURE.rotate(180))
    save(tmp_path, "3.bmp")
    loaded = load(tmp_path)
    assert [record.twin for record in loaded.records] == [None, None, "1.png"]
    assert len(loaded.subject.photos) == 3
    report = report_of(tmp_path)
    assert "1 exact duplicate" in report and "exact duplicate of 1.png" in report


def test_the_report_tells_the_story_of_every_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path, "0.jpg", PICTURE.resize((1024, 768)), exif=exif)
    save(tmp_path, "1.png", PICTURE.resize((300, 300)))
    save(tmp_path, "2.png", PICTURE.resize((512, 512)))
    (tmp_path / "2.txt").write_text("a sks dog asleep")
    summary, *lines = report_of(tmp_path, flip=True).splitlines()
    assert summary == (
        "3 photos from folder dog at 512x512, center crop; each also mirrored (flip); no exact duplicates"
    )
    assert lines[-3:] == [
        "0.jpg  1024x768, rotated by EXIF, cropped to 768x768 at the centre, resized to 512x512"
        " | caption (instance prompt): a photo of a sks dog",
        "1.png  300x300, UPSCALED from 300x300 to 512x512 | caption (instance prompt): a photo of a sks dog",
        "2.png  512x512, used as it is | caption (2.txt): a sks dog asleep",
    ]
    assert any("1.png" in line and "Upscaled" in line for line in lines[:-3])


def test_few_photos_bring_the_advice_to_take_more(tmp_path):
    save(tmp_path, "1.png")
    assert "3 to 6 photos" in report_of(tmp_path)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_batch_goes_the_way_of_a_file_without_rounding(channels):
    batch = torch.rand(2, 96, 128, channels, generator=torch.Generator().manual_seed(0))
    loaded = subject_from_images(batch, SubjectSettings(resolution=96))
    expected = [flattened(image)[:, 16:112] for image in batch]
    assert [photo.name for photo in loaded.subject.photos] == ["image 1", "image 2"]
    torch.testing.assert_close(image_batch(loaded.subject), torch.stack(expected))
    assert all(photo.caption == "a photo of a sks dog" for photo in loaded.subject.photos)


def test_an_image_batch_out_of_range_is_clamped_and_nan_is_refused():
    batch = torch.linspace(-1, 2, 64 * 64 * 3).reshape(1, 64, 64, 3)
    photo = subject_from_images(batch, SubjectSettings(resolution=64)).subject.photos[0]
    assert torch.equal(photo.image, batch[0].clamp(0, 1))
    with pytest.raises(ValueError, match="images: image 2 holds NaN"):
        subject_from_images(torch.cat([batch, batch * torch.nan]), SubjectSettings())
    with pytest.raises(ValueError, match=r"images: got a batch of shape \(1, 64, 64, 2\)"):
        subject_from_images(batch[..., :2], SubjectSettings())


def test_an_image_batch_of_inference_tensors_on_half_precision_is_fine():
    with torch.inference_mode():
        batch = torch.rand(1, 64, 64, 3).half()
        image = subject_from_images(batch, SubjectSettings(resolution=64)).subject.photos[0].image
    torch.testing.assert_close(image, batch[0].float())


def test_uncropped_photos_of_different_sizes_share_one_padded_batch_only_for_viewing(tmp_path):
    save(tmp_path, "1.png", PICTURE.resize((200, 100)))
    save(tmp_path, "2.png", PICTURE.resize((100, 200)))
    loaded = load(tmp_path, crop="none", resolution=128)
    shapes = [photo.image.shape for photo in loaded.subject.photos]
    assert shapes == [(96, 184, 3), (184, 96, 3)]
    batch = image_batch(loaded.subject)
    assert batch.shape == (2, 184, 184, 3)
    assert torch.equal(batch[0, 44:140], loaded.subject.photos[0].image)
    assert torch.equal(batch[0, :44], batch[0, 44].expand(44, -1, -1))
    assert "Sizes differ" in report_of(tmp_path, crop="none", resolution=128)


@pytest.mark.skipif(not DREAMBOOTH.is_dir(), reason="no DreamBooth photos beside the checkout")
@pytest.mark.parametrize("name", ["dog", "can"])
def test_real_photos_load_upright_at_full_contrast(name):
    loaded = load(DREAMBOOTH / name, resolution=256)
    assert len(loaded.subject.photos) >= 5
    assert not any(record.upscaled or record.twin for record in loaded.records)
    for photo in loaded.subject.photos:
        assert photo.image.shape == (256, 256, 3) and photo.image.std() > 0.1
        # Pillow's own 8-bit path is the oracle, to its rounding.
        with Image.open(DREAMBOOTH / name / photo.name) as picture:
            expected = ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), (256, 256), Image.LANCZOS)
        assert (photo.image - torch.from_numpy(np.array(expected)) / 255).abs().mean() < 1 / 255


@given(
    height=st.integers(8, 40).map(lambda n: 8 * n),
    width=st.integers(8, 40).map(lambda n: 8 * n),
    ratio=st.floats(0.05, 1),
)
@settings(max_examples=40, deadline=None)
def test_a_downscaled_photo_has_sides_in_multiples_of_8_close_to_the_ratio(height, width, ratio):
    image = torch.zeros(height, width, 3)
    for small, large in zip(downscaled(image, ratio).shape[:2], (height, width), strict=True):
        assert small % 8 == 0 and small >= 8
        assert small == 8 or abs(small - large * ratio) <= 4


def test_downscaling_is_antialiased_and_ratio_1_is_the_image_itself():
    stripes = torch.arange(128).remainder(2).float().expand(128, 128)[..., None].expand(-1, -1, 3)  # 1 pixel wide
    torch.testing.assert_close(downscaled(stripes, 0.5), torch.full((64, 64, 3), 0.5), atol=0.1, rtol=0)
    assert downscaled(stripes, 1) is stripes
    with pytest.raises(ValueError, match="ratio"):
        downscaled(stripes, 0)


def test_mirroring_twice_changes_nothing():
    image = torch.rand(8, 16, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mirrored(mirrored(image)), image)
    assert torch.equal(mirrored(image)[:, 0], image[:, -1])


@pytest.mark.parametrize("resolution", [0, 56, 516, 4096])
def test_a_resolution_that_no_network_takes_is_refused(resolution):
    with pytest.raises(ValueError, match=f"resolution: got {resolution}; needs a multiple of 8"):
        SubjectSettings(resolution=resolution)
