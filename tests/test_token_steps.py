"""One step: the estimate against autograd on real networks, Adam against its formula, batch against one by one."""

import math
from dataclasses import replace

import pytest
import torch
from pack.trainers.config import TOKEN_CHOICES, TokenConfig
from pack.trainers.memory import PhaseMeter
from pack.trainers.token_gradient import candidates, estimate, excess_length, perturbations, slopes
from pack.trainers.token_inversion import draw_step
from pack.trainers.token_steps import Draw, GradientRun, TokenLoss, ZeroOrderRun
from pack.trainers.token_vectors import packed, unpacked
from token_runs import CPU, quadratic_setting, tiny_setting

CONFIG = TokenConfig(steps=9, subspace="off")
KINDS = [("sd1", {}), ("sd2", {"v_prediction": True}), ("sdxl", {})]
every_kind = pytest.mark.parametrize("kind, options", KINDS, ids=[kind for kind, _ in KINDS])
both = pytest.mark.parametrize("difference", TOKEN_CHOICES["difference"])


def loss_of(setting, meter=None) -> TokenLoss:
    shapes = {name: vector.shape for name, vector in setting.initial.items()}
    return TokenLoss(setting.network, setting.text_encoder, shapes, meter or PhaseMeter(CPU))


def draw_of(setting, t: int = 600) -> Draw:
    return Draw(setting.examples[0], 0, t, noise_seed=11, probe_seed=12)


def test_packing_is_undone_by_unpacking():
    vectors = {"clip_l": torch.randn(3, 5), "clip_g": torch.randn(3, 7)}
    shapes = {name: vector.shape for name, vector in vectors.items()}
    tokens = unpacked(torch.stack([packed(vectors), 2 * packed(vectors)]), shapes)
    assert all(torch.equal(tokens[name], torch.stack([vector, 2 * vector])) for name, vector in vectors.items())


@both
@every_kind
def test_the_estimate_converges_to_autograd_s_gradient(kind, options, difference):
    """Through text encoder and U-Net. Along each perturbation to 2%, and averaged over N of them to sqrt(d / N)."""
    with tiny_setting(kind, **options) as setting:
        loss, draw, token = loss_of(setting), draw_of(setting), packed(setting.initial)
        leaf = token.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(draw, leaf[None]).sum(), leaf)
        z = perturbations(400, len(token), seed=100)
        along = []
        for rows in z.split(50):
            losses = loss.values(draw, candidates(token, rows, 2e-3, difference), is_batched=True)
            along += slopes(losses, 2e-3, difference)
    exact = z @ gradient
    assert (torch.tensor(along) - exact).norm() < 0.02 * exact.norm()
    assert (estimate(along, z) - gradient).norm() < 1.5 * (len(token) / len(z)) ** 0.5 * gradient.norm()


@pytest.mark.slow
@pytest.mark.parametrize("method", TOKEN_CHOICES["method"])
@every_kind
def test_a_photo_under_one_noise_is_learnt(kind, options, method):
    """A random network can be told no more; the loss of this one draw falls with every few steps."""
    config = replace(CONFIG, method=method, learning_rate=1e-2, zo_perturbations=4)
    with tiny_setting(kind, count=2, **options) as setting:
        loss, draw, token = loss_of(setting), draw_of(setting), packed(setting.initial)
        is_zo = method == "zo"
        run = ZeroOrderRun(loss, token, config, True) if is_zo else GradientRun(loss, token, config)
        losses = [run.step(draw._replace(probe_seed=step)) for step in range(31)]
    assert losses[30] < losses[15] < losses[0] and losses[30] < 0.99 * losses[0]


@every_kind
def test_the_loss_is_the_same_in_a_batch_and_one_by_one(kind, options):
    with tiny_setting(kind, count=2, **options) as setting:
        loss, token = loss_of(setting), packed(setting.initial)
        tokens = candidates(token, perturbations(4, len(token), 1), 0.1, "forward")
        together, alone = (loss.values(draw_of(setting), tokens, is_batched) for is_batched in (True, False))
    assert len(together) == 5 and together == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 5


@pytest.mark.parametrize("difference, count", [("forward", 3), ("central", 4)])
@pytest.mark.parametrize("mode", ["batch", "one_by_one"])
def test_a_step_runs_the_network_as_often_as_is_said(mode, difference, count):
    """On one photo, noise and timestep. Central differences need no base."""
    setting, seen = quadratic_setting(), []
    predict = setting.network.predict

    def recorded(x_t, t, condition):
        seen.append((x_t.clone(), t.clone()))
        return predict(x_t, t, condition)

    setting.network = setting.network._replace(predict=recorded)
    config = replace(CONFIG, difference=difference)
    ZeroOrderRun(loss_of(setting), packed(setting.initial), config, mode == "batch").step(draw_of(setting))
    assert [len(x_t) for x_t, _ in seen] == ([count] if mode == "batch" else [1] * count)
    x_t, t = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert torch.equal(x_t, x_t[:1].expand_as(x_t)) and t.tolist() == [600] * count


