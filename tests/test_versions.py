"""Versions of ComfyUI: what pyproject.toml says, and what one that is too old is told."""

import importlib.util
import logging
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(version: str, monkeypatch):
    """The pack's __init__.py as a ComfyUI of this version imports it."""
    monkeypatch.setitem(sys.modules, "comfyui_version", types.SimpleNamespace(__version__=version))
    spec = importlib.util.spec_from_file_location("edgetune_of_a_version", ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version, is_old", [("0.3.60", True), ("0.16.2", True), ("0.16.3", False), ("1.0.0", False)])
def test_a_comfyui_that_is_too_old_gets_a_plain_message(version, is_old, monkeypatch, caplog):
    with caplog.at_level(logging.ERROR):
        module = load(version, monkeypatch)
    told = [record.getMessage() for record in caplog.records]
    assert told == ([f"EdgeTune needs ComfyUI 0.16.3 or newer, this is {version}: update it"] if is_old else [])
    assert f'requires-comfyui = ">={module.OLDEST}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
