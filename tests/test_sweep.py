"""A sweep's parts that need no server: jobs, their keys and plans, what is kept, and how jobs are packed.

tests/server runs it as a whole, on a real Ray.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from pack.workflows import prompts as pack_prompts
from PIL import Image
from sweep_parts import inputs, made

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
TRAINER, LOADER, SAVER = "EdgeTune_SelectiveTrainer", "EdgeTune_LoadSubjectImages", "EdgeTune_SaveLoRA"
GPU_MIB = 24 * 1024
TRAINING = ["pocket_train_and_compare", "pocket_train_hollowed", "pocket_train_embedding", "train_and_save"]


@pytest.fixture
def jobs(script):
    return script("sweep_jobs")


@pytest.fixture
def table(script):
    return script("sweep_table")


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
def test_a_table_that_cannot_be_done_is_refused_by_line(jobs, photos, text, words):
    file = photos / "jobs.csv"
    file.write_text(text)
    with pytest.raises(jobs.SetupError, match=words):
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


def test_the_listing_says_what_each_job_takes(jobs, table, tmp_path):
    file = tmp_path / "grid.csv"
    file.write_text(f"subject,{TRAINER}.rank\nrobot,4\nclown,8\n")
    found = made(jobs, jobs.read_requests([str(file)]))
    text = table.listing(found, {job.key: 1234 for job in found}, limit=1)
    assert text.splitlines() == [f"      1,234 MiB  robot  {TRAINER}.rank=4", "  and 1 more"]


def test_without_ray_it_says_how_to_get_it(script, monkeypatch):
    cluster = script("sweep_cluster")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(cluster.SetupError, match="-m pip install ray"):
        cluster.check_ray()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:x"])
def test_a_bad_address_is_named_at_once(script, address):
    cluster = script("sweep_cluster")
    with pytest.raises(cluster.SetupError, match=f"--address {address}: no Ray cluster answers there"):
        cluster.connect(address, None, 1)
