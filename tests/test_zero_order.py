"""Oracles: autograd and closed forms. Laws: what is perturbed comes back."""

import pytest
import torch
from pack.trainers.zero_order import add_perturbation, central_difference, perturbed, zero_order_step


@pytest.fixture
def theta():
    return torch.randn(50, generator=torch.Generator().manual_seed(0))


def perturbation(theta: torch.Tensor, seed: int) -> torch.Tensor:
    z = torch.zeros_like(theta)
    add_perturbation([z], seed, 1.0)
    return z


def test_the_slope_of_a_quadratic_is_exact(theta):
    """A central difference has no error on a quadratic, so autograd is an exact oracle."""
    theta = theta.double().requires_grad_()
    gradient = torch.autograd.grad(theta.square().sum(), theta)[0]

    slope, mean = central_difference(lambda: theta.square().sum().item(), [theta], seed=7, epsilon=1e-2)

    z = perturbation(theta, 7)
    assert slope == pytest.approx((gradient @ z).item(), rel=1e-9)
    assert mean == pytest.approx((theta.square().sum() + 1e-4 * z.square().sum()).item(), rel=1e-9)


def test_estimates_average_to_the_gradient(theta):
    """E[(g . z) z] = g for z ~ N(0, I); after N draws the relative error is about sqrt(d / N)."""
    gradient = 2 * theta
    draws = 20_000
    start = theta.clone()

    zero_order_step(lambda: theta.square().sum().item(), [theta], range(draws), epsilon=1e-2, learning_rate=1.0)

    error = (start - theta - gradient).norm() / gradient.norm()
    assert error < 2 * (len(theta) / draws) ** 0.5


def test_a_step_is_equation_2(theta):
    before = theta.clone().double()
    seeds = [3, 4, 5]

    def loss(x=theta):
        return x.double().pow(3).sum().item()

    zero_order_step(loss, [theta], seeds, epsilon=1e-2, learning_rate=1e-3)

    expected = before.clone()
    for seed in seeds:
        z = perturbation(before, seed)
        slope = (loss(before + 1e-2 * z) - loss(before - 1e-2 * z)) / 2e-2
        expected -= 1e-3 / len(seeds) * slope * z
    torch.testing.assert_close(theta.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype, drift", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_parameters_are_restored(theta, dtype, drift):
    theta = theta.to(dtype)
    before = theta.clone()
    central_difference(lambda: 0.0, [theta], seed=7, epsilon=1e-3)
    torch.testing.assert_close(theta, before, atol=drift, rtol=0)


def test_200_cycles_drift_less_than_1e_minus_6(theta):
    theta = theta * 0.02
    before = theta.clone()
    for seed in range(200):
        central_difference(lambda: 0.0, [theta], seed, epsilon=1e-3)
    assert (theta - before).norm() / before.norm() < 1e-6


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=lambda e: e.__name__)
@pytest.mark.parametrize("failing_pass", range(4))
def test_parameters_are_restored_when_a_pass_fails(theta, error, failing_pass):
    before = theta.clone()
    passes = iter(range(4))

    def loss():
        if next(passes) == failing_pass:
            raise error
        return 1.0

    with pytest.raises(error):
        zero_order_step(loss, [theta], [1, 2], epsilon=1e-3, learning_rate=1.0)

    torch.testing.assert_close(theta, before, atol=1e-6, rtol=0)


def test_a_perturbation_depends_on_its_seed_alone(theta):
    torch.manual_seed(1)
    first = perturbation(theta, 7)
    state = torch.get_rng_state()
    assert torch.equal(first, perturbation(theta, 7))
    assert not torch.equal(first, perturbation(theta, 8))
    assert torch.equal(state, torch.get_rng_state())


def test_a_nested_perturbation_adds_up(theta):
    before = theta.clone()
    with perturbed([theta], 1, 0.5), perturbed([theta], 2, 0.25):
        expected = before + 0.5 * perturbation(before, 1) + 0.25 * perturbation(before, 2)
        torch.testing.assert_close(theta, expected)
