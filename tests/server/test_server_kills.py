"""Kill -9 of the whole server in the middle of saving: server_kills.py finds every file whole, and the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_runs_of_all_trainers_go_on_after_the_server_was_killed(tmp_path, record_property):
    command = [sys.executable, str(Path(__file__).with_name("server_kills.py")), str(tmp_path / "server"), "3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr[-3000:]
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["problems"] == [] and len(told["at_steps"]) == 3
    assert all(1 <= step < 16 for step in told["at_steps"])
    record_property("cases", told["kills"])
