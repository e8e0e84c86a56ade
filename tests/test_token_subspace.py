"""The projections against plain algebra on torch's SVD, and the laws of projections."""

import pytest
import torch
from pack.trainers.token_subspace import Subspace, principal_components

SIZE, WIDTH, NU = 16, 40, 1e-2


def wandering(steps: int = SIZE, width: int = WIDTH, rank: int = 4) -> torch.Tensor:
    """Tokens (steps, width) that move in a few directions and hardly in the others."""
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(steps, rank, generator=generator) @ torch.randn(rank, width, generator=generator)
    return (strong + 1e-2 * torch.randn(steps, width, generator=generator)).cumsum(0)


def filled(outside: float = 1.0, tokens: torch.Tensor | None = None) -> Subspace:
    subspace = Subspace(SIZE, NU, outside)
    for token in wandering() if tokens is None else tokens:
        subspace.add(token)
    return subspace


def published(tokens: torch.Tensor) -> torch.Tensor:
    """Rows that the authors' code projects out, components i* + 1 to tau - 1 of the standardised tokens, but the last.

    That one has no variance, and no direction of its own.
    """
    standardised = (tokens.double() - tokens.double().mean(0)) / tokens.double().std(0, unbiased=False)
    _, singular, components = torch.linalg.svd(standardised, full_matrices=False)
    ratio = (singular**2 / (singular**2).sum()).cumsum(0)
    first = next(i for i, value in enumerate(ratio) if value > 1 - NU)
    return components[first + 1 : -1]


@pytest.fixture
def directions():
    return torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1))


def test_the_published_projection_is_the_plain_one(directions):
    low = published(wandering())
    assert 0 < len(low) < SIZE - 1
    expected = directions.double() - directions.double() @ low.T @ low
    torch.testing.assert_close(filled().confine(directions).double(), expected, atol=1e-5, rtol=0)
    assert filled().dimensions(WIDTH) == WIDTH - len(low)


def test_without_the_outside_only_high_variance_components_are_left(directions):
    components, kept = principal_components(wandering(), NU)
    expected = directions @ components[:kept].T @ components[:kept]
    torch.testing.assert_close(filled(outside=0.0).confine(directions), expected, atol=1e-5, rtol=0)
    assert filled(outside=0.0).dimensions(WIDTH) == kept


@pytest.mark.parametrize("outside", [0.0, 1.0])
def test_projecting_twice_is_projecting_once(directions, outside):
    subspace = filled(outside)
    once = subspace.confine(directions)
    torch.testing.assert_close(subspace.confine(once), once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("outside", [0.0, 0.5, 1.0])
def test_dimensions_are_the_mean_squared_length_of_what_is_left(outside):
    subspace = filled(outside)
    directions = torch.randn(20_000, WIDTH, generator=torch.Generator().manual_seed(2))
    measured = subspace.confine(directions).square().sum(1).mean().item()
    assert measured == pytest.approx(subspace.dimensions(WIDTH), rel=0.02)


def test_nothing_is_projected_before_there_are_enough_tokens(directions):
    subspace = filled(tokens=wandering()[:-1])
    assert torch.equal(subspace.confine(directions), directions) and subspace.dimensions(WIDTH) == WIDTH


def test_the_subspace_is_that_of_the_last_tokens_and_found_anew_every_tau(directions):
    tokens = wandering(3 * SIZE + 5)
    expected = filled(tokens=tokens[2 * SIZE : 3 * SIZE])
    assert torch.equal(filled(tokens=tokens).confine(directions), expected.confine(directions))


def test_a_token_that_stands_still_projects_nothing_out(directions):
    subspace = filled(tokens=torch.ones(SIZE, WIDTH))
    torch.testing.assert_close(subspace.confine(directions), directions, atol=1e-5, rtol=0)


def test_more_tokens_than_numbers():
    """Then nothing lies outside their span."""
    subspace = filled(outside=0.0, tokens=wandering(width=6, rank=2))
    directions = torch.eye(6)
    kept = subspace.confine(directions)
    assert torch.linalg.matrix_rank(kept, atol=1e-4) == subspace.dimensions(6) < 6


def test_a_stored_token_is_a_copy():
    token = torch.zeros(WIDTH)
    subspace = Subspace(2, NU, 1.0)
    subspace.add(token)
    token += 1
    subspace.add(token)
    assert subspace._tokens[0].eq(0).all()
