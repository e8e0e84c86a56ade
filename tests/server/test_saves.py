"""Cancel, stop and keep, and resume through the server's own routes."""

import threading

import pytest
from pack.workflows.client import PromptFailed, PromptInterrupted, ServerError
from pack.workflows.prompts import fill
from safetensors.torch import load_file
from test_runs import TRAINER, node_id, prompt, run

pytestmark = pytest.mark.slow
SHIPPED = "robot [pocket]"


def at_step(number: int, act):
    """An on_event that does something once, when this step is told."""
    done = []

    def on_event(kind, data):
        if kind == "edgetune.step" and data["step"] >= number and not done:
            done.append(data["step"])
            threading.Thread(target=act).start()

    return on_event


def test_a_cancelled_run_is_saved_and_goes_on_to_the_same_file(server, tmp_path):
    workflow = prompt("pocket_train_and_save", "edgetune/saves", folder=SHIPPED, steps=60, strategy="bp_low")
    whole = run(server, workflow)[0]["EdgeTune_SaveLoRA"][0]["path"][0]
    fill(workflow, {(TRAINER, "save_every"): 7})  # another value, or ComfyUI has the result already
    before = set(server.client.options(TRAINER, "resume"))
    with pytest.raises(PromptInterrupted):
        server.client.run(workflow, on_event=at_step(5, server.client.interrupt), timeout_s=240)
    (point, *_) = [name for name in server.client.options(TRAINER, "resume") if name not in before]
    fill(workflow, {(TRAINER, "resume"): point})
    resumed = run(server, workflow)[0]["EdgeTune_SaveLoRA"][0]["path"][0]
    first, second = load_file(whole), load_file(resumed)
    assert whole != resumed and all((first[key] == second[key]).all() for key in first)
    newest = server.client.options(TRAINER, "resume")[1]
    fill(workflow, {(TRAINER, "learning_rate"): 0.5, (TRAINER, "resume"): newest})
    with pytest.raises(PromptFailed, match=r"learning_rate: was 0\.\d+, is 0\.5"):
        server.client.run(workflow, timeout_s=240)


def test_a_stopped_run_gives_its_results_and_the_graph_goes_on(server):
    workflow = prompt("pocket_train_and_save", "edgetune/stopped", folder=SHIPPED, steps=100_000, strategy="bp_low")
    trainer = node_id(workflow, TRAINER)
    with pytest.raises(ServerError, match="404 no training runs in node"):
        server.client.post("/edgetune/stop", {"node": trainer})
    with pytest.raises(ServerError, match="400 needs JSON such as"):
        server.client.post("/edgetune/stop", {"node": 7})
    stop = at_step(3, lambda: server.client.post("/edgetune/stop", {"node": trainer}))
    entry = server.client.run(workflow, on_event=stop, timeout_s=240)
    outputs = {workflow[key]["class_type"]: output for key, output in entry["outputs"].items()}
    assert "stopped at step" in outputs[TRAINER]["text"][0] and "of 100000" in outputs[TRAINER]["text"][0]
    assert outputs["EdgeTune_SaveLoRA"]["text"]
