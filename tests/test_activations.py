"""Laws of the activation cache: what is read is what was written, and only a complete file of the same run is read."""

import errno
import json
import os
import shutil

import pytest
import torch
from pack.trainers import activations
from pack.trainers.activations import Layout, discard, stored, writing

LAYOUT = Layout(count=5, shape=(3, 4, 6))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "hollow.bin"


def values(layout: Layout) -> torch.Tensor:
    numbers = torch.randn(layout.count, *layout.shape, generator=torch.Generator().manual_seed(0))
    return numbers.to(activations.DTYPES[layout.dtype])


def write_all(path, layout=LAYOUT, fingerprint="a dog, seed 1"):
    with writing(path, layout, fingerprint) as writer:
        for index in reversed(range(layout.count)):
            writer.write(index, values(layout)[index])


def files(path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


@pytest.mark.parametrize("dtype", activations.DTYPES)
@pytest.mark.parametrize("shape", [(3, 4, 6), (7, 31, 33), (1,)], ids=str)
def test_what_is_read_is_what_was_written_in_any_order(path, dtype, shape):
    layout = Layout(5, shape, dtype)
    write_all(path, layout)
    assert path.stat().st_size == layout.file_bytes == values(layout).nbytes
    with stored(path, "a dog, seed 1") as cache:
        assert len(cache) == 5 and cache.layout == layout
        for index in (4, 0, 2, 2, 1, 3):
            cache.prefetch((index + 1) % 5)
            assert torch.equal(cache.read(index), values(layout)[index])
            assert cache.read(index).dtype == activations.DTYPES[dtype]


def test_what_was_read_outlives_the_file(path):
    write_all(path)
    with stored(path, "a dog, seed 1") as cache:
        tensor = cache.read(3)
    discard(path)
    assert files(path) == []
    assert torch.equal(tensor.add_(0), values(LAYOUT)[3])  # its own memory, free to be changed


def test_tensors_come_from_any_dtype_layout_and_graph(path):
    given = values(LAYOUT).float()
    with writing(path, LAYOUT, "f") as writer:
        for index in range(5):
            writer.write(index, given[index].mT.contiguous().mT.requires_grad_() * 1.0)
    with stored(path, "f") as cache:
        assert all(torch.equal(cache.read(index).float(), given[index]) for index in range(5))


def test_only_the_same_fingerprint_is_reused(path):
    assert stored(path, "a dog, seed 1") is None
    write_all(path)
    assert stored(path, "a dog, seed 2") is None
    with stored(path, "a dog, seed 1") as cache:
        assert len(cache) == 5
    write_all(path, fingerprint="a dog, seed 2")
    assert stored(path, "a dog, seed 1") is None


@pytest.mark.parametrize("size", [0, LAYOUT.file_bytes - 1, LAYOUT.file_bytes + 1])
def test_a_file_of_another_size_is_not_taken(path, size):
    write_all(path)
    os.truncate(path, size)
    assert stored(path, "a dog, seed 1") is None


def test_a_description_without_its_file_or_cut_short_is_not_taken(path):
    write_all(path)
    description = path.with_name("hollow.bin.json")
    assert json.loads(description.read_text())["shape"] == [3, 4, 6]
    description.write_text(description.read_text()[:-5])
    assert stored(path, "a dog, seed 1") is None
    write_all(path)
    path.unlink()
    assert stored(path, "a dog, seed 1") is None


def test_while_it_is_written_no_file_counts_as_complete(path):
    """As after a power cut: the old description must be gone before the new file exists."""
    write_all(path)
    with writing(path, LAYOUT, "a dog, seed 1") as writer:
        assert stored(path, "a dog, seed 1") is None
        for index in range(5):
            writer.write(index, values(LAYOUT)[index])
        assert path.stat().st_size == LAYOUT.file_bytes and stored(path, "a dog, seed 1") is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_or_a_cancel_leaves_nothing(path, error):
    write_all(path)
    with pytest.raises(error), writing(path, LAYOUT, "a dog, seed 1") as writer:
        writer.write(0, values(LAYOUT)[0])
        raise error
    assert files(path) == [] and stored(path, "a dog, seed 1") is None


def test_missing_tensors_are_an_error(path):
    with pytest.raises(RuntimeError, match="2 of 5 activations are missing"):
        with writing(path, LAYOUT, "f") as writer:
            for index in (0, 1, 1, 4):
                writer.write(index, values(LAYOUT)[index])
    assert files(path) == []


def test_a_full_disk_is_noticed_before_anything_is_computed(path, monkeypatch):
    usage = shutil.disk_usage(path.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=LAYOUT.file_bytes - 1))
    with pytest.raises(RuntimeError, match=r"needs 720 bytes in .*cache, where 719 are free \(No space left"):
        with writing(path, LAYOUT, "f"):
            pytest.fail("the block ran")
    assert files(path) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_a_quota_is_noticed_before_anything_is_computed(path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(RuntimeError, match="needs 720 bytes .*Disk quota exceeded"), writing(path, LAYOUT, "f"):
        pytest.fail("the block ran")
    assert files(path) == []


def test_the_whole_size_is_taken_at_once(path):
    layout = Layout(4, (1 << 20,), "float32")
    with pytest.raises(KeyboardInterrupt), writing(path, layout, "f"):
        assert path.stat().st_size == layout.file_bytes
        if hasattr(os, "posix_fallocate"):
            assert path.stat().st_blocks * 512 >= layout.file_bytes  # blocks on the disk, no promise
        raise KeyboardInterrupt


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e5])
def test_values_that_float16_cannot_hold_are_refused(path, bad):
    with pytest.raises(ValueError, match="activation 2: it has values that are not finite as float16"):
        with writing(path, LAYOUT, "f") as writer:
            writer.write(2, torch.full(LAYOUT.shape, bad))


def test_wrong_tensors_and_indices_are_refused(path):
    with pytest.raises(ValueError, match=r"activation 1: got \(1, 3, 4, 6\), needs \(3, 4, 6\)"):
        with writing(path, LAYOUT, "f") as writer:
            writer.write(1, torch.zeros(1, 3, 4, 6))
    with pytest.raises(IndexError, match="got index 5, there are 5"), writing(path, LAYOUT, "f") as writer:
        writer.write(5, torch.zeros(3, 4, 6))
    write_all(path)
    with stored(path, "a dog, seed 1") as cache, pytest.raises(IndexError, match="got index -1"):
        cache.read(-1)


@pytest.mark.parametrize("bad", [{"count": 0}, {"shape": ()}, {"shape": (3, 0)}, {"dtype": "int8"}], ids=str)
def test_impossible_layouts_are_refused(bad):
    with pytest.raises(ValueError, match="activations: got"):
        Layout(**{"count": 1, "shape": (3,), **bad})
