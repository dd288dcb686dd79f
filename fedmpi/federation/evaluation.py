"""Evaluation of models on the test set: per sample, and from that per class, per client and overall.

The test set is cut into fixed blocks, which are distributed over the ranks. Ranks exchange the loss and the predicted
class of every sample, and add up in the order of the test set. So the result is bit-identical on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fedmpi.randomness import key, seed_globals
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.losses import cross_entropy
from fedmpi.training.samples import Batch, Samples
from fedmpi.training.trainer import PixelOrder

BLOCK = 250

#: (network, inputs) -> logits [B, classes]
Predict = Callable[[Net, Batch], torch.Tensor]
#: (network, inputs, vectors by name) -> logits [B, classes], as `Algorithm.predict`
Prediction = Callable[[Net, Batch, Mapping[str, torch.Tensor]], torch.Tensor]


def by_the_network(net: Net, batch: Batch) -> torch.Tensor:
    """The network's own logits."""
    return net(batch.x)


def predict_with(predict: Prediction | None, vectors: Mapping[str, torch.Tensor]) -> Predict:
    """The prediction function of a model with these vectors; for None, the network's own logits."""
    return by_the_network if predict is None else lambda net, batch: predict(net, batch, vectors)


class Evaluation:
    """Results of one model, or of each client's model, on the test set.

    Attributes:
        losses: [n] float32, cross entropy of each test sample; NaN if it was not evaluated.
        predicted: [n] float32, the predicted class; NaN if it was not evaluated.
        labels: [n] int64.
        owners: [n] int64, the client that a sample belongs to.
        classes, clients: numbers of classes and clients.
    """

    def __init__(
        self,
        measured: NDArray[np.float32],
        labels: NDArray[np.int64],
        owners: NDArray[np.int64],
        classes: int,
        clients: int,
    ) -> None:
        self.losses, self.predicted = measured
        self.labels = labels
        self.owners = owners
        self.classes = classes
        self.clients = clients

    @property
    def correct(self) -> NDArray[np.float32]:
        """[n], 1 if the sample was classified correctly, else 0; NaN if it was not evaluated."""
        return _correct(self.predicted, self.labels)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """[classes, classes], number of evaluated samples by true class and predicted class."""
        known = ~np.isnan(self.predicted)
        pairs = self.labels[known] * self.classes + self.predicted[known].astype(np.int64)
        return np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    @property
    def accuracy(self) -> float:
        """Share of the evaluated samples that are classified correctly."""
        return _share(self.correct)

    @property
    def loss(self) -> float:
        """Mean cross entropy over the evaluated samples."""
        measured = self.losses[~np.isnan(self.predicted)]
        return float(measured.mean(dtype=np.float64)) if len(measured) else math.nan

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """[classes], NaN for a class without test samples."""
        return _shares(self.correct, self.labels, self.classes)

    @property
    def client_accuracy(self) -> NDArray[np.float64]:
        """[clients], each on its own test samples; NaN for a client without test samples."""
        return _shares(self.correct, self.owners, self.clients)

    @classmethod
    def matched(cls, models: Sequence[Evaluation], choice: NDArray[np.int64]) -> Evaluation:
        """For each sample the result of its owner's model; not evaluated if the owner has none (-1)."""
        one = models[0]
        number = choice[one.owners]
        each = np.array([[model.losses, model.predicted] for model in models])
        measured = each[number, :, np.arange(len(number))].T
        measured[:, number < 0] = np.nan
        return cls(measured, one.labels, one.owners, one.classes, one.clients)


