"""The run as a whole: it learns, it repeats, it keeps the best, and it leaves model and CLIP alone whatever happens."""

from dataclasses import replace

import pytest
import tiny
import torch
from pack.trainers.config import TOKEN_CHOICES, TokenConfig
from pack.trainers.memory import PhaseMeter
from pack.trainers.token_inversion import draw_step, fixed_draws
from token_runs import CPU, quadratic_setting, tiny_setting

SHORT = TokenConfig(steps=6, learning_rate=1e-2, subspace_size=3, eval_every=2, eval_samples=2)
METHODS = TOKEN_CHOICES["method"]
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.mark.parametrize("subspace", TOKEN_CHOICES["subspace"])
@pytest.mark.parametrize("difference", TOKEN_CHOICES["difference"])
def test_a_quadratic_is_learnt(subspace, difference):
    config = TokenConfig(steps=600, subspace=subspace, difference=difference, subspace_size=32, learning_rate=1e-2)
    trained = quadratic_setting().train(config)
    assert trained.evaluations[0].loss > 0.3
    assert min(evaluation.loss for evaluation in trained.evaluations) < 0.1 * trained.evaluations[0].loss


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("kind, options", [("sd1", {}), ("sd2", {"v_prediction": True}), ("sdxl", {}), ("ssd1b", {})])
def test_every_family_is_trained(kind, options, method):
    with tiny_setting(kind, count=2, **options) as setting:
        trained = setting.train(replace(SHORT, method=method))
    assert len(trained.steps) == SHORT.steps
    assert {report.kind for report in trained.steps} == {"zo" if method == "zo" else "bp"}
    assert trained.vectors.keys() == setting.initial.keys()
    for name, vector in trained.vectors.items():
        assert vector.shape == setting.initial[name].shape and vector.dtype is torch.float32
        assert torch.isfinite(vector).all() and torch.equal(vector, setting.initial[name]) == (trained.best_step == 0)


@every_method
def test_the_same_seed_gives_the_same_bits(method):
    config = replace(SHORT, method=method)
    results = []
    for seed in (0, 0, 1):
        with tiny_setting("sdxl") as setting:
            results.append(setting.train(replace(config, seed=seed, steps=8, eval_every=0)).vectors)
    first, again, other = results
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_global_generator_is_left_as_found():
    state = torch.get_rng_state()
    quadratic_setting().train(SHORT)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("t_low, t_high", [(500, 900), (0, 1000), (7, 8)])
def test_timesteps_stay_in_their_range(t_low, t_high):
    config = replace(SHORT, t_low=t_low, t_high=t_high, eval_samples=64)
    examples, generator = quadratic_setting().examples, torch.Generator().manual_seed(0)
    for draws in ([draw_step(examples, config, generator) for _ in range(4000)], fixed_draws(examples, config)):
        times = {draw.t for draw in draws}
        assert min(times) >= t_low and max(times) < t_high
        assert min(times) <= t_low + 0.05 * (t_high - t_low) and max(times) >= t_high - 1 - 0.05 * (t_high - t_low)


def test_a_range_beyond_the_model_s_timesteps_is_refused():
    with pytest.raises(ValueError, match="t_high: got 1001, needs to be at most 1000"):
        quadratic_setting().train(replace(SHORT, t_high=1001))


def test_both_methods_see_the_same_photos_captions_timesteps_and_noise():
    generator, examples = torch.Generator(), quadratic_setting().examples * 3

    def choices(config):
        generator.manual_seed(0)
        return [draw_step(examples, config, generator) for _ in range(20)]

    assert choices(SHORT) == choices(replace(SHORT, method="gradient", zo_perturbations=8, difference="central"))


def test_every_photo_and_caption_has_its_turn():
    with tiny_setting("sd1", photos=3) as setting:
        generator = torch.Generator().manual_seed(0)
        draws = [draw_step(setting.examples, SHORT, generator) for _ in range(100)]
    assert {(id(draw.example), draw.caption) for draw in draws} == {
        (id(example), caption) for example in setting.examples for caption in (0, 1)
    }


def test_a_run_that_gets_worse_stops_and_gives_back_the_best():
    """From the goal, each step leads away; so the first token is the best."""
    goal = torch.linspace(-1, 1, 12)
    config = TokenConfig(steps=100, eval_every=5, patience=3, learning_rate=0.1)
    trained = quadratic_setting(start=goal, goal=goal).train(config)
    assert len(trained.steps) == 15 and [evaluation.step for evaluation in trained.evaluations] == [0, 5, 10, 15]
    assert trained.best_step == 0 and torch.equal(trained.vectors["clip_l"], goal[None])


def test_the_best_token_is_the_one_given_back():
    """It overshoots back and forth; the loss of what is returned is the lowest that was seen."""
    goal = torch.linspace(-1, 1, 12)
    config = TokenConfig(steps=60, eval_every=1, patience=0, learning_rate=0.3, zo_perturbations=1)
    trained = quadratic_setting(goal=goal).train(config)
    losses = {evaluation.step: evaluation.loss for evaluation in trained.evaluations}
    assert len(losses) == 61 and losses[trained.best_step] == min(losses.values()) < losses[60]
    assert (trained.vectors["clip_l"] - goal).square().mean().item() == pytest.approx(min(losses.values()), rel=1e-4)


