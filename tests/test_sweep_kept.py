"""What a sweep keeps of its jobs, and what a worker does around the ComfyUI it has."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest
from pack.workflows import prompts as pack_prompts
from PIL import Image
from sweep_parts import inputs, made

TRAINER = "EdgeTune_SelectiveTrainer"


@pytest.fixture
def jobs(script):
    return script("sweep_jobs")


@pytest.fixture
def table(script):
    return script("sweep_table")


def result(content: bytes) -> dict:
    report = {"seconds": 2.04, "steps": 8, "loss": {"first": 1.0, "last": 0.5}, "peak_bytes": 3}
    pictures = {f"{title}_{n}.png": title for title in ("Photos", "Before", "After") for n in range(5)}
    return {
        "seconds": 3.0,
        "reports": [report],
        "pictures": pictures,
        "files": {"report.txt": b"words"},
        "models": [("loras", content)],
    }


def test_what_a_job_made_is_kept_and_no_file_of_another_s_is_lost(jobs, table, tmp_path):
    (job,) = made(jobs, jobs.read_requests(["robot"]))
    theirs = tmp_path / "loras" / "robot.safetensors"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    kept = table.Kept(tmp_path / "out", {"loras": theirs.parent})
    kept.save(job, ("run/step_000004", {"edgetune/run/step_000004.safetensors": b"4"}))
    kept.add(job, result(b"ours"), 90, "here", 1)
    assert theirs.read_bytes() == b"theirs"
    assert theirs.with_name("robot_2.safetensors").read_bytes() == b"ours"
    row = table.Kept(tmp_path / "out", {}).rows.rows[job.key]
    assert (row["training_s"], row["loss"], row["steps"], row["planned_mib"]) == ("2.0", "0.500000", "8", "90")
    assert row["pictures"].split(";") == ["Photos_0.png", "Photos_1.png", *(f"After_{n}.png" for n in range(1, 5))]
    assert kept.point(job) is None and (tmp_path / "out" / "robot" / "report.txt").read_bytes() == b"words"


def test_a_job_that_was_cut_short_before_its_row_replaces_its_own_file(jobs, table, tmp_path):
    (job,) = made(jobs, jobs.read_requests(["robot"]))
    kept = table.Kept(tmp_path / "out", {"loras": tmp_path / "loras"})
    kept.add(job, result(b"first"), 90, "here", 1)
    kept.add(job, result(b"second"), 90, "here", 2)
    (file,) = (tmp_path / "loras").iterdir()
    assert file.name == "robot.safetensors" and file.read_bytes() == b"second"


def test_the_newest_point_of_a_job_is_kept_whole(jobs, table, tmp_path):
    (job,) = made(jobs, jobs.read_requests(["robot"]))
    kept = table.Kept(tmp_path, {})
    assert kept.point(job) is None
    for step in (4, 8):
        name = f"run/step_{step:06}"
        files = {f"edgetune/{name}{end}": bytes([step]) for end in (".safetensors", ".state.safetensors")}
        kept.save(job, (name, files))
        assert kept.point(job) == (name, files)
    kept.forget_point(job)
    assert kept.point(job) is None


def test_contact_sheets_have_a_row_for_each_job_that_drew(table, tmp_path):
    kept = table.Kept(tmp_path, {})
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = dict.fromkeys(table.COLUMNS, "") | {"settings": json.dumps({f"{TRAINER}.rank": "4"})}
    for number in range(table.SHEET_ROWS + 2):
        pictures = "../a.png" if number else ""
        (tmp_path / str(number)).mkdir()
        kept.rows.add(row | {"job": str(number), "name": str(number), "pictures": pictures})
    sheets = kept.sheets()
    heights = [Image.open(path).height for path in sheets]
    assert [path.name for path in sheets] == ["sheet_1.jpg", "sheet_2.jpg"] and heights[0] > 30 * heights[1]


HOLDER = """
import subprocess, sys, time
server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
guard = [sys.executable, "-c", sys.argv[1], str(server.pid), sys.argv[2]]
kept = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
print(server.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs process groups")
def test_a_server_does_not_outlive_a_worker_that_is_killed(script, tmp_path):
    workers = script("sweep_workers")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "photo.png").touch()
    command = [sys.executable, "-c", HOLDER, workers.GUARD, str(scratch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        server = int(holder.stdout.readline())
        time.sleep(0.3)
        assert scratch.exists() and is_alive(server)
        holder.kill()
    deadline = time.monotonic() + 20
    while (scratch.exists() or is_alive(server)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not scratch.exists() and not is_alive(server)


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie, which waits for its parent to look, does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def worker(script, tmp_path):
    """One whose ComfyUI was never started."""
    workers = script("sweep_workers")
    idle = workers.Worker.__new__(workers.Worker)
    idle.scratch, idle.queue, idle.sent, idle.told_s = tmp_path, SimpleQueue(), "", 0.0
    idle.folders = {name: tmp_path / name for name in ("input", "output")}
    return workers, idle


def test_a_worker_lays_out_photos_and_point_and_tells_each_newer_point_once(worker):
    workers, idle = worker
    name = "selective_2026/step_000004"
    files = {f"edgetune/{name}{end}": end.encode() for end in (".safetensors", ".state.safetensors")}
    prompt = pack_prompts.read_workflow("pocket_train_and_save")
    work = workers.Work("rex", prompt, "edgetune_rex", {"1.png": b"1"}, workers.Point(name, files))
    (idle.folders["output"] / "edgetune" / "of another job").mkdir(parents=True)
    idle._lay_out(work)
    assert (idle.folders["input"] / "edgetune_rex" / "1.png").read_bytes() == b"1"
    assert [path.name for path in (idle.folders["output"] / "edgetune").iterdir()] == ["selective_2026"]
    assert inputs(work.prompt, TRAINER)["resume"] == name
    idle._tell_point()
    assert idle.queue.empty()  # it came from there
    newer = idle.folders["output"] / "edgetune/selective_2026"
    for end in (".safetensors", ".state.safetensors"):
        (newer / f"step_000008{end}").write_bytes(b"8")
    idle._on_event("edgetune.step", {"step": 9, "steps": 9})
    idle._on_event("edgetune.step", {"step": 9, "steps": 10})
    told = [idle.queue.get_nowait() for _ in range(idle.queue.qsize())]
    assert [kind for kind, _ in told] == ["step", "saved"]
    point = told[1][1]["point"]
    assert point.name == "selective_2026/step_000008" and set(point.files.values()) == {b"8"}
    assert all(path.startswith(f"edgetune/{point.name}") for path in point.files)


@pytest.mark.slow
def test_ctrl_c_between_a_result_and_the_next_job_gives_it_to_no_other(tmp_path):
    """On a real Ray. Each result says whose it is."""
    script = Path(__file__).with_name("sweep_ctrl_c.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["stops"] == 1 and told["seconds"] == {str(number): f"{number}.0" for number in range(4)}
