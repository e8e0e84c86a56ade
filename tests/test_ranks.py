"""Steps divided over processes learn the same to the bit as one process; a rank that fails leaves none waiting."""

import subprocess
import sys
from pathlib import Path

import pytest
from pack.trainers.ranks import over_ranks, rank_count

RANK = Path(__file__).with_name("rank.py")


def run(folder: Path, ranks: int, *arguments: str) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    folder.mkdir()
    command = [sys.executable, *torchrun, str(RANK), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_a_process_group_all_is_done_here_in_order():
    assert rank_count() == 1
    assert over_ranks([lambda: (1.0, 2.0), lambda: [3.0]]) == [[1.0, 2.0], [3.0]]


@pytest.mark.slow
def test_2_and_3_ranks_learn_what_one_process_learns_to_the_bit(tmp_path):
    for ranks in (1, 2, 3):
        run(tmp_path / str(ranks), ranks)
    alone = sorted((tmp_path / "1").glob("*.safetensors"))
    assert len(alone) == 7
    for file in alone:
        name = file.name.removesuffix(".0.safetensors")
        for ranks in (2, 3):
            for rank in range(ranks):
                other = tmp_path / str(ranks) / f"{name}.{rank}.safetensors"
                assert other.read_bytes() == file.read_bytes(), (name, ranks, rank)


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others_with_its_number(tmp_path):
    run(tmp_path / "failing", 3, "--failing", "1")
    told = [(tmp_path / "failing" / f"{rank}.txt").read_text(encoding="utf-8") for rank in range(3)]
    assert told[1] == "MemoryError: this rank has no memory"
    assert told[0] == told[2] == "RuntimeError: Rank 1 of 3 stopped in this step; its own log says why"
