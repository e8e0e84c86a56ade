"""Disks that are full at a random write: python tests/full_disk.py FOLDER [COUNT]. Prints what was found as JSON.

No mock: the kernel refuses. A quota is a limit on the size of files in a process of its own (RLIMIT_FSIZE), a disk is a
tmpfs of a few pages, where one may be mounted. It is a program of its own because it forks.
"""

import json
import multiprocessing
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import conftest  # noqa: F401, makes the pack importable
import torch
from every_trainer import ON_U_NETS, SELECTIVE, Trainer
from pack.trainers.checkpoint import save_lora
from pack.trainers.embedding_file import Embedding, save_embedding
from pack.trainers.resume import Saves
from pack.trainers.saving import all_points, read_point
from safetensors.torch import load_file

PAGE = 4096
TRAINER = Trainer("selective", replace(SELECTIVE, strategy="random"))
HOLLOWED = next(trainer for trainer in ON_U_NETS if trainer.name == "hollowed")
LORA = {f"lora_unet_x.lora_{side}.weight": torch.ones(4, 2000) for side in ("up", "down")}
EMBEDDING = Embedding("my_dog", {"clip_l": torch.ones(8, 768)})


def save_of_a_run(folder: Path) -> str:
    """The training ends all the same, and its report says what was not saved."""
    whole, _ = TRAINER.run(folder)
    saves = Saves(folder / "runs" / "one", 1)
    got, _ = TRAINER.run(folder, saves)
    if not all(torch.equal(got[key], whole[key]) for key in whole):
        return "other bits"
    for point in all_points(folder / "runs"):
        read_point(point), load_file(point.product)
        resumed, _ = TRAINER.run(folder, Saves(resumed=point))
        if not all(torch.equal(resumed[key], whole[key]) for key in whole):
            return "other bits after going on"
    return "" if "could not be saved" in saves.story else f"not told: {saves.story}"


def file(write: Callable[[Path], Path], folder: Path) -> str:
    """Neither a new file nor what stood in its place is half written."""
    for path in (folder / "old.safetensors", folder / "new.safetensors"):
        before = path.read_bytes() if path.exists() else None
        try:
            write(path)
            return "the disk was not full"
        except RuntimeError as error:
            if "could not be written to" not in str(error) or "press Run again" not in str(error):
                return f"in other words: {error}"
        if (path.read_bytes() if path.exists() else None) != before:
            return f"{path.name} has changed"
    return ""


def hollow_cache(folder: Path) -> str:
    try:
        HOLLOWED.run(folder)
        return "the disk was not full"
    except RuntimeError as error:
        told = str(error)
    return "" if "The activation cache needs" in told and "cache fewer samples" in told else f"in other words: {told}"


def lora(path: Path) -> Path:
    return save_lora(LORA, path, torch.float32, {}, overwrite=True)


def embedding(path: Path) -> Path:
    return save_embedding(EMBEDDING, path, overwrite=True)


def old_file(write: Callable[[Path], Path], folder: Path) -> None:
    write(folder / "old.safetensors")


def nothing(folder: Path) -> None:
    pass


CASES = {  # what is written -> what stands there before, and the act
    "saves": (nothing, save_of_a_run),
    "LoRA": (partial(old_file, lora), partial(file, lora)),
    "embedding": (partial(old_file, embedding), partial(file, embedding)),
    "hollow cache": (nothing, hollow_cache),
}


def written(act: Callable[[Path], str], folder: Path) -> list[int]:
    """Bytes of each file that it writes where there is room."""
    folder.mkdir()
    act(folder)
    return sizes(folder)


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def pages(files: list[int]) -> int:
    return sum(-(-size // PAGE) for size in files)


def under_quota(act: Callable[[Path], str], folder: Path, limit: int) -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return act(folder)


def quota(prepare: Callable, act: Callable, needed: list[int], folder: Path, chance: random.Random) -> str:
    prepare(folder)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(under_quota, (act, folder, chance.randrange(max(needed))))


def disk(prepare: Callable, act: Callable, needed: list[int], folder: Path, chance: random.Random) -> str:
    """The folder has room for what stands there, and for some of what comes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True, capture_output=True)
    try:
        prepare(folder)
        room = pages(sizes(folder)) + chance.randrange(1, pages(needed))
        subprocess.run(["mount", "-o", f"remount,size={room * PAGE}", folder], check=True, capture_output=True)
        return act(folder) + left_behind(folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def left_behind(folder: Path) -> str:
    left = [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in (".part", ".bin")]
    return f" left behind: {', '.join(left)}" if left else ""


def can_mount(folder: Path) -> bool:
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    return mounted.returncode == 0


def main() -> None:
    base, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    torch.set_num_threads(1)
    chance, found, tried = random.Random(0), [], []
    for kind in (quota, disk) if can_mount(base / "probe") else (quota,):
        for name, (prepare, act) in CASES.items():
            needed = written(act, base / f"{kind.__name__} {name}")
            for number in range(count):
                folder = base / f"{kind.__name__} {name} {number}"
                folder.mkdir(parents=True)
                problem = kind(prepare, act, needed, folder, chance) + left_behind(folder)
                tried.append(f"{kind.__name__}: {name}")
                found += [f"{tried[-1]}: {problem}"] if problem else []
    print(json.dumps({"tried": tried, "problems": found}))


if __name__ == "__main__":
    main()
