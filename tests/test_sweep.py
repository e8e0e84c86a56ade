"""A sweep's parts that need no server: jobs, their keys and plans, what is kept, and how jobs are packed.

tests/server runs it as a whole, on a real Ray.
"""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.workflows import prompts as pack_prompts
from pack.workflows.sweep_placement import SNUG, Packing, Place, expected_seconds
from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
TRAINER, LOADER, SAVER = "EdgeTune_SelectiveTrainer", "EdgeTune_LoadSubjectImages", "EdgeTune_SaveLoRA"
GPU_MIB = 24 * 1024
TRAINING = ["pocket_train_and_compare", "pocket_train_hollowed", "pocket_train_embedding", "train_and_save"]


@pytest.fixture
def sweep(monkeypatch):
    """The script, which finds its neighbours as Python lets a script do."""
    monkeypatch.syspath_prepend(WORKFLOWS)
    return importlib.import_module("sweep")


@pytest.fixture
def jobs(sweep):
    return importlib.import_module("sweep_jobs")


@pytest.fixture
def table(sweep):
    return importlib.import_module("sweep_table")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of two subjects' folders, and things that are none."""
    root = tmp_path / "photos"
    for subject, colours in {"rex": ("red", "blue"), "can 2": ("green",)}.items():
        (root / subject).mkdir(parents=True)
        for number, colour in enumerate(colours):
            Image.new("RGB", (16, 16), colour).save(root / subject / f"{number}.png")
    (root / "rex" / "0.txt").write_text("a photo of a sks dog, asleep")
    for hidden in (root / ".cache", root / "notes"):
        hidden.mkdir()
        (hidden / "readme.md").touch()
    return root


def inputs(prompt: dict, name: str) -> dict:
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == name)


def made(jobs, requests, workflow="pocket_train_and_save", taken=None):
    return jobs.make_jobs(pack_prompts.read_workflow(workflow), requests, None, taken or {})


def test_the_script_starts_in_a_python_that_has_nothing_yet():
    names = ["PIL", "aiohttp", "torch", "numpy", "psutil", "tqdm", "ray"]
    without = f"import sys; sys.modules.update(dict.fromkeys({names})); import sweep"
    subprocess.run([sys.executable, "-c", without], cwd=WORKFLOWS, check=True)


def test_a_folder_of_subjects_gives_a_job_for_each(jobs, photos):
    found = made(jobs, jobs.read_requests([str(photos)], "sks dog"))
    assert [job.name for job in found] == ["can 2", "rex"]
    rex = found[1]
    assert [path.name for path in rex.files] == ["0.png", "1.png", "0.txt"]
    loader = inputs(rex.prompt, LOADER)
    assert loader["folder"] == rex.folder and rex.folder.startswith("edgetune_rex_")
    assert loader["instance_prompt"] == "a photo of a sks dog"
    assert inputs(rex.prompt, SAVER)["filename"] == "rex"


def test_a_folder_of_photos_and_a_toy_are_subjects_too(jobs, photos):
    found = made(jobs, jobs.read_requests([str(photos / "rex"), "robot"]))
    assert [job.name for job in found] == ["rex", "robot"]
    assert inputs(found[1].prompt, LOADER)["folder"] == "robot [pocket]" and not found[1].files


def test_a_table_sets_what_its_columns_name(jobs, photos):
    file = photos / "jobs.csv"
    file.write_text(
        f"subject,token,{TRAINER}.steps,Plot Loss Graph.filename_prefix\n"
        "rex,sks cat,7,a\nrex,,8,\nrobot,,7,a\nrobot,,7,a\n"
    )
    found = made(jobs, jobs.read_requests([str(file)], "sks dog"))
    assert len(found) == 3  # one is asked for twice
    assert [inputs(job.prompt, TRAINER)["steps"] for job in found] == [7, 8, 7]
    assert [inputs(job.prompt, LOADER)["instance_prompt"].split()[-1] for job in found] == ["cat", "dog", "dog"]
    assert found[2].name == "robot" and {job.name for job in found[:2]} == {f"rex_{job.key}" for job in found[:2]}


