"""The pieces of distillation at the server: labels, shares, losses, and networks that are not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from fedmpi.algorithms.toolbox.distillation import class_shares, divergence, diversity_loss, stratified_labels


def test_shares_of_classes() -> None:
    """Oracle: by hand; the parts of a class that anybody has sum to one, of one that nobody has to zero."""
    counts = np.array([[3, 0, 0], [1, 4, 0]])
    shares = class_shares(counts)
    np.testing.assert_array_equal(shares, [[0.75, 0, 0], [0.25, 1, 0]])


def test_labels_in_the_clients_proportions() -> None:
    """Oracle: exactly 25 and 75 of 100 for counts of 1 and 3, in random order; none of a class that nobody has."""
    rng = np.random.default_rng(0)
    labels = stratified_labels(np.array([1, 0, 3]), 100, rng)
    assert np.bincount(labels).tolist() == [25, 0, 75]
    assert not (np.diff(labels) >= 0).all()
    for number in (1, 7, 500):
        counts = rng.integers(0, 50, 10)
        drawn = np.bincount(stratified_labels(counts, number, rng), minlength=10)
        assert drawn.sum() == number
        assert (np.abs(drawn - number * counts / counts.sum()) <= 1).all()
        assert not drawn[counts == 0].any()


def test_diversity() -> None:
    """Oracle: 1 for equal samples; the formula in NumPy, in (0, 1), for others."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((50, 100))
    assert diversity_loss(torch.ones(50, 3, 4, 4), torch.from_numpy(noise)).item() == 1
    x = rng.standard_normal((50, 3, 4, 4))
    made = np.abs(x[:, None] - x[None]).mean((2, 3, 4))
    drawn = np.square(noise[:, None] - noise[None]).mean(2)
    found = diversity_loss(torch.from_numpy(x), torch.from_numpy(noise)).item()
    assert found == pytest.approx(math.exp(-(made * drawn).mean()), rel=1e-12)
    assert 0 < found < 1


def test_the_slope_of_the_divergences() -> None:
    """Oracle: q - sum_k alpha_k p_k, of sum_k alpha_k KL(p_k || q) in the logits of q, to 1e-12."""
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    teachers = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(2)
    parts = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parts /= parts.sum(0)
    logits.requires_grad_()
    log_q = log_softmax(logits, 1)
    loss = sum((a * divergence(p, log_q)).sum() for a, p in zip(parts, teachers, strict=True))
    (slope,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(slope, log_q.exp() - (parts[:, :, None] * teachers.exp()).sum(0), atol=1e-12, rtol=0)
    assert (divergence(teachers[0], teachers[0]) == 0).all()
    assert (divergence(teachers[0], teachers[1]) > 0).all()
