"""Subject photos: files or image batches in, upright RGB tensors with captions out.

Which files: photo_files. File to pixels: decoding. Pixels to training size: crops. Words: captions. Where the subject
is: masks.

Shapes: B photos, H and W pixels; images are (H, W, 3) float32 tensors, 0-1.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .captions import CAPTIONS, Caption, captions_of, shared_caption
from .checks import require
from .crops import CROPS, MULTIPLE, fitted, padded, resized
from .decoding import Decoded, decode, flattened
from .masks import Mask, check_coverage, latent_weight, mask_of_file, masks_of_batch, sized
from .photo_files import IMAGE_SUFFIXES, check_inside, mask_paths, photo_paths

MIN_RESOLUTION, MAX_RESOLUTION = 64, 2048
GREY = torch.tensor(0.5)  # of what masks leave out, where photos are shown


class Photo(NamedTuple):
    """One training image, ready to encode."""

    name: str  # file name, or "image 1" for the first image of a batch
    image: Tensor  # (H, W, 3) float32, 0-1; H and W are multiples of 8
    caption: str
    mask: Tensor | None = None  # (H, W) float32, 1 where the subject is; None where all of the photo counts


@dataclass(frozen=True)
class Subject:
    """What one person wants learnt: the photos and the words for them."""

    photos: tuple[Photo, ...]
    instance_prompt: str  # "a photo of a sks dog"
    class_prompt: str  # "a photo of a dog"; may be empty
    resolution: int  # pixels of a side (square crops) or of the side of a square of the same area
    flip: bool  # also learn each photo mirrored left to right
    background_weight: float = 1.0  # by how much what masks leave out counts, and what they cover by 1

    @property
    def is_masked(self) -> bool:
        """Whether places of some photo count less than others."""
        return any(photo.mask is not None for photo in self.photos)


@dataclass(frozen=True)
class SubjectSettings:
    """How photos become a Subject."""

    instance_prompt: str = "a photo of a sks dog"
    resolution: int = 512  # pixels, a multiple of 8
    class_prompt: str = ""
    captions: str = "auto"  # one of captions.CAPTIONS
    crop: str = "center"  # one of crops.CROPS
    flip: bool = False
    background_weight: float = 0.1  # of what masks leave out; 1 reads none. tests/bench/options.py

    def __post_init__(self):
        in_range = MIN_RESOLUTION <= self.resolution <= MAX_RESOLUTION
        if not in_range or self.resolution % MULTIPLE:
            raise ValueError(
                f"resolution: got {self.resolution}; "
                f"needs a multiple of {MULTIPLE} from {MIN_RESOLUTION} to {MAX_RESOLUTION}"
            )
        if self.captions not in CAPTIONS:
            raise ValueError(f"captions: got {self.captions!r}; needs one of {', '.join(CAPTIONS)}")
        if self.crop not in CROPS:
            raise ValueError(f"crop: got {self.crop!r}; needs one of {', '.join(CROPS)}")
        require("background_weight", self.background_weight, "between 0 and 1", 0 <= self.background_weight <= 1)

    @property
    def reads_masks(self) -> bool:
        return self.background_weight < 1


class PhotoRecord(NamedTuple):
    """What was done to one photo."""

    name: str
    width_px: int  # as it came
    height_px: int
    steps: tuple[str, ...]  # "cropped to 768x768 at the centre", "resized to 512x512"
    upscaled: bool
    caption: Caption
    twin: str | None  # name of the first photo that is the same in every training pixel
    mask: str | None = None  # whence its mask is, where it has one
    coverage: float = 1.0  # of the photo, by the mask


class Loaded(NamedTuple):
    """A subject and the story of its photos, in the same order."""

    subject: Subject
    records: tuple[PhotoRecord, ...]


def load_subject(folder: Path, settings: SubjectSettings, root: Path, masks: Tensor | None = None) -> Loaded:
    """All photos of a folder, or a ValueError that names every file that can't be used. Links may not leave root.

    masks, a ComfyUI MASK batch in the order of the photos, goes before mask files, and these before alpha channels.
    """
    paths = photo_paths(folder)
    if not paths:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"folder: no photos in {folder}; put 3 to 6 photos of the subject there ({kinds})")
    captions = captions_of(paths, settings.captions, settings.instance_prompt.strip(), root)
    given, files = _batch(masks, len(paths), settings), _mask_files(folder, paths, settings)
    prepared, problems = [], []
    for path, caption, mask in zip(paths, captions, given, strict=True):
        try:
            check_inside(path, root)
            if mask is None and path.stem in files:
                mask = mask_of_file(files[path.stem], root)
            prepared.append(_prepared(path.name, decode(path), caption, settings, mask))
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    if problems:
        raise ValueError(f"folder: {len(problems)} of {len(paths)} photos can't be used\n" + "\n".join(problems))
    return _loaded(prepared, settings)


def subject_from_images(images: Tensor, settings: SubjectSettings, masks: Tensor | None = None) -> Loaded:
    """The photos of a ComfyUI IMAGE batch, (B, H, W, C) with 1, 3 or 4 channels; masks go before a fourth channel."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise ValueError(
            f"images: got a batch of shape {tuple(images.shape)}; needs (images, height, width, 1, 3 or 4 channels)"
        )
    caption = shared_caption(settings.instance_prompt.strip())
    prepared = []
    for number, (image, mask) in enumerate(zip(images, _batch(masks, len(images), settings), strict=True), start=1):
        if not image.isfinite().all():
            raise ValueError(f"images: image {number} holds NaN or infinite values; check the node that made it")
        image = image.to("cpu", torch.float32).clamp(0, 1)
        alpha = image[..., 3] if image.shape[-1] == 4 and image[..., 3].min() < 1 else None
        image = flattened(image)
        steps = {1: ("grayscale converted",), 4: ("transparency flattened onto white",)}.get(images.shape[-1], ())
        decoded = Decoded(image, image.shape[1], image.shape[0], steps, alpha)
        try:
            prepared.append(_prepared(f"image {number}", decoded, caption, settings, mask))
        except ValueError as error:
            raise ValueError(f"images: image {number}: {error}") from error
    return _loaded(prepared, settings)