def test_a_table_without_subjects_is_a_grid_of_settings(jobs, tmp_path):
    file = tmp_path / "grid.csv"
    file.write_text(f"{TRAINER}.rank\n4\n8\n")
    found = made(jobs, jobs.read_requests([str(file)]))
    assert [inputs(job.prompt, TRAINER)["rank"] for job in found] == [4, 8]
    assert all(job.name == f"job_{job.key}" for job in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subject\n", "has no rows"),
        ("subject,a.b\nrobot\n", "line 2: it has another number of cells"),
        ("subject\nrobot\nnobody\n", "line 3: subject 'nobody': there is no folder"),
        ("subject\nnotes\n", "line 2: subject 'notes': there are no photos"),
    ],
)
def test_a_table_that_cannot_be_done_is_refused_by_line(sweep, jobs, photos, text, words):
    file = photos / "jobs.csv"
    file.write_text(text)
    with pytest.raises(sweep.SetupError, match=words):
        jobs.read_requests([str(file)])


def test_what_cannot_be_set_is_named(jobs, tmp_path):
    file = tmp_path / "jobs.csv"
    file.write_text("subject,Nobody.rank\nrobot,4\n")
    with pytest.raises(RuntimeError, match="no node 'Nobody' with an input 'rank'"):
        made(jobs, jobs.read_requests([str(file)]))
    with pytest.raises(RuntimeError, match="no EdgeTune_LoadSubjectImages, so it cannot learn robot"):
        made(jobs, jobs.read_requests(["robot"]), "dtap_preview")


def test_a_key_changes_with_photos_captions_and_settings_alone(jobs, photos):
    def keys(*, rank: int = 4) -> list[str]:
        workflow = pack_prompts.read_workflow("pocket_train_and_save")
        pack_prompts.fill(workflow, {(TRAINER, "rank"): rank})
        return [job.key for job in jobs.make_jobs(workflow, jobs.read_requests([str(photos)]), None, {})]

    before = keys()
    assert keys() == before and keys(rank=8)[0] != before[0]
    (photos / "rex" / "0.txt").write_text("another caption")
    assert keys()[0] == before[0] and keys()[1] != before[1]
    Image.new("RGB", (16, 16), "white").save(photos / "can 2" / "0.png")
    assert keys()[0] != before[0]


def test_a_name_that_another_job_has_is_not_taken(jobs):
    (plain,) = made(jobs, jobs.read_requests(["robot"]))
    (same,) = made(jobs, jobs.read_requests(["robot"]), taken={"robot": plain.key})
    (other,) = made(jobs, jobs.read_requests(["robot"]), taken={"robot": "another"})
    assert (plain.name, same.name, other.name) == ("robot", "robot", f"robot_{plain.key}")


@pytest.mark.parametrize("name", TRAINING)
def test_the_plan_is_of_the_trainer_s_own_settings(jobs, name):
    whole = pack_prompts.read_workflow(name)
    planned = jobs.plan_prompt(whole)
    node = planned[jobs.PLANNED]["inputs"]
    trainer = whole[pack_prompts.only(whole, pack_prompts.TRAINERS)]["inputs"]
    assert {key: node[key] for key in node if key in jobs.SIZES} == {
        key: trainer[key] for key in trainer if key in jobs.SIZES
    }
    assert node["resolution"] == inputs(whole, LOADER)["resolution"]
    assert set(planned) - {jobs.PLANNED} <= set(whole)
    assert not any(node["class_type"] in pack_prompts.TRAINERS for node in planned.values())
    assert jobs.plan_key(whole) == jobs.plan_key(pack_prompts.read_workflow(name))


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


def test_the_listing_says_what_each_job_takes(jobs, table, tmp_path):
    file = tmp_path / "grid.csv"
    file.write_text(f"subject,{TRAINER}.rank\nrobot,4\nclown,8\n")
    found = made(jobs, jobs.read_requests([str(file)]))
    text = table.listing(found, {job.key: 1234 for job in found}, limit=1)
    assert text.splitlines() == [f"      1,234 MiB  robot  {TRAINER}.rank=4", "  and 1 more"]


def test_without_ray_it_says_how_to_get_it(sweep, monkeypatch):
    cluster = importlib.import_module("sweep_cluster")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sweep.SetupError, match="-m pip install ray"):
        cluster.check_ray()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:x"])
