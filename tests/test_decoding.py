"""Decoding: every kind of file against the pixels that were written into it."""

import struct

import numpy as np
import pytest
from pack.trainers.decoding import decode
from pictures import HEIGHT, PICTURE, RGB, WIDTH, assert_pixels, save
from PIL import Image, ImageCms, ImageOps, features


@pytest.mark.parametrize(
    "name, options, atol",
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.tif", {}, 0),
        ("a.TIFF", {"compression": "tiff_lzw"}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.webp", {"quality": 95}, 12),
        ("a.jpg", {"quality": 95}, 12),
        ("a.jpeg", {"quality": 95, "progressive": True}, 12),
    ],
)
def test_a_colour_file_gives_the_pixels_that_were_written(tmp_path, name, options, atol):
    assert_pixels(decode(save(tmp_path, name, **options)).image, RGB, atol)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_a_gray_file_is_the_same_in_all_channels(tmp_path, mode):
    picture = PICTURE.convert("L").convert(mode)
    decoded = decode(save(tmp_path, "a.png", picture))
    assert_pixels(decoded.image, np.asarray(picture.convert("L"))[..., None])
    assert "grayscale converted" in decoded.steps


@pytest.mark.parametrize("name, order", [("a.png", "<u2"), ("little.tif", "<u2"), ("big.tif", ">u2")])
def test_a_16_bit_file_is_scaled_and_not_clipped(tmp_path, name, order):
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).round().astype(order)
    image = decode(save(tmp_path, name, Image.fromarray(levels))).image
    assert_pixels(image, levels[..., None] / 65535 * 255)


@pytest.mark.parametrize("white", [255, 65535, 2**31 - 1])
def test_a_32_bit_file_is_scaled_by_the_depth_it_uses(tmp_path, white):
    levels = (np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * white).astype(np.int32)
    assert_pixels(decode(save(tmp_path, "a.tif", Image.fromarray(levels))).image, levels[..., None] / white * 255, 1e-3)


def test_a_float_file_keeps_its_range_and_refuses_nan(tmp_path):
    levels = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    assert_pixels(decode(save(tmp_path, "a.tif", Image.fromarray(levels))).image, levels[..., None] * 255)
    levels[3, 4] = np.nan
    with pytest.raises(ValueError, match="not numbers"):
        decode(save(tmp_path, "nan.tif", Image.fromarray(levels)))


@pytest.mark.parametrize("name, atol", [("a.tif", 0), ("adobe.jpg", 8)])
def test_cmyk_keeps_its_colours(tmp_path, name, atol):
    """JPEG stores CMYK inverted, as Adobe does; a reader that forgets it returns the negative."""
    decoded = decode(save(tmp_path, name, PICTURE.convert("CMYK"), **({"quality": 100} if atol else {})))
    assert_pixels(decoded.image, RGB, atol)
    assert "CMYK converted" in decoded.steps


def test_a_palette_with_transparency_lies_on_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 10, 30, 0, 90, 0])
    picture.putpixel((1, 0), 1)
    decoded = decode(save(tmp_path, "a.png", picture, transparency=1))
    assert_pixels(decoded.image, [[[200, 10, 30], [255, 255, 255]]])
    assert decoded.steps == ("palette converted", "transparency flattened onto white")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_alpha_is_flattened_onto_white(tmp_path, name):
    alpha = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1) % 256
    rgba = np.concatenate([RGB, alpha.astype(np.uint8)], -1)
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    decoded = decode(save(tmp_path, name, Image.fromarray(rgba), **options))
    assert_pixels(decoded.image, RGB * (alpha / 255) + 255 - alpha, 1e-3)
    assert "transparency flattened onto white" in decoded.steps


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_every_exif_orientation_gives_the_same_upright_picture(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    inverse = {6: 8, 8: 6}.get(orientation, orientation)  # the stored picture is the upright one turned back
    back = Image.Exif()
    back[0x0112] = inverse
    turned = PICTURE.copy()
    turned.info["exif"] = back.tobytes()
    stored = ImageOps.exif_transpose(turned)
    stored.info.pop("exif", None)
    options = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 95}}.get(name, {})
    decoded = decode(save(tmp_path, name, stored, exif=exif, **options))
    assert_pixels(decoded.image, RGB, 8 if name == "a.jpg" else 0)
    assert ("rotated by EXIF" in decoded.steps) == (orientation > 1)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if name == "a.webp" else {}
    decoded = decode(save(tmp_path, name, frames[0], save_all=True, append_images=frames[1:], **options))
    assert_pixels(decoded.image, [[[255, 0, 0]]])
    assert "first of 3 frames" in decoded.steps