@both
def test_adam_s_steps_are_the_closed_form(difference):
    """m, v, their corrections, epsilon 1e-3 outside the root; the gradient shortened as in the authors' code."""
    setting, config = quadratic_setting(), replace(CONFIG, difference=difference, zo_perturbations=3)
    loss, token = loss_of(setting), packed(setting.initial).double()
    run = ZeroOrderRun(loss, token.float(), config, is_batched=True)
    m = v = torch.zeros_like(token)
    for step in range(1, 6):
        draw = draw_of(setting)._replace(probe_seed=step)
        z = perturbations(3, len(token), step)
        tried = candidates(run.token.detach().clone(), z, config.zo_epsilon, difference)
        along = slopes(loss.values(draw, tried, True), config.zo_epsilon, difference)
        gradient = estimate(along, z).double() / ((len(token) + 3 - 1) / 3) ** 0.5
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = config.learning_rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-3)
        token = run.token.detach().double() - rate
        run.step(draw)
        torch.testing.assert_close(run.token.detach().double(), token, atol=1e-7, rtol=1e-5)


def test_a_gradient_step_is_adamw_s():
    setting = quadratic_setting()
    config = replace(CONFIG, method="gradient", learning_rate=0.1)
    run, goal = GradientRun(loss_of(setting), packed(setting.initial), config), torch.linspace(-1, 1, 12)
    token = torch.zeros(12, requires_grad=True)
    optimizer = torch.optim.AdamW([token], lr=0.1, weight_decay=config.weight_decay)
    for _ in range(3):
        value = run.step(draw_of(setting))
        expected = (token - goal).square().mean()
        assert value == pytest.approx(expected.item(), rel=1e-5)
        (token.grad,) = torch.autograd.grad(expected, token)
        optimizer.step()
        torch.testing.assert_close(run.token.detach(), token.detach(), atol=1e-5, rtol=1e-4)


def steps_of(setting, config, count):
    """Tokens before the first step and after each."""
    run, tokens = ZeroOrderRun(loss_of(setting), packed(setting.initial), config, True), [packed(setting.initial)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        run.step(draw_step(setting.examples, config, generator))
        tokens.append(run.token.detach().clone())
    return run, torch.stack(tokens)


def test_confined_steps_stay_in_the_span_of_past_tokens():
    config = replace(CONFIG, subspace="confined", subspace_outside=0.0, subspace_size=5, subspace_nu=0.2)
    _, tokens = steps_of(quadratic_setting(), config, 9)
    past = tokens[1:6] - tokens[1:6].mean(0)
    deviation = past.square().mean(0).sqrt()
    _, _, span = torch.linalg.svd(past / deviation, full_matrices=False)
    later = tokens[6:] - tokens[5:-1]
    outside = later - later @ span[:4].T @ span[:4]
    assert outside.norm() < 1e-4 * later.norm() and later.norm() > 0
    assert torch.linalg.matrix_rank(later, rtol=1e-3) < 4  # some of the span is given up as well


def test_published_projects_the_gradient_and_not_adam_s_step():
    """The first step with a subspace: its gradient has no low-variance part, the token's change has."""
    config = replace(CONFIG, subspace="published", subspace_size=5, subspace_nu=0.2)
    setting = quadratic_setting()
    run, _ = steps_of(setting, config, 5)
    draw, before = draw_of(setting), run.token.detach().clone()
    z = perturbations(2, len(before), draw.probe_seed)
    losses = run.loss.values(draw, candidates(before, z, config.zo_epsilon, "forward"), True)
    plain = estimate(slopes(losses, config.zo_epsilon, "forward"), z)
    kept = run.subspace.dimensions(len(before))
    run.step(draw)
    torch.testing.assert_close(run.token.grad, run.subspace.confine(plain) / excess_length(kept, 2))
    assert kept < len(before)
    change = run.token.detach() - before
    assert (change - run.subspace.confine(change)).norm() > 1e-3 * change.norm()


def test_a_loss_that_is_not_finite_leaves_the_token_sound():
    """Also where the subspace is due, which no such token can span."""
    setting = quadratic_setting()
    run, tokens = steps_of(setting, replace(CONFIG, subspace="published", subspace_size=5), 4)
    setting.examples[0].latent[:] = torch.inf
    assert not math.isfinite(run.step(draw_of(setting)))
    assert torch.equal(run.token.detach(), tokens[-1])


def test_the_variants_part_only_when_the_buffer_is_full():
    config = replace(CONFIG, subspace_size=5)
    runs = [steps_of(quadratic_setting(), replace(config, subspace=name), 8)[1] for name in TOKEN_CHOICES["subspace"]]
    for other in runs[1:]:
        assert torch.equal(runs[0][:6], other[:6]) and not torch.equal(runs[0][7], other[7])


def test_a_batch_is_chosen_by_the_memory_it_needs():
    """auto: candidates times what a forward pass takes beyond the weights; the other settings have no choice."""
    meter = PhaseMeter(CPU)
    with tiny_setting("sd1", side=32) as setting, torch.inference_mode():
        loss = loss_of(setting, meter)
        with loss.phase("inference"):
            loss(draw_of(setting), packed(setting.initial)[None])
        tokens = packed(setting.initial).expand(3, -1)
        with loss.phase("batch"):
            loss.values(draw_of(setting), tokens, is_batched=True)
        weights = sum(parameter.numel() * 4 for parameter in loss._resident())
        needed = meter.peak_bytes("batch") - weights
        assert loss.has_room_for(CONFIG, int(1.5 * needed)) and not loss.has_room_for(CONFIG, needed)
        assert not loss.has_room_for(replace(CONFIG, zo_perturbations=8), int(1.5 * needed))
        assert loss.has_room_for(replace(CONFIG, candidates="batch"), 0)
        assert not loss.has_room_for(replace(CONFIG, candidates="one_by_one"), 2**40)
