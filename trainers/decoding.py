"""One photo file to upright sRGB pixels, whatever a camera, a phone or an editor wrote.

Decoding is Pillow's (HEIC by pillow-heif where it is installed). Ours is what Pillow leaves to the caller: orientation,
white level, transparency, colour profile, first frame, and refusing what is damaged or too large.

Shapes: H and W pixels; images are (H, W, 3) float32 tensors, 0-1.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError
from torch import Tensor

# Only these decoders get to see a file: Pillow would hand a renamed EPS to Ghostscript, another process.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # ISO/IEC 23008-12
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}

# Pillow's default for Image.MAX_IMAGE_PIXELS; a constant here, since other node packs set that one to None.
MAX_PIXELS = 1024**3 // 4 // 3

GRAY_MODES = {"1", "L", "LA", "La"}
ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
DAMAGE = (  # what Pillow's decoders raise on damaged bytes
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

UPRIGHT = {  # EXIF orientation -> how to turn (H, W, 3) upright
    2: lambda image: image.flip(1),
    3: lambda image: image.flip(0, 1),
    4: lambda image: image.flip(0),
    5: lambda image: image.transpose(0, 1),
    6: lambda image: image.rot90(-1, (0, 1)),
    7: lambda image: image.flip(0, 1).transpose(0, 1),
    8: lambda image: image.rot90(1, (0, 1)),
}


class Decoded(NamedTuple):
    """A photo as its file shows it, and how it came to look so."""

    image: Tensor  # (H, W, 3), upright, sRGB
    width_px: int  # as stored, before turning
    height_px: int
    steps: tuple[str, ...]  # "rotated by EXIF", "first of 12 frames"
    alpha: Tensor | None = None  # (H, W) of how solid it is, 0-1; None where it is all solid


def decode(path: Path) -> Decoded:
    """The first picture of a file. ValueError says what is wrong with the file and what to do, without its name."""
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with _truncated_refused(), _opened(path) as picture:
            return _decoded(picture)
    except BOMBS as error:
        raise ValueError(f"too many pixels ({error}); save it smaller or remove it") from error
    except UnidentifiedImageError as error:
        raise ValueError("not a picture, or damaged; remove it or save it again as PNG") from error
    except (PermissionError, FileNotFoundError, ImportError) as error:
        raise ValueError(str(error)) from error
    except DAMAGE as error:
        raise ValueError(f"damaged or cut off ({error}); remove it or save it again as PNG") from error


def flattened(image: Tensor) -> Tensor:
    """(H, W, 1), (H, W, 3) or (H, W, 4) channels as (H, W, 3); alpha, the fourth, lies on white."""
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + (1 - alpha)
    return image.expand(-1, -1, 3)


@contextmanager
def _truncated_refused() -> Iterator[None]:
    # Some node packs switch this on for the whole process, and half a photo then loads as grey without a word.
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _opened(path: Path) -> Image.Image:
    with path.open("rb") as file:
        head = file.read(64)
    is_avif = head[4:8] == b"ftyp" and b"avif" in head  # its first brand may be HEIF's mif1
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and not is_avif:  # also a HEIC that a phone named .jpg
        return _opened_heif(path)
    Image.init()
    if is_avif and "AVIF" not in Image.OPEN:
        raise ImportError("AVIF needs Pillow 11.3 or newer: pip install -U Pillow, or save the photo as JPEG or PNG")
    try:
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        if path.suffix.lower() not in HEIF_SUFFIXES:
            raise
        return _opened_heif(path)


def _opened_heif(path: Path) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile  # optional, hence imported late; registers nothing
    except ImportError:
        raise ImportError(
            "HEIC needs the package pillow-heif: pip install pillow-heif, or save the photo as JPEG or PNG"
        ) from None
    return HeifImageFile(path)


def _decoded(picture: Image.Image) -> Decoded:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width}x{height} = {width * height} pixels, the limit is {MAX_PIXELS}")
    frames = getattr(picture, "n_frames", 1)
    turned = _orientation(picture)
    picture.load()
    image, alpha, steps = _gray_levels(picture) if _is_deep(picture) else _colours(picture)
    if turned in UPRIGHT:
        steps = ("rotated by EXIF", *steps)
    if frames > 1:
        steps = (f"first of {frames} frames", *steps)
    # Asked again: Pillow turns a TIFF itself while loading, and then forgets its tag.
    upright = UPRIGHT.get(_orientation(picture), lambda image: image)
    return Decoded(
        upright(image).contiguous(), width, height, steps, None if alpha is None else upright(alpha).contiguous()
    )


def _orientation(picture: Image.Image) -> int:
    return picture.getexif().get(ExifTags.Base.Orientation, 1)


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;")


def _gray_levels(picture: Image.Image) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Grayscale of more than 8 bits as (H, W, 3) and alpha: Pillow's own convert("RGB") would clip it at 255."""
    levels = np.array(picture)
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(258, (16,))[0] if picture.mode.startswith("I;") or picture.format == "PNG" else None
    if picture.mode == "I" and tags.get(339, (1,))[0] == 1:  # SampleFormat 1: unsigned, which Pillow reads as signed
        levels = levels.view(np.uint32)
    if not np.isfinite(levels).all():
        raise ValueError("it holds values that are not numbers")
    white = 2**bits - 1 if bits else _white_level(float(levels.max()), picture.mode)
    gray = levels.astype(np.float32) / white
    alpha = None
    if (clear := picture.info.get("transparency")) is not None and (levels == clear).any():
        gray[levels == clear] = 1
        alpha = torch.from_numpy((levels != clear).astype(np.float32))
    image = torch.from_numpy(gray.clip(0, 1))[..., None]  # (H, W) -> (H, W, 1)
    return flattened(image), alpha, (f"grayscale with white at {white:g} converted",)


