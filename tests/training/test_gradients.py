"""Gradients of losses without a step: as PyTorch has them, and without a trace in the training that follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.data import Digits
from fedmpi.models import MLP, CifarCNN, LeNet, Model
from fedmpi.tasks import Classification
from fedmpi.training.flat import FlatModel
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import LocalWork, Trainer
from tests.support.experiments import CPU, SEED, block, network, normalised, read

SHAPE, SIZES = (1, 8, 8), (50, 1, 33, 0)
DIGITS = read(Digits())
SHARDS = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])


def trainer(model: Model, settings: LocalTraining, at_once: int = 1) -> Trainer:
    """Of four clients with digits, one of them without any."""
    samples = Samples(DIGITS.train_x, DIGITS.train_y, Digits.mean, Digits.std, CPU)
    flat = FlatModel(network(model, SHAPE, 10), CPU)
    task = LocalWork(Classification(), flat, samples, SHARDS, lambda client: None, settings, SEED)
    return SideBySideTrainer(task, at_once) if at_once > 1 else PlainTrainer(task)


def gradients(one: Trainer, weights: Tensor) -> Tensor:
    return one.gradients(block(0, 1, 2, 3), weights.expand(4, -1), FedAvg(), round=1)


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize(("model", "batch_size"), [(LeNet(norm="group"), 7), (MLP(hidden=(33,)), 7), (LeNet(), 50)])
def test_they_are_pytorchs(model: Model, batch_size: int, at_once: int) -> None:
    """Oracle: autograd over each client's samples at once, in float64; zeros for a client without samples.

    Batch normalisation has the batches of training, here one, and one sample alone the running statistics.
    """
    one = trainer(model, LocalTraining(batch_size=batch_size, weight_decay=0.1, clip_norm=0.1), at_once)
    start = FlatModel(network(model, SHAPE, 10), CPU).weights
    found = gradients(one, start)
    for client, shard in enumerate(SHARDS):
        plain = network(model, SHAPE, 10).double().train(len(shard) > 1)
        x, y = normalised(DIGITS.train_x[shard], Digits()).double(), torch.from_numpy(DIGITS.train_y[shard])
        (cross_entropy(plain(x), y) if len(shard) else 0 * plain(torch.zeros(2, *SHAPE).double()).sum()).backward()
        expected = dict(plain.named_parameters())
        for entry in one.model.layout.entries:
            if entry.is_parameter:
                torch.testing.assert_close(
                    entry.view(found[client]).double(), expected[entry.name].grad, rtol=1e-4, atol=1e-6
                )
    assert found[0].norm() > 0.1


@pytest.mark.parametrize("at_once", [1, 2])
def test_training_is_not_disturbed(at_once: int) -> None:
    """Oracle: the same training without gradients before it, bit for bit: dropout, augmentation, statistics."""
    settings = LocalTraining(epochs=1, lr=0.01, augmentation="flip")
    for model in (CifarCNN(dropout=0.5), LeNet()):
        results = []
        for measures in (False, True):
            one = trainer(model, settings, at_once)
            start = FlatModel(network(model, SHAPE, 10), CPU).weights
            if measures:
                assert gradients(one, start)[0].norm() > 0.1
            results.append(one.train(block(2), start, FedProx(0.1), 1, 1).weights.clone())
        assert torch.equal(*results)
        assert not torch.equal(results[0], start)
