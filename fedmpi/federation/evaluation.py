"""Measuring models on the test set: per sample, and from that per class, per client and overall.

The test set is cut into fixed blocks that are dealt out to the ranks, and what travels is the loss of every single
sample and the class that the model takes it for. So nothing is added up before it is in the order of the test set,
and the result has the same bits for any number of ranks.
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
    """What the network itself says."""
    return net(batch.x)


def predict_with(predict: Prediction | None, vectors: Mapping[str, torch.Tensor]) -> Predict:
    """How a model predicts to which these vectors belong; given None, the network alone."""
    return by_the_network if predict is None else lambda net, batch: predict(net, batch, vectors)


class Evaluation:
    """How one model, or each client's own, does on the test set.

    Attributes:
        losses: [n] float32, cross entropy of each test sample; NaN where none was measured.
        predicted: [n] float32, the class that the model takes it for; NaN likewise.
        labels: [n] int64.
        owners: [n] int64, the client to whose shard a sample belongs.
        classes, clients: how many there are.
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
        """[n], 1 where the sample was classified correctly; NaN where it was not measured."""
        return _correct(self.predicted, self.labels)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """[classes, classes], how many of the measured samples of each class the model takes for each class."""
        known = ~np.isnan(self.predicted)
        pairs = self.labels[known] * self.classes + self.predicted[known].astype(np.int64)
        return np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    @property
    def accuracy(self) -> float:
        """Share of the measured samples that are classified correctly."""
        return _share(self.correct)

    @property
    def loss(self) -> float:
        """Mean cross entropy over the measured samples."""
        measured = self.losses[~np.isnan(self.predicted)]
        return float(measured.mean(dtype=np.float64)) if len(measured) else math.nan

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """[classes], NaN for a class without test samples."""
        return _shares(self.correct, self.labels, self.classes)

    @property
    def client_accuracy(self) -> NDArray[np.float64]:
        """[clients], each on its own shard; NaN for an empty shard."""
        return _shares(self.correct, self.owners, self.clients)

    @classmethod
    def matched(cls, models: Sequence[Evaluation], choice: NDArray[np.int64]) -> Evaluation:
        """Each sample as measured with the model that its owner chose; not measured where that is -1."""
        one = models[0]
        number = choice[one.owners]
        each = np.array([[model.losses, model.predicted] for model in models])
        measured = each[number, :, np.arange(len(number))].T
        measured[:, number < 0] = np.nan
        return cls(measured, one.labels, one.owners, one.classes, one.clients)


class Evaluator:
    """Runs models forward on one rank.

    Args:
        model: a network of its own, so that a measurement does not disturb training.
        train, test: the data.
        train_shards, test_shards: which training and test samples each client holds.
        owners: [n] int64, the client to whose shard each test sample belongs.
        classes: how many there are.
        pixels: client -> the order in which it sees the pixels of its images, or None.
        clients: how many of those who own test samples take part; those of held-out clients do not count.
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
        """[2, n] zeros, to be filled by `measure` and then added up over the ranks."""
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
            predict: how logits are made with it.
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
        """Fill in loss and predicted class of a client's own test samples; arguments as of `measure`."""
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
        """What was measured, added up over the ranks."""
        some = self._counted
        return Evaluation(measured[:, some], self._labels[some], self._owners[some], self._classes, self._clients)

    @torch.inference_mode()
    def training_losses(self, client: int, models: torch.Tensor) -> list[float]:
        """Mean cross entropy of each of `models` [M, P] on all training samples of a client, unaugmented.

        One model after another on each batch, which is gathered once: on a CPU `torch.vmap` over the models takes 1.1
        (one layer) to 4 times (LeNet) as long.
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

        Of every block b of them for which b mod `parts` is `part`.
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
    """For a network that draws numbers in evaluation mode as well: those of these samples, on whatever rank."""
    seed_globals(key(0, "evaluation", client=int(index[0])))


def weighted_accuracy(accuracy: NDArray[np.float64], samples: NDArray[np.int64]) -> float:
    """sum_k n_k a_k / sum_k n_k over the clients k whose accuracy [clients] is known."""
    known = ~np.isnan(accuracy) & (samples > 0)
    return float(accuracy[known] @ samples[known] / samples[known].sum()) if known.any() else np.nan


def adjusted_rand_index(some: ArrayLike, others: ArrayLike) -> float:
    """How well two clusterings [k] of the same items agree: 1 if they are the same, about 0 by chance (scikit-learn).

    Hubert, Arabie: Comparing Partitions. Journal of Classification, 1985. NaN without any item.
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
