"""The hollowed trainer on tiny models: it learns, it repeats, its cache is its own, and it leaves the model alone."""

import errno
import os
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import tiny
import torch
from pack.nodes import host
from pack.trainers.config import HollowConfig
from pack.trainers.hollow import read_ahead, train_hollow
from pack.trainers.hollow_cache import batches, draw_noised
from pack.trainers.hollow_cuts import cuts
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Condition, Sample, denoising_loss
from test_selective import Cancelled, example

CPU = torch.device("cpu")
SHORT = HollowConfig(steps=3, rank=2, cache_samples=2, learning_rate=1e-3)


def photo(kind: str, seed: int = 0, side: int = 8) -> Sample:
    return example(kind, seed, side).high


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "temp" / "hollow.bin"


def train(kind, config, path, *, model=None, photos=None, meter=None, **callbacks):
    model = model or tiny.tiny_model(kind)
    photos, meter = photos or [photo(kind)], meter or PhaseMeter(CPU)
    on_step = callbacks.pop("on_step", lambda step: None)
    with host.trainable(model) as network:
        return train_hollow(
            network,
            photos,
            config,
            host.lora_names(model),
            meter,
            on_step,
            cache_path=path,
            offload_device=CPU,
            **callbacks,
        )


def state(model) -> tuple:
    """Every module, the very one, and every weight's bits and device."""
    unet = model.model.diffusion_model
    weights = {name: (p.detach().clone(), p.device, p.requires_grad) for name, p in unet.named_parameters()}
    forwards = [name for name, module in unet.named_modules() if "forward" in vars(module) or module._forward_hooks]
    return list(unet.named_modules()), weights, forwards


def assert_unchanged(model, before: tuple) -> None:
    modules, weights, forwards = state(model)
    assert (modules, forwards) == (before[0], before[2])
    assert weights.keys() == before[1].keys()
    for name, (value, *where) in weights.items():
        assert torch.equal(value, before[1][name][0]) and where == list(before[1][name][1:]), name


@pytest.mark.parametrize("kind", tiny.SD1_FIRST)
def test_every_family_is_trained_and_left_alone(kind, path):
    model, heard, steps = tiny.tiny_model(kind), [], []
    before = state(model)
    meter = PhaseMeter(CPU)
    callbacks = dict(on_step=steps.append, on_cached=lambda *done: heard.append(done))
    trained = train(kind, SHORT, path, model=model, meter=meter, **callbacks)
    assert heard == [(1, 2), (2, 2)]
    assert trained.steps == steps and [step.kind for step in steps] == ["bp"] * 3
    assert [phase.name for phase in meter.phases()] == ["inference", "cache", "bp"]
    assert (trained.cache.samples, trained.cache.file_bytes) == (2, path.stat().st_size)
    assert len(trained.lora) == 3 * trained.cut.lora_layers
    assert all(torch.isfinite(value).all() for value in trained.lora.values())
    assert any(value.abs().max() > 0 for key, value in trained.lora.items() if "lora_up" in key)
    assert_unchanged(model, before)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["absolute", "residual"])
def test_a_photo_is_learnt_and_the_whole_network_knows_it_too(mode, path):
    """In the hollowed network and, under noise it never saw, in the full one."""
    model, one = tiny.tiny_model("sd1"), photo("sd1")
    config = HollowConfig(steps=80, rank=8, cache_samples=20, learning_rate=1e-2, hollow_fraction=0.3, mode=mode)
    trained = train("sd1", config, path, model=model, photos=[one])
    losses = [step.loss for step in trained.steps]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])

    def fixed_noise_loss(patcher):
        with host.trainable(patcher) as network, torch.no_grad():
            t = torch.arange(50, 1000, 100)
            x0 = one.latent.expand(len(t), -1, -1, -1)
            noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(9))
            return denoising_loss(network, x0, noise, t, Condition(one.context.expand(len(t), -1, -1))).mean().item()

    assert fixed_noise_loss(host.with_lora(model, trained.lora)) < 0.9 * fixed_noise_loss(model)


def test_the_same_seed_gives_the_same_bits_cached_or_not(path):
    model = tiny.tiny_model("sdxl")
    first = train("sdxl", SHORT, path, model=model)
    reusing = train("sdxl", SHORT, path, model=model)
    path.unlink()
    again = train("sdxl", SHORT, path)
    other = train("sdxl", replace(SHORT, seed=1), path)
    assert [run.cache.is_reused for run in (first, reusing, again, other)] == [False, True, False, False]
    for key, value in first.lora.items():
        assert torch.equal(value, reusing.lora[key]) and torch.equal(value, again.lora[key])
    assert not all(torch.equal(value, other.lora[key]) for key, value in first.lora.items())


