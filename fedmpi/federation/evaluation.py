"""Evaluation of models on the test set, on the validation set, and on test samples with a trigger, if there are any.

Each set is cut into fixed blocks, which are distributed over the ranks. Ranks exchange what the task measures of
every sample, and metrics are made of it in the order of the set. So the results are bit-identical on any number of
ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fedmpi.data.client_samples import ClientSamples, ListedSamples, dealt_anew
from fedmpi.randomness import key, seed_globals
from fedmpi.tasks import Measures, Metric, Rows
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.samples import Batch, Samples
from fedmpi.training.trainer import PixelOrder

BLOCK = 250

#: (network, inputs) -> output [B, ...]
Predict = Callable[[Net, Batch], torch.Tensor]
#: (network, inputs, vectors by name) -> output [B, ...], as `Algorithm.predict`
Prediction = Callable[[Net, Batch, Mapping[str, torch.Tensor]], torch.Tensor]


def by_the_network(net: Net, batch: Batch) -> torch.Tensor:
    """The network's own output."""
    return net(batch.x)


def predict_with(predict: Prediction | None, vectors: Mapping[str, torch.Tensor]) -> Predict:
    """The prediction function of a model with these vectors; for None, the network's own output."""
    return by_the_network if predict is None else lambda net, batch: predict(net, batch, vectors)


@dataclass(frozen=True)
class Measured:
    """A set of samples on which models are measured: the test set, the validation set, or samples with a trigger.

    Attributes:
        samples: where the samples are.
        index: [n] int64, their numbers in `samples`.
        owners: [n] int64, the client that each belongs to.
        shards: for each client, the positions in `index` of its samples.
    """

    samples: Samples
    index: NDArray[np.int64]
    owners: NDArray[np.int64]
    shards: ListedSamples

    @classmethod
    def of(cls, samples: Samples, shards: ListedSamples) -> Measured:
        """The set of the clients' samples `shards` (numbers in `samples`), in rising order of these numbers."""
        index, owners = shards.samples, shards.owners
        order = np.argsort(index, kind="stable")
        place = np.empty(len(index), dtype=np.int64)
        place[order] = np.arange(len(index))
        return cls(samples, index[order], owners[order], ListedSamples(place, owners, len(shards)))

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def targets(self) -> NDArray:
        """[n, ...]"""
        return self.samples.y.cpu().numpy()[self.index]


class Evaluation:
    """Results of one model, or of each client's model, on a set of samples.

    Attributes:
        measures: what was measured.
        measured: [S, n] float32, the measurements of each sample.
        known: [n], whether the sample was evaluated.
        targets: [n, ...]
        owners: [n] int64, the client that a sample belongs to.
        clients: number of clients.
        validation: the results of the same models on the validation set; None: there is none.
        triggered: the results on test samples that carry the trigger of an attack, and have its target as their
            label; None: there are none.
    """

    def __init__(
        self,
        measures: Measures,
        measured: NDArray[np.float32],
        targets: NDArray,
        owners: NDArray[np.int64],
        clients: int,
        known: NDArray[np.bool_] | None = None,
        validation: Evaluation | None = None,
        triggered: Evaluation | None = None,
    ) -> None:
        self.measures = measures
        self.measured = measured
        self.known = np.ones(len(targets), dtype=bool) if known is None else known
        self.targets = targets
        self.owners = owners
        self.clients = clients
        self.validation = validation
        self.triggered = triggered

    @cached_property
    def rows(self) -> Rows:
        """The measurements of the evaluated samples, by name."""
        return self.measures.rows(self.measured[:, self.known])

    def value(self, metric: Metric) -> float:
        """A metric over the evaluated samples; NaN if there are none."""
        return metric(self.rows, self.targets[self.known], self.owners[self.known])

    @property
    def main(self) -> float:
        """The task's main metric, such as the accuracy, over the evaluated samples."""
        return self.value(self.measures.main)

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics of the experiment by name."""
        return {name: self.value(metric) for name, metric in self.measures.metrics.items()}

    @property
    def columns(self) -> dict[str, float]:
        """The metrics of all sets by column: test_loss, ..., validation_loss, ..., backdoor_success."""
        found = {f"test_{name}": value for name, value in self.metrics.items()}
        validated = self.validation.metrics if self.validation else {}
        attacked = {"backdoor_success": self.triggered.hits} if self.triggered else {}
        return found | {f"validation_{name}": value for name, value in validated.items()} | attacked

    @property
    def hits(self) -> float:
        """The share of the evaluated samples whose class is predicted; NaN if there are none."""
        hit = self.rows["predicted"] == self.targets[self.known]
        return float(hit.mean()) if len(hit) else math.nan

    @property
    def of_clients(self) -> NDArray[np.float64]:
        """[clients] the main metric of each on its own samples; NaN for a client without evaluated samples."""
        found = np.full(self.clients, np.nan)
        clients, values = self.of_known_clients
        found[clients] = values
        return found

    @cached_property
    def of_known_clients(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The clients [k] that have evaluated samples, in rising order, and the main metric of each on these."""
        clients, places = np.unique(self.owners[self.known], return_inverse=True)
        targets = self.targets[self.known]
        return clients, self.measures.main.of_owners(self.rows, targets, places, len(clients))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """[classes, classes], number of evaluated samples by true and predicted class; only for classification."""
        classes = self.measures.outputs
        pairs = self.targets[self.known] * classes + self.rows["predicted"].astype(np.int64)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """[classes], NaN for a class without evaluated samples; only for classification."""
        counts = self.confusion
        samples = counts.sum(axis=1)
        return np.divide(counts.diagonal(), samples, out=np.full(len(samples), np.nan), where=samples > 0)

    @classmethod
    def matched(cls, models: Sequence[Evaluation], choice: NDArray[np.int64]) -> Evaluation:
        """For each sample the result of its owner's model; not evaluated if the owner has none (-1)."""
        one = models[0]
        number = choice[one.owners]
        measured = np.stack([model.measured for model in models])[number, :, np.arange(len(number))].T
        validations = [model.validation for model in models if model.validation]
        validation = cls.matched(validations, choice) if validations else None
        with_trigger = [model.triggered for model in models if model.triggered]
        triggered = cls.matched(with_trigger, choice) if with_trigger else None
        return cls(one.measures, measured, one.targets, one.owners, one.clients, number >= 0, validation, triggered)


