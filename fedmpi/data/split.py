"""The samples of each client, for training and for tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedmpi.data._owners import NOBODY, Integers, apportion, by_owner
from fedmpi.data.partitions import Partition
from fedmpi.errors import BadInput
from fedmpi.randomness import globals_kept, key, seed_globals, stream


@dataclass(frozen=True)
class Split:
    """The samples of each client.

    Attributes:
        train: for each client, int64 indices of its training samples, in rising order.
        test: the same for its test samples. Every test sample belongs to exactly one client, so the mean of a model's
            client accuracies, weighted by test samples, is its accuracy on the whole test set.
        label_counts: int64 [clients, classes] numbers of training samples, by the label that the client sees.
        groups: int64 [clients] the true groups, if the partition has any.
        partition: determines how clients see their samples.
        seed: seed of the partition.
    """

    train: list[Integers]
    test: list[Integers]
    label_counts: Integers
    groups: Integers | None
    partition: Partition
    seed: int

    @property
    def samples(self) -> Integers:
        """[clients] numbers of training samples."""
        return np.asarray(self.label_counts.sum(axis=1))

    def first(self, clients: int) -> Split:
        """The split of the first clients. The order in which they see pixels stays the same."""
        groups = None if self.groups is None else self.groups[:clients]
        parts = self.train[:clients], self.test[:clients], self.label_counts[:clients]
        return Split(*parts, groups, self.partition, self.seed)

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
) -> Split:
    """Split the training samples as the partition says, and the test samples in the same proportions.

    A partition by users also gives a client the test samples of its users, and deals out the others like that.

    Raises:
        BadInput: there are too few samples for this number of clients, the partition returned an invalid split, or it
            needs users and they are unknown.
    """
    given = train_users if partition.by_user else train_y
    if given is None:
        raise BadInput(f"partition {type(partition).__name__}: the data set has no information about users")
    seed_globals(key(seed, "partition"))
    train = [np.sort(part) for part in partition.split(given, clients, stream(seed, "partition"))]
    _check(partition, train, clients)
    used = np.concatenate(train)
    owners = np.repeat(np.arange(clients), [len(samples) for samples in train])

    def count(labels: Integers) -> Integers:
        cells = owners * classes + labels[used]
        return np.bincount(cells, minlength=clients * classes).reshape(clients, classes)

    test_owner = np.full(len(test_y), NOBODY)
    if partition.by_user and test_users is not None:
        client_of = np.full(max(given.max(), test_users.max()) + 1, NOBODY)
        client_of[given[used]] = owners
        test_owner = client_of[test_users]
    label_counts = count(train_y)
    test_owner = _deal_out(test_owner, label_counts, test_y, stream(seed, "test shards"))
    seed_globals(key(seed, "groups"))
    groups = partition.groups(clients, stream(seed, "groups"))
    split = Split(train, by_owner(test_owner, clients), label_counts, groups, partition, seed)
    return replace(split, label_counts=count(split.labels_seen(train_y, train)))


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
