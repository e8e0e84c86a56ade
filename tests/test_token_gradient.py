"""Oracles: autograd and closed forms. Laws: what the estimate does on average, and what depends on what."""

import pytest
import torch
from pack.trainers.token_gradient import DIFFERENCES, candidates, estimate, excess_length, perturbations, slopes

EPSILON = 1e-3
both = pytest.mark.parametrize("difference", DIFFERENCES)


@pytest.fixture
def token():
    return torch.randn(50, generator=torch.Generator().manual_seed(0)).double()


def smooth(token):
    return (token.sin().sum() + 0.1 * token.pow(3).sum()).item()


def estimated(token, count, seed, difference, loss=smooth):
    z = perturbations(count, len(token), seed).double()
    tried = candidates(token, z, EPSILON, difference)
    return estimate(slopes([loss(one) for one in tried], EPSILON, difference), z)


@both
def test_estimates_average_to_the_gradient(token, difference):
    """After N perturbations the relative error is about sqrt(d / N)."""
    leaf = token.clone().requires_grad_()
    (leaf.sin().sum() + 0.1 * leaf.pow(3).sum()).backward()
    mean = torch.stack([estimated(token, 100, seed, difference) for seed in range(100)]).mean(0)
    assert (mean - leaf.grad).norm() < 1.5 * (len(token) / 10_000) ** 0.5 * leaf.grad.norm()


def test_a_central_difference_has_no_error_on_a_quadratic(token):
    z = perturbations(4, len(token), 1).double()
    losses = [one.square().sum().item() for one in candidates(token, z, 0.1, "central")]
    torch.testing.assert_close(torch.tensor(slopes(losses, 0.1, "central")).double(), 2 * z @ token)


def test_a_forward_difference_has_the_error_of_its_second_order(token):
    """On |x|^2 the slope is off by epsilon |z|^2, exactly."""
    z = perturbations(4, len(token), 1).double()
    losses = [one.square().sum().item() for one in candidates(token, z, 0.1, "forward")]
    expected = 2 * z @ token + 0.1 * z.square().sum(1)
    torch.testing.assert_close(torch.tensor(slopes(losses, 0.1, "forward")).double(), expected)


def test_the_estimate_is_the_mean_over_perturbations(token):
    """One of n is the mean of n of one, each with its own row of z."""
    z = perturbations(3, len(token), 5).double()
    along = [0.5, -1.0, 2.0]
    singles = [estimate([slope], row[None]) for slope, row in zip(along, z, strict=True)]
    torch.testing.assert_close(estimate(along, z), torch.stack(singles).mean(0))


@both
def test_a_step_takes_n_plus_1_or_2_n_tokens(token, difference):
    tried = candidates(token, perturbations(3, len(token), 0).double(), EPSILON, difference)
    assert len(tried) == (4 if difference == "forward" else 6)
    if difference == "forward":
        assert torch.equal(tried[0], token)
    else:
        torch.testing.assert_close(tried[:3] + tried[3:], 2 * token.expand(3, -1))


@pytest.mark.parametrize("n", [1, 2, 8])
def test_the_estimate_is_as_much_too_long_as_is_said(n):
    """The root mean square length of estimates of a known gradient, in units of its length."""
    gradient = torch.randn(300, generator=torch.Generator().manual_seed(1000))
    lengths = []
    for seed in range(400):
        z = perturbations(n, 300, seed)
        lengths.append(estimate((z @ gradient).tolist(), z).square().sum())
    measured = (torch.stack(lengths).mean() / gradient.square().sum()).sqrt()
    assert measured.item() == pytest.approx(excess_length(300, n), rel=0.05)


def test_perturbations_depend_on_their_seed_alone():
    state = torch.get_rng_state()
    first = perturbations(2, 5, 7)
    assert torch.equal(first, perturbations(2, 5, 7)) and not torch.equal(first, perturbations(2, 5, 8))
    assert torch.equal(state, torch.get_rng_state())