class Evaluator:
    """Runs models forward on one rank.

    Args:
        model: a separate network, so that evaluations do not affect training.
        train, test: the data.
        train_shards, test_shards: the training and test samples of each client.
        owners: [n] int64, the client that each test sample belongs to.
        classes: number of classes.
        pixels: client -> the order in which it sees the pixels of its images, or None.
        clients: number of clients without held-out clients, whose test samples do not count.
    """

    def __init__(
        self,
        model: FlatModel,
        train: Samples,
        test: Samples,
        train_shards: list[NDArray[np.int64]],
        test_shards: list[NDArray[np.int64]],
        owners: NDArray[np.int64],
        classes: int,
        pixels: PixelOrder,
        clients: int,
    ) -> None:
        self._model = model
        self._model.module.eval()
        self._train = train
        self._test = test
        self._shards = train_shards
        self._test_shards = test_shards
        self._owners = owners
        self._classes = classes
        self._labels = test.y.cpu().numpy()
        self._pixels = pixels
        self._clients = clients
        self._counted = np.flatnonzero(owners < clients)

    def nothing(self) -> NDArray[np.float32]:
        """[2, n] zeros, which `measure` fills, and which are then added up over the ranks."""
        return np.zeros((2, len(self._labels)), dtype=np.float32)

    @torch.inference_mode()
    def measure(
        self,
        weights: torch.Tensor,
        part: int,
        parts: int,
        into: NDArray[np.float32],
        predict: Predict = by_the_network,
    ) -> None:
        """Fill in loss and predicted class of every block b of test samples for which b mod `parts` is `part`.

        Args:
            weights: [P], of the network.
            predict: computes logits with the network.
        """
        self._model.load(weights)
        for start in range(part * BLOCK, len(self._counted), parts * BLOCK):
            self._measure(self._counted[start : start + BLOCK], into, predict)

    @torch.inference_mode()
    def measure_client(
        self,
        weights: torch.Tensor,
        client: int,
        into: NDArray[np.float32],
        predict: Predict = by_the_network,
    ) -> None:
        """Fill in loss and predicted class of a client's test samples; arguments as for `measure`."""
        self._model.load(weights)
        shard = self._test_shards[client]
        for start in range(0, len(shard), BLOCK):
            self._measure(shard[start : start + BLOCK], into, predict)

    def client_accuracy(self, weights: torch.Tensor, client: int, predict: Predict) -> float:
        """Share of a client's own test samples that are classified correctly; NaN if it has none."""
        measured = self.nothing()
        self.measure_client(weights, client, measured, predict)
        shard = self._test_shards[client]
        return _share(_correct(measured[1, shard], self._labels[shard]))

    def accuracy(self, weights: torch.Tensor) -> float:
        """Share of all test samples that `weights` classifies correctly."""
        measured = self.nothing()
        self.measure(weights, 0, 1, measured)
        return self.evaluation(measured).accuracy

    def _measure(self, index: NDArray[np.int64], into: NDArray[np.float32], predict: Predict) -> None:
        _seed_draws(index)
        batch = self._test.batch(index, self._seen_pixels(self._owners[index]))
        logits = predict(Net(self._model), batch)
        into[0, index] = cross_entropy(logits, batch.y).cpu().numpy()
        into[1, index] = logits.argmax(1).cpu().numpy()

    def evaluation(self, measured: NDArray[np.float32]) -> Evaluation:
        """The evaluation, from the values added up over the ranks."""
        some = self._counted
        return Evaluation(measured[:, some], self._labels[some], self._owners[some], self._classes, self._clients)

    @torch.inference_mode()
    def training_losses(self, client: int, models: torch.Tensor) -> list[float]:
        """Mean cross entropy of each of `models` [M, P] on all training samples of a client, unaugmented.

        Each batch is gathered once and run through one model after another. On a CPU, `torch.vmap` over the models
        takes 1.1 (one layer) to 4 times (LeNet) as long.
        """
        shard = self._shards[client]
        totals = [0.0] * len(models)
        for start in range(0, len(shard), BLOCK):
            batch = self._train.batch(shard[start : start + BLOCK], self._pixels(client))
            for number, weights in enumerate(models):
                _seed_draws(shard[start:])
                self._model.load(weights)
                totals[number] += cross_entropy(self._model.module(batch.x), batch.y).sum().item()
        return [total / len(shard) if len(shard) else math.nan for total in totals]

    @torch.inference_mode()
    def training_hits(
        self, weights: torch.Tensor, shards: Sequence[NDArray[np.int64]], part: int, parts: int
    ) -> NDArray[np.float64]:
        """[clients] how many of the training samples `shards` of each client `weights` classifies correctly.

        Only of blocks b with b mod `parts` = `part`.
        """
        self._model.load(weights)
        hits = np.zeros(len(shards))
        blocks = [
            (client, shard[start : start + BLOCK])
            for client, shard in enumerate(shards)
            for start in range(0, len(shard), BLOCK)
        ]
        for client, index in blocks[part::parts]:
            batch = self._train.batch(index, self._pixels(client))
            _seed_draws(index)
            hits[client] += (self._model.module(batch.x).argmax(1) == batch.y).sum().item()
        return hits

    def _seen_pixels(self, owners: NDArray[np.int64]) -> torch.Tensor | None:
        orders = [self._pixels(client) for client in owners.tolist()]
        return None if orders[0] is None else torch.stack([order for order in orders if order is not None])


def _seed_draws(index: NDArray[np.int64]) -> None:
    """Seed for networks that draw random numbers in evaluation mode: by samples, so the same on any rank."""
    seed_globals(key(0, "evaluation", client=int(index[0])))


def weighted_accuracy(accuracy: NDArray[np.float64], samples: NDArray[np.int64]) -> float:
    """sum_k n_k a_k / sum_k n_k over the clients k whose accuracy [clients] is known."""
    known = ~np.isnan(accuracy) & (samples > 0)
    return float(accuracy[known] @ samples[known] / samples[known].sum()) if known.any() else np.nan


def adjusted_rand_index(some: ArrayLike, others: ArrayLike) -> float:
    """Agreement of two clusterings [k] of the same items: 1 if they are equal, about 0 by chance (scikit-learn).

    Hubert, Arabie: Comparing Partitions. Journal of Classification, 1985. NaN if there are no items.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(some, others)) if np.size(some) else np.nan


def _correct(predicted: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.where(np.isnan(predicted), np.nan, predicted == labels).astype(np.float32)


def _share(correct: NDArray[np.float32]) -> float:
    measured = correct[~np.isnan(correct)]
    return float(measured.sum(dtype=np.float64) / len(measured)) if len(measured) else math.nan


def _shares(correct: NDArray[np.float32], of: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    measured = ~np.isnan(correct)
    samples = np.bincount(of[measured], minlength=count)
    hits = np.bincount(of[measured], weights=correct[measured], minlength=count)
    return np.divide(hits, samples, out=np.full(count, np.nan), where=samples > 0)
