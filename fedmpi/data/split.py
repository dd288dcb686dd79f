"""The samples of each client, for training and for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedmpi.arrays import read_only
from fedmpi.data._owners import NOBODY, apportion, by_owner
from fedmpi.data.client_samples import ClientSamples, Integers, ListedSamples, gathered
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
        labels: [n] of all training samples, as the client sees them, or the strata of their targets (`Task.strata`).
        classes: number of labels or strata.
        groups: int64 [clients] the true groups, if the partition has any.
        partition: determines how clients see their samples.
        seed: seed of the partition.
    """

    train: ClientSamples
    test: ListedSamples
    validation: ListedSamples
    labels: Integers
    classes: int
    groups: Integers | None
    partition: Partition
    seed: int

    def __post_init__(self) -> None:
        for part in (self.train, self.test, self.validation):
            if isinstance(part, ListedSamples):
                part.protect()

    @property
    def samples(self) -> Integers:
        """[clients] numbers of training samples."""
        return read_only(self.train.sizes)

    @cached_property
    def label_counts(self) -> Integers:
        """int64 [clients, classes] numbers of training samples by label. Computed when it is first needed."""
        return self.train.count_labels(self.labels, self.classes)

    def first(self, clients: int) -> Split:
        """The split of the first clients. The order in which they see pixels stays the same."""
        if clients == len(self.train):
            return self
        groups = None if self.groups is None else self.groups[:clients]
        test, validation = self.test.first(clients), self.validation.first(clients)
        return replace(self, train=self.train.first(clients), test=test, validation=validation, groups=groups)

    def pixels(self, client: int, count: int) -> Integers | None:
        """[count] the order in which a client sees the pixels of its samples; None: pixels are not permuted."""
        if not self.partition.permutes_pixels:
            return None
        group = self._group(client)
        with globals_kept():  # asked for while a client is trained, whose own draws go on
            seed_globals(key(self.seed, "pixels", client=group))
            return self.partition.pixels(group, count, stream(self.seed, "pixels", client=group))

    def labels_seen(self, labels: Integers, *parts: ClientSamples) -> Integers:
        """The labels [n] as the clients with these parts of the samples see them."""
        if not self.partition.relabels:
            return labels
        seen = np.array(labels)
        for client, shard in (pair for part in parts for pair in enumerate(part)):
            group, rng = self._group(client), stream(self.seed, "labels")
            seed_globals(key(self.seed, "labels", client=group))
            as_seen = self.partition.relabelled(group, self.classes, rng)
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
    owned = partition.split(read_only(given), clients, stream(seed, "partition"))
    _check_sizes(partition, owned, clients)
    _check_numbers(partition, owned, len(given))
    owned = ListedSamples.of_lists(owned) if validation else gathered(owned)
    rng = stream(seed, "test shards")
    if isinstance(owned, ListedSamples):
        owned = owned.sorted()
        _check_once(partition, owned)
        known = _owners_by_user(owned, given, test_users) if partition.by_user and test_users is not None else None
        test_owner = np.full(len(test_y), NOBODY) if known is None else known
        test_owner = _deal_out(test_owner, owned.count_labels(train_y, classes), test_y, rng)
    else:
        test_owner = _deal_at_random(len(test_y), clients, rng)
    seed_globals(key(seed, "groups"))
    groups = partition.groups(clients, stream(seed, "groups"))
    train, apart = owned, ListedSamples.nothing(clients)
    if validation:
        train, apart = _validating(owned, train_y, validation, clients - without, seed)
    split = Split(train, by_owner(test_owner, clients), apart, train_y, classes, groups, partition, seed)
    return replace(split, labels=split.labels_seen(train_y, train, apart))


def _validating(
    owned: Sequence[Integers], labels: Integers, share: float, clients: int, seed: int
) -> tuple[ListedSamples, ListedSamples]:
    """The samples of each client without its validation samples, and these.

    Args:
        owned: the samples of each client.
        labels: of all samples.
        share: of a client's samples, for the first `clients`; nothing is set apart of the others.
    """
    shares = [share if client < clients else 0 for client in range(len(owned))]
    each = enumerate(zip(owned, shares, strict=True))
    apart = [_set_apart(shard, labels[shard], part, client, seed) for client, (shard, part) in each]
    if not any(map(len, apart)):
        most = max(map(len, owned[:clients]))
        reason = f"sets nothing apart, because no client has more than {most} training samples"
        raise BadInput(f"= {share}: {reason}; at least one needs {LEAST_FOR_ONE}", "--validation")
    kept = [np.setdiff1d(shard, some, assume_unique=True) for shard, some in zip(owned, apart, strict=True)]
    return ListedSamples.of_lists(kept), ListedSamples.of_lists(apart)


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


def _check_sizes(partition: Partition, owned: Sequence[Integers], clients: int) -> None:
    name, listed = type(partition).__name__, isinstance(owned, ClientSamples)
    if not listed and not (hasattr(owned, "__len__") and all(hasattr(samples, "__len__") for samples in owned)):
        found = "nothing" if owned is None else f"a {type(owned).__name__}"
        raise BadInput(f"partition {name}: split returned {found}: must be a list with an array for each client")
    sizes = owned.sizes if isinstance(owned, ClientSamples) else np.array(list(map(len, owned)))
    if len(owned) != clients or not sizes.all():
        raise BadInput(f"partition {name}: it must give samples to each of the {clients} clients")


def _check_numbers(partition: Partition, owned: Sequence[Integers], number: int) -> None:
    """Raise BadInput unless clients get numbers of samples."""
    allowed = f"must be numbers of training samples, 0 to {number - 1}"
    for samples in _pieces(owned):
        found = np.asarray(samples)
        if found.dtype.kind not in "iu" and found.size:
            raise BadInput(f"partition {type(partition).__name__}: it gives a client {found.dtype} values: {allowed}")
        if found.size and not 0 <= found.min() <= found.max() < number:
            wrong = found[(found < 0) | (found >= number)][0]
            raise BadInput(f"partition {type(partition).__name__}: it gives a client sample {wrong}: {allowed}")


def _pieces(owned: Sequence[Integers]) -> Iterator[Integers]:
    """The samples of all clients, some at a time, without those that fedmpi computes when they are needed."""
    if isinstance(owned, ListedSamples):
        yield owned.samples
    elif not isinstance(owned, ClientSamples):
        yield from owned
    elif not type(owned).__module__.startswith("fedmpi."):
        yield from (samples for _, samples in owned.parts())


def _check_once(partition: Partition, owned: ListedSamples) -> None:
    order = np.argsort(owned.samples, kind="stable")
    used, owners = owned.samples[order], owned.owners[order]
    if (again := np.flatnonzero(used[1:] == used[:-1])).size:
        sample, (one, other) = used[again[0]], owners[again[0] : again[0] + 2]
        who = f"client {one} twice" if one == other else f"clients {one} and {other}"
        raise BadInput(f"partition {type(partition).__name__}: it gives sample {sample} to {who}")


def _owners_by_user(owned: ListedSamples, users: Integers, test_users: Integers) -> Integers:
    """[n] the client of each test sample, by its user; NOBODY if the user is no client."""
    client_of = np.full(max(users.max(), test_users.max()) + 1, NOBODY)
    client_of[users[owned.samples]] = owned.owners
    return client_of[test_users]


def _deal_at_random(samples: int, clients: int, rng: np.random.Generator) -> Integers:
    """[n] the client of each test sample: all clients get as many, or some get one each if there are too few."""
    if samples < clients:
        return rng.choice(clients, samples, replace=False)
    return rng.permutation(np.arange(samples) % clients)


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
