"""A process that dies while it writes a point leaves a piece of a file, which the next run in that folder removes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pack.trainers.saving import FILE, points, remove_unfinished

WRITER = """
import resource, signal, sys
from pathlib import Path
import conftest, torch
from pack.trainers.saving import Point, Product, Saved, write_point
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # who writes more than the limit is killed there and then
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for step, numbers in ((1, 100), (2, 100_000)):
    saved = Saved({"a": torch.ones(numbers)}, {})
    write_point(Point(Path(sys.argv[1]), step), Product({"b": torch.ones(1)}, {}), saved)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs limits on files")
def test_what_a_writer_that_was_killed_left_is_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    died = subprocess.run([sys.executable, "-c", WRITER, str(folder)], cwd=Path(__file__).parent, capture_output=True)
    assert died.returncode < 0, died.stderr
    assert [point.step for point in points(folder)] == [1]
    whole = {path: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    left = set(folder.iterdir()) - set(whole)
    assert left and all(FILE.fullmatch(path.name) for path in left)
    users = folder / ".tmp_of_mine"
    users.write_text("mine", encoding="utf-8")
    remove_unfinished(folder)
    assert set(folder.iterdir()) == {*whole, users} and all(path.read_bytes() == whole[path] for path in whole)
