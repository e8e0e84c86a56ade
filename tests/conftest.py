"""Makes the checkout importable as the package `pack`, without running its __init__.py, and ComfyUI beside it."""

import importlib
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).resolve().parent

# Intel's MKL may sum in another order when memory lies otherwise, 1e-7 apart; so told, it repeats itself bit for bit.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

spec = ModuleSpec("pack", loader=None, is_package=True)
spec.submodule_search_locations = [str(TESTS.parent)]
sys.modules["pack"] = module_from_spec(spec)
sys.path.insert(0, str(TESTS))  # tests of sub-folders use tiny.py and comfyui.py too

import comfyui  # noqa: E402

comfyui.put_on_path()

import folder_paths  # noqa: E402
import pytest  # noqa: E402
from comfyui import chromium, server  # noqa: E402, F401
from hypothesis import settings  # noqa: E402

settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing
settings.load_profile("any machine")


@pytest.fixture
def script(monkeypatch) -> Callable[[str], ModuleType]:
    """Imports a file of workflows/ by its bare name, as the scripts there find each other."""
    monkeypatch.syspath_prepend(TESTS.parent / "workflows")
    return importlib.import_module


@pytest.fixture(autouse=True)
def output_folder(tmp_path, monkeypatch) -> Path:
    """Where nodes save what they train in this process."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"