def test_without_evaluations_the_last_token_is_given_back():
    tokens = []
    for steps in (4, 5):
        trained = quadratic_setting().train(replace(SHORT, steps=steps, eval_every=0))
        assert trained.best_step == steps and not trained.evaluations
        tokens.append(trained.vectors["clip_l"])
    assert not torch.equal(*tokens)


def test_the_last_step_is_evaluated_even_between_two_turns():
    trained = quadratic_setting().train(replace(SHORT, steps=5, eval_every=4))
    assert [evaluation.step for evaluation in trained.evaluations] == [0, 4, 5]


def test_evaluations_change_nothing_of_what_is_learnt():
    tokens = [
        quadratic_setting().train(replace(SHORT, steps=7, eval_every=every, eval_samples=samples)).steps
        for every, samples in ((0, 1), (1, 3))
    ]
    assert [report.loss for report in tokens[0]] == [report.loss for report in tokens[1]]


def contents(module) -> dict:
    """Copies of all tensors by name, with what they say of gradients."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone().requires_grad_(value.requires_grad) for name, value in tensors}


def assert_unchanged(module, before: dict) -> None:
    after = contents(module)
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert all(after[name].requires_grad == value.requires_grad for name, value in before.items())
    assert all(parameter.grad is None for parameter in module.parameters())


class Cancelled(BaseException):
    """As ComfyUI's InterruptProcessingException, no Exception."""


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, Cancelled])
@pytest.mark.parametrize("inside", ["unet", "text encoder", "on_step"])
def test_model_and_clip_are_the_same_bits_afterwards(method, error, inside):
    model, clip = tiny.tiny_model("sd1"), tiny.tiny_clip("sd1")
    modules = model.model.diffusion_model, clip.cond_stage_model
    before = [contents(module) for module in modules]
    calls = iter(range(10_000))
    layers = {
        "unet": modules[0].output_blocks[5][1],
        "text encoder": clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[1],
    }

    def cancel(*_):
        if next(calls) == 5 and error:
            raise error

    handle = layers[inside].register_forward_hook(cancel) if inside in layers else None
    try:
        with tiny_setting("sd1", model=model, clip=clip) as setting:
            setting.train(replace(SHORT, method=method), on_step=lambda step: None if handle else cancel())
        assert error is None
    except (KeyboardInterrupt, Cancelled) as raised:
        assert type(raised) is error
    finally:
        if handle:
            handle.remove()
    for module, content in zip(modules, before, strict=True):
        assert_unchanged(module, content)
    assert clip.cond_stage_model.clip_l.execution_device is None


@every_method
def test_a_loss_that_is_not_finite_stops_with_a_message(method):
    with tiny_setting("sd1") as setting:
        for example in setting.examples:
            example.latent[0, 0, 0] = float("nan")
        with pytest.raises(
            RuntimeError, match=r"ZO Textual Inversion: the loss became nan at step 1 .*unchanged.*rate"
        ):
            setting.train(replace(SHORT, method=method, eval_every=0))
        with pytest.raises(
            RuntimeError, match=r"the loss under fixed noise became nan after step 0; .*unchanged.*rate"
        ):
            setting.train(replace(SHORT, method=method, eval_every=1))


def test_phases_and_their_memory():
    """A forward-only step needs what a forward pass needs; a gradient step keeps activations."""
    peaks = {}
    for method in METHODS:
        meter = PhaseMeter(CPU)
        with tiny_setting("sd1", side=32) as setting:
            setting.train(replace(SHORT, method=method, candidates="one_by_one"), meter=meter)
        peaks |= {phase.name: phase.peak_bytes for phase in meter.phases()}
    assert peaks.keys() == {"inference", "evaluation", "zo", "bp"}
    assert peaks["zo"] < 1.01 * peaks["inference"] and peaks["evaluation"] < 1.01 * peaks["inference"]
    assert peaks["bp"] > 1.2 * peaks["inference"]
    resident = sum(
        parameter.numel() * 4
        for part in (setting.network.unet, setting.text_encoder)
        for name, parameter in part.named_parameters()
        if "token_embedding" not in name  # which waits in RAM
    )
    assert resident < peaks["zo"] < 2 * resident


@pytest.mark.parametrize("name, value", [("t_low", 900), ("t_low", -1), ("subspace_size", 1), ("subspace_nu", 0.0)])
@pytest.mark.parametrize("more", [("learning_rate", float("nan")), ("zo_epsilon", 0.0), ("method", "magic")])
def test_settings_out_of_range_are_refused_by_name(name, value, more):
    for setting, bad in ((name, value), more):
        with pytest.raises(ValueError, match=f"{setting}: got "):
            TokenConfig(**{setting: bad})