def test_a_colour_profile_is_converted_and_srgb_left_alone(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode(save(tmp_path, "srgb.png", icc_profile=srgb)).steps == ()
    # Not sRGB by name, sRGB by content: converting must be tried, and change nothing but the last bit.
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    assert renamed != srgb
    decoded = decode(save(tmp_path, "mine.png", icc_profile=renamed))
    assert_pixels(decoded.image, RGB, 2)
    assert any("to sRGB" in step for step in decoded.steps)
    for name, profile in {"other space": lab, "unreadable": b"nonsense"}.items():
        decoded = decode(save(tmp_path, f"{name}.png", icc_profile=profile))
        assert_pixels(decoded.image, RGB)
        assert any("ignored" in step for step in decoded.steps)


def test_a_wide_gamut_red_becomes_more_than_srgb_would_show(tmp_path):
    """A profile whose red is purer than sRGB's: the same numbers then mean a stronger red."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
    red, green = (tag_offset(renamed, tag) for tag in (b"rXYZ", b"gXYZ"))
    swapped = bytearray(renamed)  # red and green primaries exchanged: every pixel must exchange them too
    swapped[red : red + 20], swapped[green : green + 20] = renamed[green : green + 20], renamed[red : red + 20]
    decoded = decode(save(tmp_path, "a.png", icc_profile=bytes(swapped)))
    assert_pixels(decoded.image, RGB[..., [1, 0, 2]], 2)


def tag_offset(profile: bytes, tag: bytes) -> int:
    at = profile.index(tag, 128)  # the tag table: signature, offset, size
    return struct.unpack(">I", profile[at + 4 : at + 8])[0]


@pytest.mark.parametrize("name", ["a.heic", "phone.jpg"])
def test_a_heic_file_is_read_or_the_package_it_needs_is_named(tmp_path, name):
    path = tmp_path / name
    try:
        import pillow_heif
    except ImportError:
        path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(80))
        with pytest.raises(ValueError, match="pip install pillow-heif"):
            decode(path)
    else:
        pillow_heif.from_pillow(PICTURE).save(tmp_path / "b.heic", quality=95)
        (tmp_path / "b.heic").rename(path)
        assert_pixels(decode(path).image, RGB, 12)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_file_is_read_whatever_its_first_brand(tmp_path):
    path = save(tmp_path, "a.avif", quality=95)
    assert_pixels(decode(path).image, RGB, 12)
    path.write_bytes(path.read_bytes()[:8] + b"mif1" + path.read_bytes()[12:])
    assert_pixels(decode(path).image, RGB, 12)


def test_a_jpeg_named_heic_is_read_and_an_unknown_one_is_not_a_crash(tmp_path):
    assert_pixels(decode(save(tmp_path, "a.heic", format="JPEG", quality=95)).image, RGB, 12)
    (tmp_path / "b.heic").write_bytes(b"nothing that is known")
    with pytest.raises(ValueError, match="pillow-heif|not a picture|damaged"):
        decode(tmp_path / "b.heic")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif"])
def test_a_file_that_was_cut_off_is_refused_also_when_pillow_is_told_to_accept_it(tmp_path, name, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    path = save(tmp_path, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(ValueError, match="damaged"):
        decode(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_of_any_kind_raises_only_value_error(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "webp", "bmp", "tif", "gif"):
        data = save(tmp_path, f"a.{suffix}").read_bytes()
        broken = tmp_path / f"broken.{suffix}"
        for _ in range(40):
            noisy = bytearray(data)
            for at in rng.integers(0, min(len(noisy), 300), 4):
                noisy[at] = rng.integers(256)
            broken.write_bytes(noisy)
            try:
                image = decode(broken).image
            except ValueError:
                continue
            assert image.ndim == 3 and image.isfinite().all() and 0 <= image.min() and image.max() <= 1


def test_an_eps_in_disguise_is_not_handed_to_ghostscript(tmp_path):
    PICTURE.save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not a picture"):
        decode(tmp_path / "a.png")
