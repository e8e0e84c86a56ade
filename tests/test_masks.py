"""Masks: from files, alpha channels and batches, cropped as their photos are, weighing the loss of every trainer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from every_trainer import HOLLOWED, ON_U_NETS
from pack.nodes import host
from pack.trainers.crops import CROPS
from pack.trainers.decoding import decode
from pack.trainers.hollow import train_hollow
from pack.trainers.masks import latent_weight
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Condition, Network, Sample, collated_weights, denoising_loss, noise_scheduler
from pack.trainers.photo_report import photo_report
from pack.trainers.photos import (
    SubjectSettings,
    load_subject,
    loss_weight,
    shaded_batch,
    subject_facts,
    subject_from_images,
    with_mirrored,
)
from pack.trainers.resume import differences
from pictures import PICTURE, RGB, save
from PIL import Image
from test_selective import example

RED = Image.fromarray(RGB[..., 0])  # as a mask: what it becomes has to stay what the red channel becomes
SETTINGS = SubjectSettings(instance_prompt="a sks dog", resolution=64)


def load(folder, masks=None, **options):
    return load_subject(folder, replace(SETTINGS, **options), folder, masks)


def with_alpha(mask: Image.Image, picture: Image.Image = PICTURE) -> Image.Image:
    picture = picture.copy()
    picture.putalpha(mask)
    return picture


def half(height: int = 48, width: int = 64) -> Image.Image:
    """White on the left, black on the right."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("resolution", [64, 72, 128])
