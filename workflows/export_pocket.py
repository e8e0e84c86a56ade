"""Writes the pocket model as a folder that diffusers loads: StableDiffusionPipeline.from_pretrained(FOLDER).

    python workflows/export_pocket.py FOLDER

The tokenizer comes from ComfyUI: the one the checkout lies in, COMFYUI_PATH, or the one this pack's commands fetch.
"""

import argparse
import sys
from pathlib import Path

import runtime
from runtime import ROOT, SetupError, say

TOKENIZER = Path("comfy") / "sd1_tokenizer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to; it must be empty or not exist")
    parser.add_argument("--comfyui", type=Path, help="folder with ComfyUI's main.py")
    arguments = parser.parse_args()
    try:
        export(arguments.folder.resolve(), set_up(arguments.comfyui) / TOKENIZER)
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


def set_up(named: Path | None) -> Path:
    """ComfyUI's folder. Returns only in a Python that has what is needed, as far as this pack sets it up."""
    comfyui = named or runtime.find_comfyui() or runtime.fetch_comfyui()
    if not (comfyui / TOKENIZER).is_dir():
        raise SetupError(f"There is no ComfyUI in {comfyui}: it has no {TOKENIZER}")
    if comfyui == runtime.COMFYUI:
        runtime.continue_in(runtime.ensure_environment("comfyui", runtime.comfyui_requirements(comfyui)))
    return comfyui


def export(folder: Path, tokenizer_folder: Path) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from trainers.pocket.export import export_pipeline
    except ImportError as error:
        raise SetupError(f"{sys.executable} has no {error.name}: use the Python that runs ComfyUI") from error
    export_pipeline(folder, tokenizer_folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"{folder}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
