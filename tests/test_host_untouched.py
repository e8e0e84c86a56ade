"""Whatever ends a run, and whichever phase it is in, ComfyUI and its models are as they were, and the run is kept."""

import asyncio

import folder_paths
import pytest
import tiny
import torch
from comfy import hooks, model_management
from comfy_api.latest import io
from comfy_extras.nodes_hooks import SetClipHooks
from host_state import assert_untouched, host_state
from node_runs import run_node
from pack.nodes import host_saves
from pack.nodes.train_embedding import ZOTextualInversion
from pack.nodes.train_hollow import HollowedNetTrainer
from pack.nodes.train_selective import SelectiveTrainer
from pack.trainers import resume
from test_host import photo, subject

COMMON = {"steps": 3, "save_every": 1}
SETTINGS = {
    SelectiveTrainer: {"strategy": "random", "zo_perturbations": 1, "target_modules": "cross-attention", "seed": 1},
    HollowedNetTrainer: {"rank": 2, "cache_samples": 2, "target_modules": "cross-attention", "hollow_fraction": 0.3},
    ZOTextualInversion: {"token": "my_dog", "initial_word": "dog", "eval_every": 2, "eval_samples": 1},
}
every_trainer = pytest.mark.parametrize("node", SETTINGS, ids=lambda node: node.__name__)
SHARES = (0.0, 0.15, 0.35, 0.5, 0.65, 0.8, 0.97)  # of all forward passes of a run, through three networks


class Ending:
    """A forward hook on a layer of each network that does something in the n-th of its calls."""

    def __init__(self, act=lambda: None, n: int = -1):
        self.act, self.n, self.calls = act, n, 0

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.n:
            self.act()


class Models:
    """MODEL, CLIP and VAE, with the hook in place before their state is looked at."""

    def __init__(self):
        self.model, self.clip, self.vae = tiny.tiny_model("mini"), tiny.tiny_clip("mini"), tiny.tiny_vae()
        self.ending = Ending()
        unet = self.model.model.diffusion_model
        for layer in (
            unet.output_blocks[-1][0],
            unet.middle_block[1],
            self.clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[1].mlp.fc1,
            next(m for m in self.vae.first_stage_model.taesd_encoder.modules() if isinstance(m, torch.nn.Conv2d)),
        ):
            layer.register_forward_hook(lambda *_: self.ending())
        # ComfyUI marks what it has had on the device once.
        model_management.load_models_gpu([self.model, self.clip.patcher, self.vae.patcher], force_full_load=True)
        self.before = host_state(self.model, self.clip, self.vae)

    def run(self, node, ending: Ending, **more) -> io.NodeOutput:
        self.ending = ending
        inputs = dict(model=self.model, clip=self.clip, vae=self.vae, subject=subject(photo(0, "a sks dog")))
        try:
            return run_node(node, **inputs | COMMON | SETTINGS[node] | more)
        finally:
            self.ending = Ending()

    def check(self) -> None:
        assert_untouched(self.before, host_state(self.model, self.clip, self.vae))
        assert not host_saves._running


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))


def break_down() -> None:
    raise torch.OutOfMemoryError("Allocation failed")


@every_trainer
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_success(models, node, quantization, output_folder):
    counting = Ending()
    models.run(node, counting, quantization=quantization)
    models.check()
    assert counting.calls >= 6 and host_saves._points()


@pytest.mark.slow
@every_trainer
@pytest.mark.parametrize("share", SHARES)
def test_cancel_and_running_out_of_memory_in_every_phase(models, node, share, output_folder, tmp_path):
    """By ComfyUI's own interrupt, which the next layer raises, and by an error out of a layer."""
    counting = Ending()
    models.run(node, counting)
    cached = next(iter((tmp_path / "temp").glob("edgetune/*.bin")), None)
    for error, act in (
        (model_management.InterruptProcessingException, model_management.interrupt_current_processing),
        (torch.OutOfMemoryError, break_down),
    ):
        if cached:
            cached.unlink(missing_ok=True)  # or the next run would have no first stage
        saved = set(host_saves._points())
        try:
            models.run(node, Ending(act, 1 + int(share * counting.calls)))
            assert error is torch.OutOfMemoryError and share < 0.2  # in the VAE: ComfyUI then encodes in tiles
        except error as told:
            new = set(host_saves._points()) - saved
            assert error is not torch.OutOfMemoryError or bool(new) == ("set resume to" in str(told))
        models.check()


def hooked(clip, is_scheduled: bool):
    """The CLIP with a LoRA by hooks, of which a second keyframe takes half away in mid-sampling."""
    weight = "text_model.encoder.layers.0.mlp.fc1.weight"
    rows, columns = clip.cond_stage_model.clip_l.transformer.state_dict()[weight].shape
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    lora = {f"{name}.lora_up.weight": torch.ones(rows, 1), f"{name}.lora_down.weight": torch.ones(1, columns)}
    group = hooks.create_hook_lora(lora, 1.0, 1.0)
    keyframes = hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.5, 0.5)):
        keyframes.add(hooks.HookKeyframe(strength, start))
    group.set_keyframes_on_hooks(keyframes)
    return SetClipHooks().apply_hooks(clip, is_scheduled, True, group)[0]


@every_trainer
@pytest.mark.parametrize("is_scheduled", [False, True])
def test_a_clip_with_hooks(models, node, is_scheduled, output_folder):
    """A LoRA learns prompts as the hooks make them, if they make one; a token does not know of hooks."""
    clip = hooked(models.clip, is_scheduled)
    before = host_state(models.model, clip, models.vae)
    plain = models.run(node, Ending()).result[1]
    if node is not ZOTextualInversion and not is_scheduled:
        learnt = models.run(node, Ending(), clip=clip).result[1]
        assert any(not torch.equal(learnt[key], plain[key]) for key in plain)
    else:
        with pytest.raises(ValueError, match="^clip: .*hooks.*connect"):
            models.run(node, Ending(), clip=clip)
    assert_untouched(before, host_state(models.model, clip, models.vae))
    models.check()


@every_trainer
def test_an_error_while_the_run_is_saved(models, node, monkeypatch, output_folder):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "write_point", full)
    report = models.run(node, Ending()).result[-1]
    models.check()
    assert "could not be saved" in report.saved and "No space left" in report.saved


def test_a_run_stopped_through_the_route(models, output_folder):
    """The request comes while the second step runs; the node still gives its outputs."""
    answers = []

    def stop() -> None:
        answers.append(asyncio.run(host_saves._stop(Request({"node": "7"}))))

    model, lora, loss, report = models.run(SelectiveTrainer, Ending(stop, 12), steps=50, strategy="bp_low").result
    models.check()
    assert answers[0].status == 200
    assert report.end == f"stopped at step {report.steps} of 50" and 1 <= report.steps < 50
    assert report.end in report.summary() and len(loss["loss"]) == report.steps and model.patches and lora


class Request:
    """As much of aiohttp's as the route reads."""

    def __init__(self, body):
        self.body = body

    async def json(self):
        if isinstance(self.body, Exception):
            raise self.body
        return self.body


@pytest.mark.parametrize("body", [None, [], {}, {"node": 7}, {"node": None}, "7", ValueError("no JSON")])
def test_a_request_to_stop_that_makes_no_sense_is_refused(body):
    answer = asyncio.run(host_saves._stop(Request(body)))
    assert answer.status == 400 and "needs JSON such as" in answer.text


def test_a_request_to_stop_what_does_not_run_is_answered():
    answer = asyncio.run(host_saves._stop(Request({"node": "7"})))
    assert answer.status == 404 and answer.text == "no training runs in node '7'; nodes that train now: none"