def test_the_global_generator_is_left_as_found(path):
    generator = torch.get_rng_state()
    train("sd1", SHORT, path)
    assert torch.equal(torch.get_rng_state(), generator)


SAME_CACHE = {"learning_rate": 1e-2, "rank": 3, "steps": 5, "alpha": 1.0, "batch_size": 2, "sampling": "two-path"}
OTHER_CACHE = {"seed": 1, "cache_samples": 3, "hollow_fraction": 0.2, "mode": "residual", "cache_dtype": "float32"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SAME_CACHE, *OTHER_CACHE])
def test_the_cache_is_reused_unless_a_setting_changes_what_is_in_it(name, path):
    model, value = tiny.tiny_model("sd1"), (SAME_CACHE | OTHER_CACHE)[name]
    config = replace(SHORT, hollow_fraction=0.3)
    train("sd1", config, path, model=model)
    heard = []
    changed = train("sd1", replace(config, **{name: value}), path, model=model, on_cached=lambda *_: heard.append(_))
    assert changed.cache.is_reused == (name in SAME_CACHE) == (not heard)


@pytest.mark.slow
def test_the_cache_is_written_anew_for_other_photos_prompts_and_models(path):
    model, one = tiny.tiny_model("sd1"), photo("sd1")
    patched = host.with_lora(model, train("sd1", SHORT, path, model=model, photos=[one]).lora)
    given = [
        (model, [one._replace(latent=one.latent + 1e-3)]),
        (model, [one._replace(context=one.context.flip(0))]),
        (model, [one, one]),
        (tiny.tiny_model("sd1", seed=5), [one]),
        (patched, [one]),
        (
            tiny.tiny_model("sd1", v_prediction=True),
            [one],
        ),  # the same weights and noise: what the centre sees is the same
    ]
    reused = []
    for network, photos in given:
        train("sd1", SHORT, path, model=model, photos=[one])
        reused.append(train("sd1", SHORT, path, model=network, photos=photos).cache.is_reused)
    assert reused == [False] * 5 + [True]


def test_a_photo_in_a_batch_has_the_activation_it_has_alone(path):
    """Batches of photos of two sizes, each with the tensor of its own size."""
    photos = [photo("sd1", seed, side) for seed, side in enumerate((8, 16, 8))]
    trained = train("sd1", replace(SHORT, cache_samples=9, batch_size=2, steps=6), path, photos=photos)
    assert trained.cache.samples == 9 and len(trained.steps) == 6


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_only_what_stays_is_in_memory_while_steps_run(gradient_checkpointing, path):
    model, peaks, bytes_out = tiny.tiny_model("sd1"), [], []
    for fraction in (0.05, 0.39):
        meter = PhaseMeter(CPU)
        config = replace(SHORT, hollow_fraction=fraction, gradient_checkpointing=gradient_checkpointing)
        bytes_out.append(train("sd1", config, path, model=model, meter=meter).cut.leaving_bytes)
        peaks.append(meter.peak_bytes("bp"))
    assert peaks[0] - peaks[1] >= bytes_out[1] - bytes_out[0] > 0


STAGES = ["inference", "stage 1", "on_cached", "stage 2", "backward", "on_step"]


@pytest.mark.parametrize("error", [Cancelled, RuntimeError])
@pytest.mark.parametrize("stage", STAGES)
def test_an_end_at_any_stage_leaves_the_model_alone(stage, error, path):
    """As ComfyUI's interrupt, which is no Exception and comes out of any layer, and as an error of the model."""
    model = tiny.tiny_model("sd1")
    layer = model.model.diffusion_model.output_blocks[9][1]  # stays; runs in inference and in stage 2
    if stage == "stage 1":
        layer = model.model.diffusion_model.middle_block[1]  # leaves
    before, calls = state(model), iter(range(100))

    def end(*_):
        raise error("ended")

    def end_in_call(number):
        return lambda *_: end() if next(calls) == number else None

    callbacks = {stage: end} if stage.startswith("on_") else {}
    handles = {
        "inference": lambda: layer.register_forward_hook(end_in_call(0)),
        "stage 1": lambda: layer.register_forward_hook(end_in_call(2)),  # after inference and the run for the size
        "stage 2": lambda: layer.register_forward_hook(end_in_call(2)),
        "backward": lambda: layer.register_full_backward_hook(end_in_call(1)),
    }
    handle = handles[stage]() if stage in handles else None
    try:
        with pytest.raises(error, match="ended"):
            train("sd1", replace(SHORT, gradient_checkpointing=True), path, model=model, **callbacks)
    finally:
        if handle:
            handle.remove()
    assert_unchanged(model, before)
    left = sorted(file.name for file in path.parent.iterdir()) if path.parent.exists() else []
    assert left == ([path.name, f"{path.name}.json"] if stage in STAGES[3:] else [])


