"""The words around a token: what it may be called, how a prompt names it, and the templates it is learnt in."""

import re

from .weight_files import MAX_NAME_BYTES, RESERVED_NAMES

# "imagenet_templates_small" of Gal et al. 2022 (arXiv:2208.01618), as diffusers and ZOODiP use them
TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)

CAPTION_SOURCES = ("templates", "one caption", "photo captions")


def check_token_name(name: str) -> str:
    """The name, if ComfyUI's prompts and every file system take it as it is. Raises ValueError that says why not."""
    problem = _problem(name)
    if problem:
        raise ValueError(
            f"token: got {name!r}, {problem}; needs a name such as my_dog, of letters, digits, _ and -, since prompts "
            f"call it embedding:my_dog and it is saved as my_dog.safetensors"
        )
    return name


def _problem(name: str) -> str | None:
    if not name:
        return "which is empty"
    if bad := re.findall(r"[^\w-]", name):
        listed = ", ".join("a space" if sign == " " else repr(sign) for sign in dict.fromkeys(bad))
        return f"in which {listed} would end the name, leave the folder or be read as syntax"
    if _is_number(name):
        return "which prompts read as a weight: (embedding:1.2) is the word embedding, 1.2 times as strong"
    if name.lower() in RESERVED_NAMES:
        return "which Windows keeps for a device"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"which is longer than {MAX_NAME_BYTES} bytes"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def embedding_prompt(name: str) -> str:
    """How ComfyUI's prompts call the token."""
    return f"embedding:{name}"


def with_embedding(text: str, word: str, name: str) -> str:
    """The text with embedding:name where word stands on its own, spaced so that ComfyUI finds it there.

    ComfyUI looks for it after a space and takes all up to the next space for its name. Raises ValueError if the word is
    not in the text.
    """
    found = rf"(?<!\w)(?:embedding:)?{re.escape(word)}(?!\w)"
    if not word or not re.search(found, text):
        raise ValueError(f"captions: {text!r} has no {word!r} in it; write it where the subject's name belongs")
    return re.sub(rf"\s*{found}\s*", f" {embedding_prompt(name)} ", text).strip()


def training_captions(source: str, caption: str, word: str, name: str) -> list[str]:
    """What one photo is learnt with, embedding:name in each: all templates, the first, or the photo's own caption.

    In its own caption the token is where its name stands, or else the word. Raises ValueError where neither does.
    """
    if source == "photo captions":
        named = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", caption)
        return [with_embedding(caption, name if named else word, name)]
    templates = TEMPLATES if source == "templates" else TEMPLATES[:1]
    return [template.format(embedding_prompt(name)) for template in templates]
