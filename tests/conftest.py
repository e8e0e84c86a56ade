"""Makes the checkout importable as the package `pack`, without running its __init__.py, and ComfyUI beside it."""

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

spec = ModuleSpec("pack", loader=None, is_package=True)
spec.submodule_search_locations = [str(ROOT)]
sys.modules["pack"] = module_from_spec(spec)

if "COMFYUI_PATH" in os.environ:  # TODO tests/comfyui.py
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    argv, sys.argv = sys.argv, sys.argv[:1]
    from comfy.cli_args import args

    args.cpu = True
    sys.argv = argv