def test_a_bad_address_is_named_at_once(sweep, address):
    cluster = importlib.import_module("sweep_cluster")
    with pytest.raises(sweep.SetupError, match=f"--address {address}: no Ray cluster answers there"):
        cluster.connect(address, None, 1)


HOLDER = """
import subprocess, sys, time
server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
guard = [sys.executable, "-c", sys.argv[1], str(server.pid), sys.argv[2]]
kept = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
print(server.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs process groups")
def test_a_server_does_not_outlive_a_worker_that_is_killed(sweep, tmp_path):
    workers = importlib.import_module("sweep_workers")
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
def worker(sweep, tmp_path):
    """One whose ComfyUI was never started."""
    workers = importlib.import_module("sweep_workers")
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


PLACES = st.lists(st.tuples(st.integers(8_000, GPU_MIB), st.integers(1, 9)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(PLACES, st.lists(st.tuples(st.integers(200, 8_000), st.integers(1, 50)), min_size=1, max_size=60), st.data())
def test_no_place_is_overcommitted_and_no_job_waits_that_fits(places, sized, data):
    packing = Packing([Place(str(n), None, mib, slots) for n, (mib, slots) in enumerate(places)])
    for number, (mib, _) in enumerate(sized):
        packing.add(number, mib)
    running, count, done = {}, 0, []
    while packing.waiting or running:
        for job, share in packing.openings():
            packing.hold(count, share)
            running[count], count = job, count + 1
        for worker, job in running.items():
            assert SNUG * packing.shares[worker].mib <= sized[job][0] <= packing.shares[worker].mib
        for place in packing.places:
            held = [share.mib for share in packing.shares.values() if share.place == place]
            assert sum(held) <= place.mib and len(held) <= place.slots
            if packing.waiting and len(held) < place.slots:
                assert packing.free_mib(place) < min(packing.waiting)
        worker = data.draw(st.sampled_from(sorted(running)))
        done.append(running.pop(worker))
        if (job := packing.next_for(worker)) is not None:
            running[worker] = job
    assert sorted(done) == list(range(len(sized))) and not packing.shares


def test_a_24_gb_gpu_is_filled_to_more_than_80_percent_while_there_is_work():
    packing = Packing([Place("a", 0, GPU_MIB, 32)])
    for number in range(240):
        packing.add(number, (1_900, 2_300, 4_700, 9_100)[number % 4])
    least, chance = 1.0, random.Random(0)
    while True:
        for job, share in packing.openings():
            packing.hold(("worker", job), share)
        if len(packing.waiting) < 4:  # of the last jobs, which may be too large for what is left
            break
        least = min(least, 1 - packing.free_mib(packing.places[0]) / GPU_MIB)
        packing.next_for(chance.choice(list(packing.shares)))
    assert least > 0.8


@pytest.mark.slow
def test_ray_s_own_count_of_a_24_gb_machine_s_memory_is_never_over_and_over_80_percent(tmp_path):
    """Jobs that sleep, by the sweep's own code; one fails, and a worker is lost."""
    script = Path(__file__).with_name("sweep_packing.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["done"] == 47 and told["failed"] == {"5": "no photos"}
    assert [name for name, tries in told["tries"].items() if tries != "1"] == ["7"]
    used = [mib for mib, waiting, workers in told["samples"] if waiting and workers]
    assert len(used) > 30 and max(mib for mib, *_ in told["samples"]) <= GPU_MIB
    assert sum(used) / len(used) > 0.8 * GPU_MIB


def test_at_most_so_many_workers_as_were_asked_for():
    packing = Packing([Place("a", 0, GPU_MIB, 32)], most=2)
    for number in range(5):
        packing.add(number, 100)
    for job, share in packing.openings():
        packing.hold(job, share)
    assert len(packing.shares) == 2


def test_the_expected_time_is_that_of_the_packing():
    one = [Place("a", None, 1_000, 1)]
    assert expected_seconds([(900, 10.0)] * 4, Packing(one), 5.0) == 45.0
    two = [Place("a", None, 1_000, 2)]
    assert expected_seconds([(500, 10.0)] * 4, Packing(two), 5.0) == 25.0
    assert expected_seconds([(900, 10.0), (100, 1.0), (100, 2.0)], Packing(two), 5.0) == 15.0