def test_a_mask_goes_the_way_of_its_photo_to_the_bit(tmp_path, crop, resolution):
    save(tmp_path, "1.png", PICTURE.resize((200, 90)))
    save(tmp_path, "1.mask.png", PICTURE.resize((200, 90)).getchannel("R").convert("RGB"))
    subject = load(tmp_path, crop=crop, resolution=resolution, flip=True).subject
    for photo in with_mirrored(subject):
        torch.testing.assert_close(photo.mask, photo.image[..., 0], atol=1e-6, rtol=0)
        assert photo.mask.is_contiguous() and photo.image.is_contiguous()
    plain = load(tmp_path, crop=crop, resolution=resolution, background_weight=1.0).subject
    assert torch.equal(plain.photos[0].image, subject.photos[0].image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_alpha_channel_is_turned_upright_with_its_photo(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(save(tmp_path, "1.png", with_alpha(half()), exif=exif))
    is_white = (decoded.image == 1).all(-1)  # it was flattened onto white
    assert torch.equal(decoded.alpha == 0, is_white) and is_white.any() and decoded.alpha.is_contiguous()


def test_all_sources_give_one_mask_and_the_nearest_to_hand_wins(tmp_path):
    for name in ("alpha", "file", "socket"):
        (tmp_path / name).mkdir()
    save(tmp_path / "alpha", "1.png", with_alpha(half()))
    save(tmp_path / "file", "1.jpg", PICTURE)
    save(tmp_path / "file", "1.mask.png", half())
    save(tmp_path / "socket", "1.png", with_alpha(RED))
    save(tmp_path / "socket", "1.MASK.PNG", RED, format="PNG")
    batch = torch.from_numpy(np.array(half(), np.float32) / 255)[None]
    found = {
        "alpha channel": load(tmp_path / "alpha"),
        "1.mask.png": load(tmp_path / "file"),
        "1 of the masks input": load(tmp_path / "socket", batch),
    }
    masks = [loaded.subject.photos[0].mask for loaded in found.values()]
    assert all(torch.equal(mask, masks[0]) for mask in masks) and masks[0].max() == 1
    assert [loaded.records[0].mask for loaded in found.values()] == list(found)
    assert load(tmp_path / "socket").records[0].mask == "1.MASK.PNG"
    image = torch.from_numpy(np.array(with_alpha(half()), np.float32) / 255)[None]
    assert torch.equal(subject_from_images(image, SETTINGS).subject.photos[0].mask, masks[0])
    assert torch.equal(subject_from_images(image[..., :3], SETTINGS, batch[0]).subject.photos[0].mask, masks[0])


def test_what_is_transparent_in_a_mask_file_is_not_the_subject(tmp_path):
    save(tmp_path, "1.png")
    save(tmp_path, "1.mask.png", with_alpha(half(), Image.new("RGB", (64, 48), "white")))
    mask = load(tmp_path).subject.photos[0].mask
    assert mask.unique().tolist() == [0, 1] or mask.mean() == pytest.approx(0.5, abs=0.02)


def test_a_mask_may_be_smaller_than_its_photo(tmp_path):
    save(tmp_path, "1.png", PICTURE.resize((640, 480)))
    save(tmp_path, "1.mask.png", half(36, 48))
    assert load(tmp_path).subject.photos[0].mask.mean() == pytest.approx(0.5, abs=0.02)


def test_photos_without_masks_are_what_they_were(tmp_path):
    save(tmp_path, "1.png")
    save(tmp_path, "2.png", with_alpha(Image.new("L", (64, 48), 255)))
    loaded = load(tmp_path)
    assert not loaded.subject.is_masked and [record.mask for record in loaded.records] == [None, None]
    assert not any("mask" in name or "background" in name for name in subject_facts(loaded.subject))
    assert "mask" not in photo_report(loaded, SETTINGS, "folder dog")
    save(tmp_path, "1.mask.png", Image.new("L", (64, 48), 255))
    full = load(tmp_path)
    assert not full.subject.is_masked and full.records[0].coverage == 1  # all of the photo counts, as without


def test_background_weight_1_reads_no_masks(tmp_path):
    save(tmp_path, "1.png", with_alpha(half()))
    save(tmp_path, "lost.mask.png", half())
    loaded = load(tmp_path, torch.full((1, 9, 9), torch.nan), background_weight=1.0)
    assert [photo.name for photo in loaded.subject.photos] == ["1.png"] and not loaded.subject.is_masked


def test_the_report_and_the_pictures_show_what_is_covered(tmp_path):
    save(tmp_path, "1.png")
    save(tmp_path, "1.mask.png", half())
    save(tmp_path, "2.png")
    loaded = load(tmp_path)
    summary, *lines = photo_report(loaded, SETTINGS, "folder dog").splitlines()
    assert "1 with masks, which cover 50% on average; the rest counts 0.1 times as much" in summary
    assert "mask (1.mask.png): 50%" in lines[-2] and "mask" not in lines[-1]
    shown, photos = shaded_batch(loaded.subject), loaded.subject.photos
    assert torch.equal(shown[1], photos[1].image)
    assert torch.equal(shown[0, :, :20], photos[0].image[:, :20]) and (shown[0, :, -20:] == 0.5).all()


def test_a_changed_mask_is_another_subject_to_a_saved_run(tmp_path):
    save(tmp_path, "1.png")
    facts = [subject_facts(load(tmp_path).subject)]
    for mask in (half(), RED):
        save(tmp_path, "1.mask.png", mask)
        facts += [subject_facts(load(tmp_path, background_weight=w).subject) for w in (0.1, 0.2)]
    assert len({str(one) for one in facts}) == len(facts)
    assert any(line.startswith("mask of 1.png: was") for line in differences(facts[1], facts[3]))
    assert differences(facts[1], facts[2]) == ["background_weight: was 0.1, is 0.2"]


BAD_FILES = {
    "narrower": (half(48, 40), r"1\.png: mask 1\.mask\.png: it is 40x48; needs the shape of the photo, 64x48"),
    "empty": (Image.new("L", (64, 48)), r"1\.png: mask 1\.mask\.png: it covers 0\.0% .* empty or inverted"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_mask_file_that_does_not_fit_is_named_with_its_photo(tmp_path, kind):
    mask, message = BAD_FILES[kind]
    save(tmp_path, "1.png")
    save(tmp_path, "1.mask.png", mask)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_mask_file_that_is_no_picture_or_belongs_to_none_is_named(tmp_path):
    save(tmp_path, "1.png")
    (tmp_path / "1.mask.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"1\.png: mask 1\.mask\.png: not a picture"):
        load(tmp_path)
    (tmp_path / "1.mask.png").rename(tmp_path / "3.mask.png")
    with pytest.raises(ValueError, match=r"masks without a photo: 3\.mask\.png; the mask of 01\.jpg is 01\.mask\.png"):
        load(tmp_path)


def test_a_mask_file_may_not_lie_outside(tmp_path):
    inside, outside = tmp_path / "dog", tmp_path / "private"
    inside.mkdir(), outside.mkdir()
    save(inside, "1.png")
    (inside / "1.mask.png").symlink_to(save(outside, "secret.png"))
    with pytest.raises(ValueError, match=r"mask 1\.mask\.png: a link to .*secret\.png, outside of"):
        load(inside)


BAD_BATCHES = {
    "count": (torch.ones(3, 48, 64), "masks: got 3 for 2 photos; needs one for each"),
    "dimensions": (torch.ones(2, 48, 64, 3), r"masks: got a batch of shape \(2, 48, 64, 3\)"),
    "nan": (torch.full((2, 48, 64), torch.nan), "masks: they hold NaN"),
    "shape": (torch.ones(2, 64, 64), r"mask 1 of the masks input: it is 64x64; needs .* 64x48"),
    "nothing": (torch.zeros(2, 48, 64), "mask 1 of the masks input: it covers 0.0%"),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_a_batch_of_masks_that_does_not_fit_is_refused(tmp_path, kind):
    masks, message = BAD_BATCHES[kind]
    for name in ("1.png", "2.png"):
        save(tmp_path, name)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, masks)
    with pytest.raises(ValueError, match=message):
        subject_from_images(torch.from_numpy(RGB / np.float32(255)).expand(2, -1, -1, -1), SETTINGS, masks)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_background_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="background_weight"):
        SubjectSettings(background_weight=weight)


@pytest.mark.parametrize("background_weight", [0.0, 0.1, 0.5])
def test_the_loss_is_the_mean_in_which_the_ground_counts_less(background_weight):
    """Closed form on a network that always answers 0: its error is the noise."""
    scheduler = noise_scheduler(torch.linspace(0.99, 0.01, 1000), "epsilon")
    network = Network(torch.nn.Identity(), lambda x_t, t, _: torch.zeros_like(x_t), scheduler, torch.float32, None)
    noise, mask = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 64)
    mask[:24, 8:40] = 1  # whole latents
    weight = collated_weights([Sample(noise[0], noise, None, latent_weight(mask, background_weight))])
    loss = denoising_loss(network, noise, noise, torch.tensor([500]), Condition(noise), weight=weight)
    is_subject = mask[::8, ::8] == 1
    inside, outside = noise.square()[..., is_subject].sum(), noise.square()[..., ~is_subject].sum()
    count = is_subject.sum() + background_weight * (~is_subject).sum()
    torch.testing.assert_close(loss[0], (inside + background_weight * outside) / (4 * count))


def test_photos_without_a_mask_count_whole_beside_those_with_one():
    latent, weight = torch.zeros(4, 2, 2), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    samples = [Sample(latent, latent), Sample(latent, latent, None, weight)]
    assert collated_weights(samples[:1]) is None
    assert torch.equal(collated_weights(samples), torch.stack([torch.ones(2, 2), weight])[:, None])


def test_a_weight_has_the_size_of_its_latent_at_either_resolution(tmp_path):
    save(tmp_path, "1.png", with_alpha(half()))
    (photo,) = load(tmp_path, resolution=128).subject.photos
    for ratio, side in ((1, 16), (0.75, 12), (0.5, 8)):
        weight = loss_weight(photo, 0.1, ratio)
        assert weight.shape == (side, side) and weight.mean().item() == pytest.approx(1)
        assert weight[0, 0] / weight[0, -1] == pytest.approx(10, rel=1e-3)
    assert loss_weight(photo._replace(mask=None), 0.1) is None


@pytest.mark.parametrize("trainer", ON_U_NETS, ids=lambda trainer: trainer.name)
def test_every_trainer_weighs_its_loss(trainer, tmp_path):
    """With every place counting double, the first loss is doubled to the bit."""

    def first_loss(weight: float | None) -> float:
        (tmp_path / str(weight)).mkdir()
        return trainer.run(tmp_path / str(weight), weight=weight, steps=1)[1][0].loss

    assert first_loss(2.0) == 2 * first_loss(None)


def test_what_the_centre_gave_is_used_again_under_another_mask(tmp_path):
    trainer = next(trainer for trainer in ON_U_NETS if trainer.config is HOLLOWED)
    facts = []
    for weight in (None, torch.rand(8, 8), torch.rand(8, 8)):
        photos = [example("mini", seed, 8).high._replace(weight=weight) for seed in range(2)]
        with trainer._network(None) as (network, names):
            places = dict(cache_path=tmp_path / "cache.bin", offload_device=torch.device("cpu"))
            meter = PhaseMeter(torch.device("cpu"))
            run = train_hollow(network, photos, HOLLOWED, names, meter, lambda step: None, **places)
            facts.append(run.cache.is_reused)
    assert facts == [False, True, True]


@torch.inference_mode()
def test_weights_are_fit_for_autograd_when_the_node_ran_in_inference_mode(tmp_path):
    save(tmp_path, "1.png", with_alpha(half()))
    subject = load(tmp_path, flip=True).subject
    one, mirrored = host.photo_weights(subject)
    assert not one.is_inference() and not mirrored.is_inference()
    torch.testing.assert_close(one.flip(1), mirrored)
