"""Train LoRAs and embeddings of your own subject inside ComfyUI. Nodes live in nodes/, algorithms in trainers/."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    # Imported here, not above: pytest imports this file when it collects tests/, with no ComfyUI around.
    from .nodes import EdgeTune

    return EdgeTune()
