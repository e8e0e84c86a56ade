"""The demo's photos: the toys that come with the pack, or files of the user's, as Load Subject Images finds them."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from runtime import ROOT, SetupError, say

SHIPPED = ROOT / "trainers" / "pocket" / "photos"
EXAMPLES = ROOT.parent / "shared" / "dreambooth" / "dog6"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic"}


def shipped_subjects() -> list[str]:
    """Names of the toys that come with the pack."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())


def shipped_folder(subject: str) -> str:
    """What the toy's folder is called in Load Subject Images."""
    return f"{subject} [pocket]"


def find_photos(named: Path | None) -> list[Path]:
    """The photos in the folder that was named, or else in that of the example photos; with their masks."""
    folder = named or EXAMPLES
    if named and not named.is_dir():
        raise SetupError(f"--photos {named} is not a folder")
    if not folder.is_dir():
        raise SetupError("A checkpoint needs photos to learn from: name a folder with --photos")
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if all(map(is_mask, photos)):
        raise SetupError(f"There are no photos in {folder}")
    return photos


def is_mask(path: Path) -> bool:
    """Whether it says what of a photo is the subject: 01.mask.png that of 01.jpg."""
    return path.stem.lower().endswith(".mask")


def content_folder(name: str, files: Sequence[Path]) -> str:
    """A name for a folder of the server's input folder that holds these files and no others."""
    content = sha256()
    for file in files:
        content.update(file.name.encode() + file.read_bytes())
    return f"edgetune_{name}_{content.hexdigest()[:8]}"


def upload(client, photos: list[Path], folder: str) -> None:
    """Put the photos into a folder of the server's input folder."""
    masks = sum(map(is_mask, photos))
    kinds = f"{len(photos) - masks} photos" + (f" with {masks} masks" if masks else "")
    say(f"Uploading {kinds} from {photos[0].parent} to the input folder {folder}")
    for photo in photos:
        client.upload_image(photo, folder)
