"""The autoencoder: its distributions beside SciPy's integrals, and groups that are there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import beta

from fedmpi.algorithms.toolbox.allocation import (
    Autoencoder,
    Posterior,
    bernoulli_divergence,
    fit,
    kumaraswamy_divergence,
    log_kumaraswamy,
    log_kumaraswamy_mean,
    log_probabilities,
)
from fedmpi.algorithms.toolbox.fusion import between_components, fuse, responsibilities
from fedmpi.federation.evaluation import adjusted_rand_index
from fedmpi.training.flat import FlatModel
from studies.planted_groups import log_q_of, planted
from tests.support.experiments import CPU


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_kumaraswamy_samples() -> None:
    """Oracles: a uniform distribution for (1, 1), and the mean 2/3 of (2, 1)."""
    uniform = torch.from_numpy(np.random.default_rng(0).random(100_000))
    plain = log_kumaraswamy(numbers(1), numbers(1), uniform).exp()
    assert plain.mean().item() == pytest.approx(0.5, abs=0.005)
    np.testing.assert_allclose(np.quantile(plain, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)
    assert log_kumaraswamy(numbers(2), numbers(1), uniform).exp().mean().item() == pytest.approx(2 / 3, abs=0.005)


def test_kumaraswamy_mean() -> None:
    assert log_kumaraswamy_mean(numbers(2), numbers(3)).exp().item() == pytest.approx(0.4571, abs=5e-5)


@pytest.mark.parametrize(("a", "b", "alpha"), [(1.0, 1.0, 1.0), (2.0, 3.0, 10.0), (0.7, 1.9, 10.0), (5.0, 0.4, 3.0)])
def test_divergence_of_kumaraswamy_and_beta(a: float, b: float, alpha: float) -> None:
    """Oracle: the integral; 0 and 6.156 for the first two."""

    def integrand(x: float) -> float:
        density = a * b * x ** (a - 1) * (1 - x**a) ** (b - 1)
        return density * (math.log(density) - float(beta.logpdf(x, alpha, 1)))

    found = kumaraswamy_divergence(numbers(a), numbers(b), alpha).item()
    assert found == pytest.approx(quad(integrand, 0, 1, limit=200)[0], abs=1e-4)
    if (a, b) in ((1.0, 1.0), (2.0, 3.0)):
        assert found == pytest.approx({1.0: 0.0, 2.0: 6.156}[a], abs=5e-4)


def test_sticks() -> None:
    """Sticks fall from component to component, inside (0, 1); q without offset is p, and of no divergence from it."""
    generator = torch.Generator().manual_seed(0)
    log_lambda = torch.rand(5, 9, generator=generator).log()
    log_lambda[0] = 0  # what float32 cannot tell from 1
    log_p, logits = Posterior(log_lambda, log_lambda, torch.zeros(5, 9)).logits(log_lambda)
    assert (log_p < 0).all()
    assert (log_p.diff(dim=1) <= 0).all()
    torch.testing.assert_close(logits.sigmoid(), log_p.exp())
    torch.testing.assert_close(bernoulli_divergence(logits, log_p), torch.zeros(5, 9), rtol=0, atol=1e-6)
    q, p = numbers(0.3), numbers(0.8)
    expected = 0.3 * math.log(0.3 / 0.8) + 0.7 * math.log(0.7 / 0.2)
    assert bernoulli_divergence(q.logit(), p.log()).item() == pytest.approx(expected)


def test_gradients_reach_what_is_drawn() -> None:
    """Through both draws, to all three heads."""
    torch.manual_seed(0)
    module = Autoencoder(6, 4, 3)
    module.losses(torch.randn(5, 6), torch.rand(2, 5, 3) * 0.9 + 0.05, 1.0, 0.1).sum().backward()
    gradient = module.heads.weight.grad
    assert gradient is not None
    assert (gradient.view(3, 3, -1).norm(dim=2) > 0).all()
    assert module.embedding.grad is not None


def test_a_vector_is_judged_by_itself() -> None:
    """Oracle: each one alone. Batch normalisation of twenty clients would make them depend on one another."""
    torch.manual_seed(0)
    model = FlatModel(Autoencoder(6, 4, 3), CPU)
    x = torch.randn(5, 6)
    found = log_probabilities(model, x)
    for row, one in zip(found, x, strict=True):
        np.testing.assert_allclose(log_probabilities(model, one[None])[0], row, rtol=1e-5)


def test_a_fit_goes_on_where_the_last_one_ended() -> None:
    """Oracle: the bits of as many steps at once, after the first fit."""
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    ends = []
    for cuts in ((6,), (2, 4)):
        torch.manual_seed(0)
        model, rng = FlatModel(Autoencoder(6, 4, 3), CPU), np.random.default_rng(0)
        moments = fit(model, torch.zeros(2, model.layout.parameters), 0, x, 5, rng)
        done = 5
        for steps in cuts:
            moments = fit(model, moments, done, x, steps, rng)
            done += steps
        ends.append(model.weights.clone())
    assert torch.equal(*ends)


def test_planted_groups() -> None:
    """Oracle: the groups, of 25, 15 and 10 equal clients. Most probable components tell them apart in three of four
    seeds, and weights then differ between groups, and not within."""
    separated = 0
    for seed in range(4):
        x, group = planted((25, 15, 10), 0.3, seed)
        log_q, mass = log_q_of(x, Autoencoder, seed), np.full(50, 980)
        if adjusted_rand_index(log_q.argmax(1), group) < 1:
            continue
        separated += 1
        for how in ("hard", "soft"):
            r, _ = responsibilities(log_q, mass, how)
            omega = fuse(r, mass, 0.5, 4.0).weights
            assert np.abs(omega - 1 / 50).sum() > 0.02
            assert between_components(omega, mass, group) > 0.95
    assert separated >= 3
