"""Train LoRAs and embeddings of your own subject inside ComfyUI. Nodes live in nodes/, algorithms in trainers/."""

import logging

try:
    # Not there when pytest imports this file to collect tests/.
    from comfyui_version import __version__ as comfyui
except ImportError:
    comfyui = "0"

WEB_DIRECTORY = "./web"
OLDEST = "0.16.3"  # requires-comfyui of pyproject.toml; python tests/versions.py tells


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


if [0] < _numbers(comfyui) < _numbers(OLDEST):
    logging.getLogger(__name__).error("EdgeTune needs ComfyUI %s or newer, this is %s: update it", OLDEST, comfyui)


async def comfy_entrypoint():
    # Imported here, not above, where no ComfyUI may be around.
    from .nodes import EdgeTune

    return EdgeTune()