class Evaluator:
    """Runs models forward on one rank.

    Args:
        model: a separate network, so that evaluations do not affect training.
        measures: what is measured.
        train: the training samples.
        train_shards: for each client, the training samples on which losses are measured.
        test: the test set.
        validation: the validation set; None: there is none.
        triggered: test samples that carry the trigger of an attack; None: there are none.
        pixels: client -> the order in which it sees the pixels of its images, or None.
        clients: number of clients without held-out clients, whose test samples do not count.
    """

    def __init__(
        self,
        model: FlatModel,
        measures: Measures,
        train: Samples,
        train_shards: ClientSamples,
        test: Measured,
        validation: Measured | None,
        triggered: Measured | None,
        pixels: PixelOrder,
        clients: int,
    ) -> None:
        self.measures = measures
        self.model = model
        self.model.module.eval()
        self._train = train
        self._shards = train_shards
        sets = {"test": test, "validation": validation, "triggered": triggered}
        self._sets = {name: one for name, one in sets.items() if one is not None}
        self._pixels = pixels
        self._clients = clients
        self._counted = {name: np.flatnonzero(one.owners < clients) for name, one in self._sets.items()}

    def deal(self, shards: Sequence[NDArray[np.int64]]) -> None:
        """From now on measure training losses on these samples of the first clients."""
        self._shards = dealt_anew(self._shards, shards)

    def nothing(self) -> NDArray[np.float32]:
        """[S, n] zeros, which `measure` fills, and which are then added up over the ranks.

        n is the number of samples of all sets.
        """
        return np.zeros((self.measures.width, sum(map(len, self._sets.values()))), dtype=np.float32)

    def _parts(self, into: NDArray[np.float32]) -> Iterator[tuple[str, Measured, NDArray[np.float32]]]:
        """The part of the measurements for each set."""
        first = 0
        for name, one in self._sets.items():
            yield name, one, into[:, first : first + len(one)]
            first += len(one)

    @torch.inference_mode()
    def measure(
        self,
        weights: torch.Tensor,
        part: int,
        parts: int,
        into: NDArray[np.float32],
        predict: Predict = by_the_network,
    ) -> None:
        """Fill in the measurements of every block b of samples for which b mod `parts` is `part`.

        Args:
            weights: [P], of the network.
            predict: computes the output with the network.
        """
        self.model.load(weights)
        for name, one, place in self._parts(into):
            counted = self._counted[name]
            for start in range(part * BLOCK, len(counted), parts * BLOCK):
                block = counted[start : start + BLOCK]
                place[:, block] = self._measured(one, block, predict)

    @torch.inference_mode()
    def measure_client(
        self,
        weights: torch.Tensor,
        client: int,
        into: NDArray[np.float32],
        predict: Predict = by_the_network,
    ) -> None:
        """Fill in the measurements of a client's samples; arguments as for `measure`."""
        self.model.load(weights)
        for _, one, place in self._parts(into):
            shard = one.shards[client]
            for start in range(0, len(shard), BLOCK):
                block = shard[start : start + BLOCK]
                place[:, block] = self._measured(one, block, predict)

    @torch.inference_mode()
    def value_of_client(self, weights: torch.Tensor, client: int, predict: Predict) -> float:
        """The main metric on a client's own test samples; NaN if it has none."""
        test = self._sets["test"]
        shard = test.shards[client]
        if not len(shard):
            return math.nan
        self.model.load(weights)
        blocks = (shard[start : start + BLOCK] for start in range(0, len(shard), BLOCK))
        measured = np.concatenate([self._measured(test, block, predict) for block in blocks], axis=1)
        return self.measures.main(self.measures.rows(measured), test.targets[shard], test.owners[shard])

    def value(self, weights: torch.Tensor) -> float:
        """The main metric of `weights` over all test samples."""
        measured = self.nothing()
        self.measure(weights, 0, 1, measured)
        return self.evaluation(measured).main

    def _measured(self, one: Measured, positions: NDArray[np.int64], predict: Predict) -> NDArray[np.float32]:
        """[S, B], of a block of samples."""
        index = one.index[positions]
        _seed_draws(index)
        batch = one.samples.batch(index, self._seen_pixels(one.owners[positions]))
        return self.measures.measure(predict(Net(self.model), batch), batch.y)

    def evaluation(self, measured: NDArray[np.float32]) -> Evaluation:
        """The evaluation, from the values added up over the ranks."""
        found: dict[str, Evaluation] = {}
        for name, one, part in self._parts(measured):
            some = self._counted[name]
            found[name] = Evaluation(self.measures, part[:, some], one.targets[some], one.owners[some], self._clients)
        test = found.pop("test")
        test.validation, test.triggered = found.get("validation"), found.get("triggered")
        return test

    @torch.inference_mode()
    def training_losses(
        self, client: int, models: torch.Tensor, samples: NDArray[np.int64] | None = None
    ) -> list[float]:
        """Mean loss of each of `models` [M, P] on training samples of a client, unaugmented; NaN without samples.

        Each batch is gathered once and run through one model after another. On a CPU, `torch.vmap` over the models
        takes 1.1 (one layer) to 4 times (LeNet) as long.

        Args:
            samples: their numbers; None: all on which the client trains.
        """
        shard, loss = self._shards[client] if samples is None else samples, self.measures.task.loss
        totals, count = [0.0] * len(models), 0.0
        for start in range(0, len(shard), BLOCK):
            batch = self._train.batch(shard[start : start + BLOCK], self._pixels(client))
            count += batch.mass
            for number, weights in enumerate(models):
                _seed_draws(shard[start:])
                self.model.load(weights)
                totals[number] += batch.total(loss(self.model.module(batch.x), batch.y))
        return [total / count if count else math.nan for total in totals]

    @torch.inference_mode()
    def training_hits(
        self, weights: torch.Tensor, shards: Sequence[NDArray[np.int64]], part: int, parts: int
    ) -> NDArray[np.float64]:
        """[clients] how many of the training samples `shards` of each client `weights` classifies correctly.

        Only of blocks b with b mod `parts` = `part`.
        """
        self.model.load(weights)
        hits = np.zeros(len(shards))
        blocks = [
            (client, shard[start : start + BLOCK])
            for client, shard in enumerate(shards)
            for start in range(0, len(shard), BLOCK)
        ]
        for client, index in blocks[part::parts]:
            batch = self._train.batch(index, self._pixels(client))
            _seed_draws(index)
            hits[client] += (self.model.module(batch.x).argmax(1) == batch.y).sum().item()
        return hits

    def _seen_pixels(self, owners: NDArray[np.int64]) -> torch.Tensor | None:
        orders = [self._pixels(client) for client in owners.tolist()]
        return None if orders[0] is None else torch.stack([order for order in orders if order is not None])


def _seed_draws(index: NDArray[np.int64]) -> None:
    """Seed for networks that draw random numbers in evaluation mode: by samples, so the same on any rank."""
    seed_globals(key(0, "evaluation", client=int(index[0])))


def weighted_mean_of(values: NDArray[np.float64], samples: NDArray[np.int64]) -> float:
    """sum_k n_k a_k / sum_k n_k over the clients k whose value [clients] is known."""
    known = ~np.isnan(values) & (samples > 0)
    return float(values[known] @ samples[known] / samples[known].sum()) if known.any() else np.nan


def adjusted_rand_index(some: ArrayLike, others: ArrayLike) -> float:
    """Agreement of two clusterings [k] of the same items: 1 if they are equal, about 0 by chance (scikit-learn).

    Hubert, Arabie: Comparing Partitions. Journal of Classification, 1985. NaN if there are no items.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(some, others)) if np.size(some) else np.nan
