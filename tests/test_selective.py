"""The selective trainer on tiny models: it learns, it repeats, and it leaves the model alone whatever happens."""

from dataclasses import replace

import pytest
import tiny
import torch
from pack.nodes import host
from pack.trainers.backprop import checkpointed
from pack.trainers.config import SelectiveConfig
from pack.trainers.lora import injected
from pack.trainers.memory import LiveBytes, PhaseMeter
from pack.trainers.objective import Condition, Example, Sample, denoising_loss
from pack.trainers.run import StepReport, check_loss
from pack.trainers.schedule import STRATEGIES, expected_steps
from pack.trainers.selective import TRAINER, _rates, choices, train_selective
from pack.trainers.zero_order import add_perturbation, central_difference

CPU = torch.device("cpu")
SHORT = SelectiveConfig(steps=6, zo_perturbations=2, learning_rate=1e-3)


def example(kind: str, seed: int = 0, side: int = 16, low_res_ratio: float = 0.5) -> Example:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(4, side, side, generator=generator)
    low = torch.nn.functional.adaptive_avg_pool2d(latent, round(side * low_res_ratio))
    sdxl = kind in ("sdxl", "ssd1b")
    context = torch.randn(77, tiny.WIDTH * (2 if sdxl else 1), generator=generator)
    vector = torch.randn(tiny.WIDTH + 1536, generator=generator) if sdxl else None
    return Example(Sample(latent, context, vector), Sample(low, context, vector))


def train(kind, config, *, model=None, examples=None, on_step=lambda step: None, meter=None):
    model = model or tiny.tiny_model(kind)
    with host.trainable(model) as network:
        meter = meter or PhaseMeter(CPU)
        return train_selective(network, examples or [example(kind)], config, host.lora_names(model), meter, on_step)


def snapshot(model):
    return {name: p.clone() for name, p in model.model.diffusion_model.named_parameters()}


def assert_unchanged(model, before):
    after = dict(model.model.diffusion_model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) and not after[name].requires_grad for name, value in before.items())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", tiny.SD1_FIRST)
def test_every_strategy_trains_every_family_and_leaves_it_alone(kind, strategy):
    model = tiny.tiny_model(kind)
    before = snapshot(model)
    trained = train(kind, replace(SHORT, strategy=strategy, t_mid=500), model=model)
    assert len(trained.steps) == SHORT.steps
    assert all(torch.isfinite(value).all() for value in trained.lora.values())
    assert any(value.abs().max() > 0 for key, value in trained.lora.items() if "lora_up" in key)
    assert_unchanged(model, before)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["bp_high", "bp_low", "dtap"])
def test_one_image_is_overfitted(strategy):
    """Under fixed noise the loss falls well below where it started."""
    model = tiny.tiny_model("sd1")
    one = example("sd1")
    config = SelectiveConfig(
        steps=80, rank=8, learning_rate=1e-2, zo_learning_rate=1e-5, zo_perturbations=1, strategy=strategy
    )
    lora = train("sd1", config, model=model, examples=[one]).lora

    def fixed_noise_loss(patcher):
        with host.trainable(patcher) as network, torch.no_grad():
            sample = one.high if strategy == "bp_high" else one.low
            generator = torch.Generator().manual_seed(9)
            t = torch.arange(50, 1000, 100)
            x0 = sample.latent.expand(len(t), -1, -1, -1)
            noise = torch.randn(x0.shape, generator=generator)
            condition = Condition(sample.context.expand(len(t), -1, -1))
            return denoising_loss(network, x0, noise, t, condition).mean().item()

    assert fixed_noise_loss(host.with_lora(model, lora)) < 0.8 * fixed_noise_loss(model)


def test_the_same_seed_gives_the_same_bits():
    first, again = (train("sdxl", SHORT).lora for _ in range(2))
    other = train("sdxl", replace(SHORT, seed=1)).lora
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_the_global_generator_is_left_as_found():
    state = torch.get_rng_state()
    train("sd1", SHORT)
    assert torch.equal(torch.get_rng_state(), state)


class Cancelled(BaseException):
    """As ComfyUI's InterruptProcessingException, no Exception."""


