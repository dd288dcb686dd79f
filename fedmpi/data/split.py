"""The samples of each client, for training and for tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedmpi.data._owners import NOBODY, Integers, apportion, by_owner
from fedmpi.data.partitions import Partition
from fedmpi.errors import BadInput
from fedmpi.randomness import globals_kept, key, seed_globals, stream

#: A client with this many training samples gives at least one to the validation set.
LEAST_FOR_ONE = 10


@dataclass(frozen=True)
class Split:
    """The samples of each client.

    Attributes:
        train: for each client, int64 indices of its training samples, in rising order, without validation samples.
        test: the same for its test samples. Every test sample belongs to exactly one client, so the mean of a model's
            client accuracies, weighted by test samples, is its accuracy on the whole test set.
        validation: for each client, those of its training samples that are never trained on.
        label_counts: int64 [clients, strata] numbers of training samples, by the label that the client sees, or by
            the stratum of its target (`Task.strata`).
        groups: int64 [clients] the true groups, if the partition has any.
        partition: determines how clients see their samples.
        seed: seed of the partition.
    """

    train: list[Integers]
    test: list[Integers]
    validation: list[Integers]
    label_counts: Integers
    groups: Integers | None
    partition: Partition
    seed: int

    @property
    def samples(self) -> Integers:
        """[clients] numbers of training samples."""
        return np.asarray(self.label_counts.sum(axis=1))

    @property
    def owned(self) -> list[Integers]:
        """For each client, its training and validation samples."""
        return [np.concatenate(both) for both in zip(self.train, self.validation, strict=True)]

    def first(self, clients: int) -> Split:
        """The split of the first clients. The order in which they see pixels stays the same."""
        groups = None if self.groups is None else self.groups[:clients]
        lists = self.train[:clients], self.test[:clients], self.validation[:clients]
        return Split(*lists, self.label_counts[:clients], groups, self.partition, self.seed)

    def pixels(self, client: int, count: int) -> Integers | None:
        """[count] the order in which a client sees the pixels of its samples; None: pixels are not permuted."""
        if not self.partition.permutes_pixels:
            return None
        group = self._group(client)
        with globals_kept():  # asked for while a client is trained, whose own draws go on
            seed_globals(key(self.seed, "pixels", client=group))
            return self.partition.pixels(group, count, stream(self.seed, "pixels", client=group))

    def labels_seen(self, labels: Integers, shards: list[Integers]) -> Integers:
        """The labels [n] as the clients with these shards see them."""
        if not self.partition.relabels:
            return labels
        seen = np.array(labels)
        for client, shard in enumerate(shards):
            group, rng = self._group(client), stream(self.seed, "labels")
            seed_globals(key(self.seed, "labels", client=group))
            as_seen = self.partition.relabelled(group, self.label_counts.shape[1], rng)
            seen[shard] = as_seen[labels[shard]]
        return seen

    def _group(self, client: int) -> int:
        return client if self.groups is None else int(self.groups[client])


def make_split(
    partition: Partition,
    train_y: Integers,
    test_y: Integers,
    classes: int,
    clients: int,
    seed: int,
    train_users: Integers | None = None,
    test_users: Integers | None = None,
    validation: float = 0,
    without: int = 0,
) -> Split:
    """Split the training samples as the partition says, and the test samples in the same proportions.

    A partition by users also gives a client the test samples of its users, and deals out the others like that.

    Args:
        train_y, test_y: the labels, or the strata of other targets.
        classes: number of labels or strata.
        validation: share of each client's training samples that is set apart.
        without: number of clients, the last ones, of which nothing is set apart.

    Raises:
        BadInput: there are too few samples for this number of clients or for a validation set, the partition returned
            an invalid split, or it needs users and they are unknown.
    """
    given = train_users if partition.by_user else train_y
    if given is None:
        raise BadInput(f"partition {type(partition).__name__}: the data set has no information about users")
    seed_globals(key(seed, "partition"))
    train = [np.sort(part) for part in partition.split(given, clients, stream(seed, "partition"))]
    _check(partition, train, clients)

    def owners(shards: list[Integers]) -> Integers:
        return np.repeat(np.arange(clients), list(map(len, shards)))

    def count(labels: Integers, shards: list[Integers]) -> Integers:
        cells = owners(shards) * classes + labels[np.concatenate(shards)]
        return np.bincount(cells, minlength=clients * classes).reshape(clients, classes)

    test_owner = np.full(len(test_y), NOBODY)
    if partition.by_user and test_users is not None:
        client_of = np.full(max(given.max(), test_users.max()) + 1, NOBODY)
        client_of[given[np.concatenate(train)]] = owners(train)
        test_owner = client_of[test_users]
    label_counts = count(train_y, train)
    test_owner = _deal_out(test_owner, label_counts, test_y, stream(seed, "test shards"))
    seed_globals(key(seed, "groups"))
    groups = partition.groups(clients, stream(seed, "groups"))
    apart = [
        _set_apart(shard, train_y[shard], validation if client < clients - without else 0, client, seed)
        for client, shard in enumerate(train)
    ]
    if validation and not any(map(len, apart)):
        most = max(map(len, train[: clients - without]))
        reason = f"sets nothing apart, because no client has more than {most} training samples"
        raise BadInput(f"= {validation}: {reason}; at least one needs {LEAST_FOR_ONE}", "--validation")
    kept = [np.setdiff1d(shard, some, assume_unique=True) for shard, some in zip(train, apart, strict=True)]
    split = Split(kept, by_owner(test_owner, clients), apart, label_counts, groups, partition, seed)
    return replace(split, label_counts=count(split.labels_seen(train_y, split.owned), kept))


def _set_apart(shard: Integers, labels: Integers, share: float, client: int, seed: int) -> Integers:
    """The validation samples of a client, stratified by label: at least one of ten samples.

    Args:
        shard, labels: its samples, and their labels.
        share: of its samples.
    """
    number = int(np.floor(share * len(shard) + 0.5))
    if share and len(shard) >= LEAST_FOR_ONE:
        number = max(number, 1)
    if number == 0:
        return shard[:0]
    if number == len(shard):
        reason = f"leaves client {client}, which has {len(shard)} training samples, without any"
        raise BadInput(f"= {share}: {reason}", "--validation")
    rng = stream(seed, "validation", client=client)
    known, sizes = np.unique(labels, return_counts=True)
    taken = zip(known, apportion(sizes, number, rng).tolist(), strict=True)
    parts = [rng.permutation(shard[labels == label])[:some] for label, some in taken]
    return np.sort(np.concatenate(parts))


def _check(partition: Partition, train: list[Integers], clients: int) -> None:
    name = type(partition).__name__
    if len(train) != clients or not all(map(len, train)):
        raise BadInput(f"partition {name}: it must give samples to each of the {clients} clients")
    used = np.sort(np.concatenate(train))
    if (used[1:] == used[:-1]).any():
        raise BadInput(f"partition {name}: it gives the same sample to two clients")


def _deal_out(owner: Integers, label_counts: Integers, test_y: Integers, rng: np.random.Generator) -> Integers:
    """Divide the test samples without owner of each class like its training samples.

    If it has none, like all samples.
    """
    clients, classes = label_counts.shape
    everyone = np.arange(clients)
    dealt = owner.copy()
    for label in range(classes):
        samples = rng.permutation(np.flatnonzero((owner == NOBODY) & (test_y == label)))
        weights = label_counts[:, label] if label_counts[:, label].any() else label_counts.sum(axis=1)
        dealt[samples] = np.repeat(everyone, apportion(weights, len(samples), rng))
    return dealt
