"""Kill -9 in the middle of saving: tests/kills.py finds every file whole and goes on to the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_runs_that_are_killed_while_they_save_go_on(tmp_path, record_property):
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), str(tmp_path), "10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["problems"] == [] and told["kills"] == len(told["at_steps"]) == 10
    record_property("cases", told["kills"])
    assert min(told["at_steps"]) < 40  # or all had ended by themselves