@pytest.mark.parametrize("strategy", ["bp_low", "zo_high"])
def test_cancelling_inside_any_layer_leaves_the_model_alone(strategy):
    model = tiny.tiny_model("sd1")
    before = snapshot(model)
    layer = model.model.diffusion_model.output_blocks[5][1]
    calls = iter(range(100))

    def cancel(*_):
        if next(calls) == 5:  # the first call is the inference pass; with zo_high this one is a -eps pass
            raise Cancelled

    handle = layer.register_forward_hook(cancel)
    try:
        with pytest.raises(Cancelled):
            train("sd1", replace(SHORT, strategy=strategy, gradient_checkpointing=True), model=model)
    finally:
        handle.remove()
    assert_unchanged(model, before)
    assert not any("forward" in vars(module) for module in model.model.diffusion_model.modules())


def test_a_loss_that_is_not_finite_stops_with_a_message():
    model = tiny.tiny_model("sd1")
    before = snapshot(model)
    broken = example("sd1")
    broken.low.latent[0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match=r"loss became nan at step 1 .*unchanged.*learning_rate 0.001"):
        train("sd1", replace(SHORT, strategy="bp_low"), model=model, examples=[broken])
    assert_unchanged(model, before)


def test_an_exploding_loss_stops_with_a_message():
    """The check alone: a U-Net's last GroupNorm bounds its output, so a tiny random one does not explode."""

    def history(losses):
        return [StepReport(i, 99, "zo", loss, 500, 0, 0.0) for i, loss in enumerate(losses, 1)]

    rates = _rates(SHORT, "zo")
    check_loss(history([0.2, 0.4] * 40), TRAINER, rates)
    check_loss(history([0.2] * 20 + [4.0]), TRAINER, rates)  # one bad draw is no explosion
    with pytest.raises(RuntimeError, match="loss exploded at step 30 .*unchanged.*zo_learning_rate 0.01"):
        check_loss(history([0.2] * 20 + [1.9] * 10), TRAINER, rates)


@pytest.mark.parametrize("strategy", ["bp_low", "zo_high", "dtap"])
def test_batches_of_photos_of_several_sizes(strategy):
    examples = [example("sd1", seed, side) for seed, side in enumerate((16, 16, 24))]
    trained = train("sd1", replace(SHORT, batch_size=2, strategy=strategy), examples=examples)
    assert len(trained.steps) == SHORT.steps


def test_photos_of_several_sizes_come_up_equally_often_and_one_alone_in_its_size_fills_its_batch():
    """Two photos of one size and one of another, in 1500 batches of two: 1000 of each within four deviations."""
    examples = [example("sd1", seed, side) for seed, side in enumerate((16, 16, 24))]
    config, generator = replace(SHORT, batch_size=2), torch.Generator().manual_seed(0)
    draws = [choices(examples, config, step, 1000, generator).examples for step in range(1, 1501)]
    assert all((draw[0] is examples[2]) == (draw[1] is examples[2]) for draw in draws)
    counts = [sum(photo is one for draw in draws for photo in draw) for one in examples]
    deviation = 2 * (1500 * 1 / 3 * 2 / 3) ** 0.5  # of the third's count, which grows by two or not at all
    assert all(abs(count - 1000) < 4 * deviation for count in counts)


def test_choices_follow_the_schedule_over_1000_draws():
    """Measured counts of the paper's setting lie within four standard deviations of the expectation."""
    config = SelectiveConfig()
    generator = torch.Generator().manual_seed(0)
    draws = [choices([example("sd1")], config, step, 1000, generator) for step in range(1, 1001)]
    expected = expected_steps("dtap", 1000, k=config.k, t_mid=config.t_mid, t_max=1000)
    assert abs(sum(draw.is_zo for draw in draws) - expected.steps_zo) < 4 * (1000 * 0.25 * 0.75) ** 0.5
    assert min(draw.t for draw in draws) >= 0 and max(draw.t for draw in draws) <= 999


