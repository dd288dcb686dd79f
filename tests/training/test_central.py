"""Training in one place, beside the same training in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi import randomness
from fedmpi.data import Digits
from fedmpi.models import LeNet
from fedmpi.training.central import CentralTraining
from fedmpi.training.flat import FlatModel
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS
from tests.support.experiments import CPU, SEED, network, plain_batches, state
from tests.training.test_sidebyside import double

__all__ = [
    "double"
]  # a fixture: in double precision Adam takes no step along a gradient that is zero but for rounding

SAMPLES = 65  # with batches of 32 one would be left alone


@pytest.mark.parametrize("freezes", [False, True])
@pytest.mark.usefixtures("double")
def test_beside_pytorch(freezes: bool) -> None:
    """Oracle: torch.optim.Adam over two epochs, its moments kept; the second in evaluation mode, or not."""
    x, y = DIGITS.train_x[:SAMPLES], DIGITS.train_y[:SAMPLES]
    model = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU)
    samples = Samples(x, y, Digits.mean, Digits.std, CPU)
    training = CentralTraining(model, samples, LocalTraining(batch_size=32, lr=1e-3), SEED)
    losses = [training.epoch(1), training.epoch(2, not freezes)]

    plain, every = network(LeNet(), (1, 8, 8), 10), samples.batch(np.arange(SAMPLES))
    optimizer, inputs, labels = torch.optim.Adam(plain.parameters(), 1e-3), every.x, every.y
    for epoch in (1, 2):
        plain.train(not (freezes and epoch == 2))
        total = 0.0
        for chosen in plain_batches(numbers(epoch), 32, True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(plain(inputs[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        assert losses[epoch - 1] == pytest.approx(total / SAMPLES, rel=1e-9)
    for name, tensor in state(model.module).items():
        torch.testing.assert_close(tensor, state(plain)[name], rtol=1e-9, atol=1e-9, msg=name)


def numbers(epoch: int) -> np.ndarray:
    """The order of an epoch: that of a client 0 whose rounds are epochs."""
    return randomness.hashed_bits(randomness.keys(SEED, "order", epoch, [0]), SAMPLES)[0].argsort(kind="stable")