def image_batch(subject: Subject) -> Tensor:
    """The photos as one (B, H, W, 3) batch; smaller ones get their edge pixels repeated around them."""
    images = [photo.image for photo in subject.photos]
    height, width = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    return torch.stack([padded(image, height, width) for image in images])


def shaded_batch(subject: Subject) -> Tensor:
    """image_batch() with what masks leave out in grey."""
    photos = [
        photo if photo.mask is None else photo._replace(image=torch.lerp(GREY, photo.image, photo.mask[..., None]))
        for photo in subject.photos
    ]
    return image_batch(replace(subject, photos=tuple(photos)))


def loss_weight(photo: Photo, background_weight: float, ratio: float = 1) -> Tensor | None:
    """By how much each latent of the downscaled photo counts in the loss, (H / 8, W / 8); None if all count alike."""
    if photo.mask is None:
        return None
    return latent_weight(downscaled(photo.mask[..., None], ratio)[..., 0], background_weight)


def subject_facts(subject: Subject) -> dict[str, object]:
    """All that a run learns from, by name: pixels as checksums, words as they are."""
    facts = {name: getattr(subject, name) for name in ("instance_prompt", "class_prompt", "resolution", "flip")}
    for photo in subject.photos:
        facts[f"photo {photo.name}"] = hashlib.sha256(photo.image.numpy()).hexdigest()[:16]
        facts[f"caption of {photo.name}"] = photo.caption
        if photo.mask is not None:
            facts[f"mask of {photo.name}"] = hashlib.sha256(photo.mask.numpy()).hexdigest()[:16]
            facts["background_weight"] = subject.background_weight
    return facts


