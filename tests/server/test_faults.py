"""What can happen to a server that trains: Cancel at any moment, a queue, a browser closed, a photo deleted."""

import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from pack.nodes.host_files import SHIPPED
from pack.workflows.client import PromptFailed, PromptInterrupted
from short_runs import SELECTIVE, TWINS, report, training

pytestmark = pytest.mark.slow
MODEL = "mini"


class Closed(Exception):
    """The browser was."""


@pytest.mark.parametrize("trainer", TWINS)
def test_cancel_at_a_random_moment_ends_one_prompt_and_the_next_one_runs(odd_server, trainer):
    client, moment = odd_server.client, random.Random(trainer).uniform(0.2, 3)
    running = client.queue(training(trainer, MODEL, steps=100_000, seed=time.time_ns() % 2**32))
    queued = client.queue(training(trainer, MODEL, seed=time.time_ns() % 2**32))
    threading.Timer(moment, client.interrupt, [running]).start()
    with pytest.raises(PromptInterrupted):
        client.wait(running, timeout_s=300)
    assert report(client.wait(queued, timeout_s=300))["steps"] == 2


def test_a_run_whose_browser_was_closed_ends_well(odd_server):
    prompts = []

    def on_event(kind, data):
        if kind == "execution_start":
            prompts.append(data["prompt_id"])
        if kind == "edgetune.step":
            raise Closed

    with pytest.raises(Closed):
        odd_server.client.run(
            training(SELECTIVE, MODEL, steps=10, seed=time.time_ns() % 2**32), on_event, timeout_s=300
        )
    told = report(odd_server.client.wait(prompts[0], timeout_s=300))
    assert told["steps"] == 10 and all(Path(file).is_file() for file in told["files"])


def test_a_photo_deleted_while_it_is_learnt_ends_nothing_and_going_on_without_it_is_refused(odd_server):
    folder = odd_server.folders["input"] / "deleted"
    shutil.copytree(SHIPPED["robot [pocket]"], folder)
    photo = sorted(folder.glob("*.*"))[0]
    workflow = training(SELECTIVE, MODEL, folder="deleted", steps=6, seed=time.time_ns() % 2**32)
    entry = odd_server.client.run(
        workflow, lambda kind, data: photo.unlink(missing_ok=True) if kind == "edgetune.step" else None, timeout_s=300
    )
    assert report(entry)["steps"] == 6 and not photo.exists()
    workflow["trainer"]["inputs"] |= {"resume": odd_server.client.options(SELECTIVE, "resume")[1], "steps": 8}
    with pytest.raises(PromptFailed, match=f"resume: .*made under other conditions:\n.*{photo.stem}"):
        odd_server.client.run(workflow, timeout_s=300)
    workflow["trainer"]["inputs"] |= {"resume": "off"}
    assert report(odd_server.client.run(workflow, timeout_s=300))["steps"] == 8
    shutil.rmtree(folder)
