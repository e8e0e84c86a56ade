"""A file is replaced when the new one is whole, and never before."""

import pytest
from pack.trainers.atomic import replacing


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    file = tmp_path / "state"
    file.write_text("old")
    with replacing(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_the_old_file_stays_when_writing_fails(tmp_path):
    file = tmp_path / "state"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