def downscaled(image: Tensor, ratio: float) -> Tensor:
    """The image at ratio times its size, antialiased, each side a multiple of 8; at ratio 1 the image itself."""
    return image if ratio == 1 else resized(image, *downscaled_size(*image.shape[:2], ratio))


def downscaled_size(height: int, width: int, ratio: float) -> tuple[int, int]:
    """Height and width of an image that was downscaled."""
    if not 0 < ratio <= 1:
        raise ValueError(f"low-resolution ratio: got {ratio}; needs more than 0 and at most 1")
    if ratio == 1:
        return height, width
    return tuple(max(MULTIPLE, round(side * ratio / MULTIPLE) * MULTIPLE) for side in (height, width))


def mirrored(image: Tensor) -> Tensor:
    """The image with left and right exchanged."""
    return image.flip(1)


def with_mirrored(subject: Subject) -> list[Photo]:
    """The subject's photos, followed by each mirrored if it asks for that."""
    photos = list(subject.photos)
    if not subject.flip:
        return photos
    masks = (None if p.mask is None else mirrored(p.mask) for p in photos)
    return photos + [p._replace(image=mirrored(p.image), mask=mask) for p, mask in zip(photos, masks, strict=True)]


def _batch(masks: Tensor | None, count: int, settings: SubjectSettings) -> list[Mask | None]:
    """A mask for each of so many photos, or nothing."""
    return masks_of_batch(masks, count) if masks is not None and settings.reads_masks else [None] * count


def _mask_files(folder: Path, paths: list[Path], settings: SubjectSettings) -> dict[str, Path]:
    """Mask files by the photo name without its ending. Raises ValueError where one belongs to no photo."""
    if not settings.reads_masks:
        return {}
    files, stems = mask_paths(folder), {path.stem for path in paths}
    if lost := [path.name for stem, path in files.items() if stem not in stems]:
        raise ValueError(
            f"folder: masks without a photo: {', '.join(lost)}; the mask of 01.jpg is 01.mask.png. Rename or remove "
            "them, or set background_weight to 1 to read no masks"
        )
    return files


def _prepared(
    name: str, decoded: Decoded, caption: Caption, settings: SubjectSettings, mask: Mask | None = None
) -> tuple[Photo, PhotoRecord]:
    """A photo at training size, and its mask, cropped and resized as one with it; without one its alpha channel is."""
    image = decoded.image
    if mask is None and decoded.alpha is not None and settings.reads_masks:
        mask = Mask(decoded.alpha, "alpha channel")
    if mask is not None:
        mask = sized(mask, *image.shape[:2])
        image = torch.cat([image, mask.cover[..., None]], -1)
    image, steps, upscaled = fitted(image, settings.resolution, settings.crop)
    record = PhotoRecord(name, decoded.width_px, decoded.height_px, decoded.steps + steps, upscaled, caption, None)
    photo = Photo(name, image[..., :3].contiguous(), caption.text)
    if mask is None:
        return photo, record
    mask = mask._replace(cover=image[..., 3].contiguous())
    check_coverage(mask)
    record = record._replace(mask=mask.source, coverage=mask.cover.mean().item())
    return (photo if mask.cover.min() == 1 else photo._replace(mask=mask.cover)), record


def _loaded(prepared: list[tuple[Photo, PhotoRecord]], settings: SubjectSettings) -> Loaded:
    first_of: dict[tuple, str] = {}  # pixels -> name
    records = []
    for photo, record in prepared:
        pixels = (photo.image.shape, hashlib.sha256(photo.image.numpy()).digest())
        records.append(record._replace(twin=first_of.get(pixels)))
        first_of.setdefault(pixels, photo.name)
    subject = Subject(
        photos=tuple(photo for photo, _ in prepared),
        instance_prompt=settings.instance_prompt.strip(),
        class_prompt=settings.class_prompt.strip(),
        resolution=settings.resolution,
        flip=settings.flip,
        background_weight=settings.background_weight,
    )
    return Loaded(subject, tuple(records))