def test_a_full_disk_is_told_before_anything_is_cached(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    model, heard = tiny.tiny_model("sd1"), []
    before = state(model)
    with pytest.raises(RuntimeError, match=r"needs [\d,]+ bytes in .*temp, where [\d,]+ are free .*cache fewer"):
        train("sd1", SHORT, path, model=model, on_cached=lambda *_: heard.append(_))
    assert not heard and list(path.parent.iterdir()) == []
    assert_unchanged(model, before)


def test_a_loss_that_is_not_finite_stops_with_a_message(path):
    model, calls = tiny.tiny_model("sd1"), iter(range(100))
    before = state(model)
    layer = model.model.diffusion_model.output_blocks[11][0]
    handle = layer.register_forward_hook(lambda _, __, h: h * float("nan") if next(calls) else None)
    with pytest.raises(
        RuntimeError, match=r"Hollowed Net Trainer: the loss became nan at step 1 .*learning_rate 0.001"
    ):
        train("sd1", SHORT, path, model=model)
    handle.remove()
    assert_unchanged(model, before)


def test_a_fraction_or_mode_that_cannot_be_is_refused_before_anything_runs(path):
    with pytest.raises(ValueError, match="hollow_fraction: got 1.0, needs to be above 0 and below 1"):
        replace(SHORT, hollow_fraction=1.0)
    unet = tiny.tiny_model("sd1").model.diffusion_model
    no_residual = next(cut for cut in cuts(unet) if cut.lora_layers and not cut.has_residual)
    with pytest.raises(ValueError, match="mode: residual cannot be had without input_blocks"):
        train("sd1", replace(SHORT, hollow_fraction=no_residual.share, mode="residual"), path)
    assert not path.parent.exists()


def test_no_more_is_stored_than_the_run_has_a_use_for():
    assert HollowConfig(steps=10, batch_size=3).samples_needed == 30
    assert HollowConfig(steps=1000, batch_size=3, cache_samples=50).samples_needed == 50


@pytest.mark.parametrize("count", [1, 7, 1000, 2500])
def test_photos_take_turns_and_timesteps_are_spread_evenly(count):
    noised = draw_noised(5, HollowConfig(steps=10_000, cache_samples=count), 1000)
    photos, tenths = Counter(one.example for one in noised), Counter(one.t // 100 for one in noised)
    assert len(noised) == count and max(photos.values()) - min(photos.values(), default=0) <= 1
    assert all(0 <= one.t < 1000 for one in noised) and len({one.noise_seed for one in noised}) == count
    if count >= 1000:
        assert set(tenths.values()) == {count // 10}


def test_all_noised_photos_come_up_equally_often_in_batches_of_one_size():
    photos = [photo("sd1", seed, side) for seed, side in enumerate((8, 16, 8))]
    noised = draw_noised(3, HollowConfig(steps=1000, cache_samples=12), 1000)
    chosen = list(islice(batches(noised, photos, 4, torch.Generator().manual_seed(0)), 30))
    assert all(len({photos[noised[n].example].latent.shape for n in batch}) == 1 for batch in chosen)
    assert set(Counter(n for batch in chosen for n in batch).values()) == {10}


def test_the_next_batch_is_read_while_one_is_in_use():
    read = []
    with read_ahead(iter([[0], [1], [2]]), lambda numbers: read.append(numbers) or torch.tensor(numbers), False) as got:
        assert next(got) == ([0], torch.tensor([0]))
        assert next(got)[0] == [1] and [2] not in read[:1]
        assert [numbers for numbers, _ in got] == [[2]]
    assert read == [[0], [1], [2]]


def test_what_goes_wrong_in_the_reading_thread_is_raised_where_it_is_used():
    def broken(numbers):
        raise OSError("no such disk")

    with pytest.raises(OSError, match="no such disk"), read_ahead(iter([[0]]), broken, False) as got:
        next(got)
