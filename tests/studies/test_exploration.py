"""The exploration of long-tailed data: subsets, shares and a generator that a model can be pleased with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.errors import BadInput
from fedmpi.models import LogisticRegression
from studies import exploration
from studies.exploration import LongTail, network, pseudo_accuracy, show_gaps, show_quality, tail, train_generator
from tests.support.experiments import run, state

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 400))


def test_a_subset() -> None:
    """Oracle: the Dirichlet distribution's variance of a share, (1/C)(1 - 1/C)/(C beta + 1), over many subsets."""
    for beta in (0.1, 10.0):
        shares = []
        for seed in range(400):
            (chosen,) = LongTail(beta, 400).split(LABELS, 1, np.random.default_rng(seed))
            assert len(np.unique(chosen)) == 400
            shares.append(np.bincount(LABELS[chosen], minlength=10) / 400)
        drawn = 0.09 / (10 * beta + 1)
        expected = drawn + (0.09 - drawn) / 400  # and that of 400 draws
        assert np.var(shares) == pytest.approx(expected, rel=0.15)


def test_a_subset_that_cannot_be() -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=r"samples = 401: must be at most 400, a class's samples"):
        LongTail(1.0, 401).split(LABELS, 1, np.random.default_rng(0))
    with pytest.raises(BadInput, match=r"--clients = 2: must be 1 with LongTail"):
        LongTail(1.0, 400).split(LABELS, 2, np.random.default_rng(0))


def test_the_gap(tmp_path: Path) -> None:
    """Oracle: by hand, from the accuracy of each class; and the network that the file holds is the one trained."""
    made = run(tmp_path / "run.h5", partition=LongTail(0.5, 100), model=LogisticRegression(), clients=1)
    counts, by_class = made.partition["label_counts"][0], made.evaluation["per_class_accuracy"][-1]
    largest, balanced, weighted = tail(made)
    assert largest == max(counts) / 100
    assert balanced == pytest.approx(sum(by_class) / 10)
    assert weighted == pytest.approx(sum(count * share for count, share in zip(counts, by_class, strict=True)) / 100)
    assert weighted > balanced + 0.1
    rows = show_gaps({0.5: [(largest, balanced, weighted)] * 2})
    assert rows[1][-1] == f"{100 * (weighted - balanced):.2f} ± 0.00"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exploration, "SHAPE", (1, 8, 8))
        loaded = network(made, "LogisticRegression")
    for name, tensor in state(loaded).items():
        np.testing.assert_array_equal(tensor, made.state_dict()[name])
    rows, lines = show_quality(made, np.zeros(10), counts / 100)
    assert rows[1][:2] == [str(counts.argmax()), str(counts.max())]
    assert "what the judge says: 1.00," in lines[1]


def test_a_generator_pleases_a_model() -> None:
    """Oracle: the model takes all that is made for what it should be; one with its labels turned round, nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).requires_grad_(False)

    class Turned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = model(x)
            return made.roll(1, 1)

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of_noise = nn.Linear(5, 3 * 32 * 32)
            self.of_label = nn.Embedding(10, 3 * 32 * 32)

        def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = 0.1 * self.of_noise(noise) + self.of_label(labels)
            return made.view(-1, 3, 32, 32)

    generator = Linear()
    before = pseudo_accuracy(generator, 5, model)
    train_generator(generator, 5, model, 60, 0.05)
    found = pseudo_accuracy(generator, 5, model, Turned())
    assert before.mean() < 0.5
    assert found[0].min() > 0.95
    assert found[1].max() == 0
