"""Disks full at a random write: tests/full_disk.py finds nothing half written, and messages that say what to do."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("resource")  # not on Windows
pytestmark = pytest.mark.slow
COUNT = 3


def test_nothing_is_half_written_on_a_full_disk(tmp_path, record_property):
    command = [sys.executable, str(Path(__file__).with_name("full_disk.py")), str(tmp_path / "disks"), str(COUNT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["problems"] == []
    record_property("cases", len(told["tried"]))
    tried = Counter(told["tried"])
    assert all(tried[f"quota: {what}"] == COUNT for what in ("saves", "LoRA", "embedding", "hollow cache"))