def test_all_strategies_see_the_same_photos_timesteps_and_noise():
    def seen(strategy):
        generator = torch.Generator().manual_seed(0)
        config = replace(SHORT, strategy=strategy)
        draws = [choices([example("sd1", i) for i in range(3)], config, i, 1000, generator) for i in range(1, 20)]
        return [(draw.t, draw.noise_seed, draw.probe_seeds) for draw in draws]

    assert all(seen(strategy) == seen("dtap") for strategy in STRATEGIES)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_slope_on_a_u_net_agrees_with_autograd(kind):
    """Directional derivative of the loss along a perturbation of the LoRA, to 1e-3 relative in float32."""
    model = tiny.tiny_model(kind)
    sample = example(kind).high
    with host.trainable(model) as network, injected(network.unet, 4, 4.0, "attention", 0) as lora:
        params = lora.parameters()
        add_perturbation(params, seed=1, scale=0.02)  # away from B = 0, where A has no gradient
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
        vector = None if sample.vector is None else sample.vector[None]
        condition = Condition(sample.context[None], vector)

        def loss():
            return denoising_loss(network, sample.latent[None], noise, torch.tensor([400]), condition).mean()

        gradients = torch.autograd.grad(loss(), params)
        pairs = []
        for seed in range(8):
            z = [torch.zeros_like(p) for p in params]
            add_perturbation(z, seed, scale=1.0)
            exact = sum((g * direction).double().sum() for g, direction in zip(gradients, z, strict=True))
            with torch.inference_mode():
                slope, _ = central_difference(lambda: loss().double().item(), params, seed, epsilon=2e-3)
            pairs.append((slope, exact.item()))
    slopes, exacts = torch.tensor(pairs).unbind(1)
    assert (slopes - exacts).norm() < 1e-3 * exacts.norm()


@pytest.mark.parametrize("kind", tiny.SD1_FIRST)
def test_checkpointing_changes_memory_and_nothing_else(kind):
    model = tiny.tiny_model(kind)
    peaks, loras = [], []
    for gradient_checkpointing in (False, True):
        meter = PhaseMeter(CPU)
        config = replace(SHORT, strategy="bp_high", gradient_checkpointing=gradient_checkpointing)
        loras.append(train(kind, config, model=model, examples=[example(kind, side=32)], meter=meter).lora)
        peaks.append(meter.peak_bytes("bp"))
    weights = sum(p.numel() * 4 for p in model.model.diffusion_model.parameters())
    assert peaks[1] - weights < 0.5 * (peaks[0] - weights)
    for key in loras[0]:
        torch.testing.assert_close(loras[0][key], loras[1][key], rtol=1e-4, atol=1e-6)


def test_checkpointing_is_undone_when_the_block_raises():
    unet = tiny.tiny_model("ssd1b").model.diffusion_model
    with pytest.raises(Cancelled), checkpointed(unet):
        raise Cancelled
    assert not any("forward" in vars(module) for module in unet.modules())


def test_the_u_net_exists_once():
    """Peak live bytes of every phase: the weights, and little more at this size."""
    model = tiny.tiny_model("sd1")
    meter = PhaseMeter(CPU)
    train("sd1", replace(SHORT, strategy="random"), model=model, meter=meter)
    weights = sum(p.numel() * 4 for p in model.model.diffusion_model.parameters())
    for name in ("inference", "bp", "zo"):
        assert weights <= meter.peak_bytes(name) < 1.5 * weights  # a second copy would make it 2


def test_the_optimizer_s_moments_are_in_the_peak():
    """They are there from the second BP step on: two float32 numbers for each factor."""
    model = tiny.tiny_model("sd1")
    peaks = []
    for steps in (1, 2):
        meter = PhaseMeter(CPU)
        lora = train("sd1", replace(SHORT, steps=steps, rank=64, strategy="bp_high"), model=model, meter=meter).lora
        peaks.append(meter.peak_bytes("bp"))
    factors = sum(value.numel() for key, value in lora.items() if key.endswith("weight"))
    assert peaks[1] - peaks[0] > 4 * factors


def test_a_forward_only_step_keeps_no_activations():
    model = tiny.tiny_model("sd1")
    with host.trainable(model) as network, LiveBytes(network.unet.parameters()) as bytes_:
        before = bytes_.live
        meter = PhaseMeter(CPU)
        config = replace(SHORT, steps=1, strategy="zo_high")
        train_selective(network, [example("sd1")], config, host.lora_names(model), meter, lambda step: None)
        assert bytes_.live - before < 200_000  # the LoRA that is returned
