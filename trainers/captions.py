"""The words for each photo: its own .txt file, or the prompt that all photos share."""

from pathlib import Path
from typing import NamedTuple

from .photo_files import CAPTION_SUFFIX, caption_paths, check_inside

CAPTIONS = ("auto", "instance prompt", "text files")
MAX_BYTES = 64 * 1024  # a text encoder reads 77 tokens; a file of this size is something else


class Caption(NamedTuple):
    text: str
    source: str  # file name, or "instance prompt"


def captions_of(paths: list[Path], mode: str, instance_prompt: str, root: Path) -> list[Caption]:
    """One caption per photo of a folder. ValueError names every caption file that is missing or can't be used."""
    if mode == "instance prompt" or not paths:
        return [shared_caption(instance_prompt) for _ in paths]
    texts = caption_paths(paths[0].parent)
    if mode == "text files" and (bare := [path.name for path in paths if path.stem not in texts]):
        raise ValueError(
            f"captions: no {CAPTION_SUFFIX} file for {', '.join(bare)}; "
            f'write one of the same name for each, or set captions to "auto" to use the instance prompt there'
        )
    captions, problems = [], []
    for path in paths:
        text = texts.get(path.stem)
        try:
            captions.append(_read(text, root) if text else shared_caption(instance_prompt))
        except ValueError as error:
            problems.append(f"{text.name if text else path.name}: {error}")
    if problems:
        raise ValueError("captions:\n" + "\n".join(dict.fromkeys(problems)))
    return captions


def shared_caption(instance_prompt: str) -> Caption:
    """The caption of a photo that has none of its own."""
    if not instance_prompt:
        raise ValueError(
            'instance_prompt is empty; write what the photos show, with a rare word for it: "a photo of a sks dog"'
        )
    return Caption(instance_prompt, "instance prompt")


def _read(path: Path, root: Path) -> Caption:
    check_inside(path, root)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes are too many for a caption; keep it to a sentence or two")
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())  # "utf-8-sig": with or without a BOM
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text; open it in an editor and save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror})") from error
    if "\0" in text:  # UTF-16 without a BOM passes as UTF-8
        raise ValueError("not UTF-8 text; open it in an editor and save it as UTF-8")
    if not text:
        raise ValueError("empty; write the caption into it, or delete it to use the instance prompt")
    return Caption(text, path.name)