def _white_level(brightest: float, mode: str) -> float:
    # Nothing in a 32-bit file says where white is: the first usual depth that holds its brightest value.
    depths = (2**8 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)
    depths = (1, *depths) if mode == "F" else depths
    return next((white for white in depths if brightest <= white), brightest)


def _colours(picture: Image.Image) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Any picture of 8 bits a channel as (H, W, 3) in sRGB, on white where it is transparent, and its alpha."""
    source, profile = picture.mode, picture.info.get("icc_profile")
    steps = []
    if source in GRAY_MODES:
        steps.append("grayscale converted")
    elif source not in ("RGB", "RGBA"):
        steps.append("palette converted" if source in ("P", "PA") else f"{source} converted")
    alpha = None
    if source in ALPHA_MODES or "transparency" in picture.info:
        picture = picture.convert("LA").convert("RGBA") if source == "La" else picture.convert("RGBA")
        alpha = _unit(picture.getchannel("A"))
        alpha = alpha if alpha.min() < 1 else None
    if profile:
        picture, step = _in_srgb(picture, profile, source)
        steps += step
    image = _unit(picture.convert("RGB"))
    if alpha is not None:
        image = flattened(torch.cat([image, alpha[..., None]], -1))
        steps.append("transparency flattened onto white")
    return image, alpha, tuple(steps)


def _unit(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float32)).div_(255)


def _in_srgb(picture: Image.Image, profile: bytes, source: str) -> tuple[Image.Image, list[str]]:
    """The picture through its colour profile, if that is another one than sRGB and fits the picture."""
    try:
        colours = ImageCms.getOpenProfile(BytesIO(profile))
        name = ImageCms.getProfileDescription(colours).strip()
        space = colours.profile.xcolor_space.strip()
        if "srgb" in name.lower():
            return picture, []
        if space == "GRAY" and source in GRAY_MODES:
            picture = picture.convert("L")
        elif space == "RGB" and source != "CMYK":
            picture = picture.convert("RGB")
        elif space.upper() != source:
            return picture, [f"colour profile {name!r} ignored (it is for {space})"]
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, colours, srgb, outputMode="RGB"), [f"{name!r} colours to sRGB"]
    except (ImageCms.PyCMSError, OSError):
        return picture, ["unreadable colour profile ignored"]
