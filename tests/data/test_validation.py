"""Validation samples: of every client, stratified, and never among its training samples."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.data import (
    IID,
    ClassesPerClient,
    Digits,
    Dirichlet,
    DirichletPrior,
    LogNormal,
    Partition,
    Permuted,
    Rotated,
    Shards,
    SwappedLabels,
    Users,
    make_split,
)
from fedmpi.data.split import Split
from fedmpi.errors import BadInput
from tests.support.experiments import SEED, read

DIGITS = read(Digits())
USERS = np.arange(len(DIGITS.train_y)) % 60
CLIENTS, HELD_OUT = 20, 3
PARTITIONS: list[Partition] = [
    IID(),
    LogNormal(sigma=2),
    Dirichlet(0.05, min_samples=3),  # moves samples to small clients
    DirichletPrior(0.1),
    Shards(),
    ClassesPerClient(classes=2),
    Users(),
    Permuted(Dirichlet(0.3)),
    Rotated(),
    SwappedLabels(Dirichlet(0.3)),
]


def split_of(partition: Partition, validation: float, without: int = 0) -> Split:
    y, test_y = DIGITS.train_y, DIGITS.test_y
    users = USERS if isinstance(partition, Users) else None
    return make_split(partition, y, test_y, 10, CLIENTS, SEED, users, None, validation, without)


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda each: type(each).__name__)
def test_every_client_sets_samples_apart(partition: Partition) -> None:
    whole, split = split_of(partition, 0.0), split_of(partition, 0.2)
    assert not any(map(len, whole.validation))
    for client, shard in enumerate(whole.train):
        trained, apart = split.train[client], split.validation[client]
        assert not set(trained) & set(apart)
        np.testing.assert_array_equal(np.sort(np.concatenate([trained, apart])), shard)
        expected = int(0.2 * len(shard) + 0.5)
        assert len(apart) == (max(expected, 1) if len(shard) >= 10 else expected)
        before, taken = (np.bincount(DIGITS.train_y[part], minlength=10) for part in (shard, apart))
        assert (np.abs(taken - before * len(apart) / len(shard)) < 1).all(), "stratified"
        np.testing.assert_array_equal(split.test[client], whole.test[client])
    apart = np.concatenate(split.validation)
    assert len(set(apart)) == len(apart)
    assert not set(apart) & set(np.concatenate(split.train))
    np.testing.assert_array_equal(split.label_counts.sum(1), list(map(len, split.train)))
    again = split_of(partition, 0.2)
    np.testing.assert_array_equal(np.concatenate(again.validation), apart)
    seen = split.labels_seen(DIGITS.train_y, split.train, split.validation)
    for client, trained in enumerate(split.train):
        np.testing.assert_array_equal(split.label_counts[client], np.bincount(seen[trained], minlength=10))


def test_held_out_clients_keep_their_samples() -> None:
    whole, split = split_of(IID(), 0.0), split_of(IID(), 0.2, without=HELD_OUT)
    for client in range(CLIENTS - HELD_OUT, CLIENTS):
        np.testing.assert_array_equal(split.train[client], whole.train[client])
        assert len(split.validation[client]) == 0
    assert all(map(len, split.validation[: CLIENTS - HELD_OUT]))


def test_a_client_without_training_samples_is_refused() -> None:
    with pytest.raises(BadInput, match=r"= 0\.9: leaves client \d+, which has \d+ training samples, without"):
        split_of(Dirichlet(0.05, min_samples=3), 0.9)


def test_a_set_without_samples_is_refused() -> None:
    y = np.arange(9 * CLIENTS) % 10
    said = r"= 0\.04: sets nothing apart, because no client has more than 9 training samples; at least one needs 10"
    with pytest.raises(BadInput, match=said):
        make_split(IID(), y, y[:50], 10, CLIENTS, 1, validation=0.04)


def test_ten_samples_give_one() -> None:
    y = np.arange(10 * CLIENTS) % 10
    for share, expected in ((0.01, 1), (0.04, 1), (0.14, 1), (0.16, 2)):
        split = make_split(IID(), y, y, 10, CLIENTS, SEED, validation=share)
        assert {len(apart) for apart in split.validation} == {expected}
    split = make_split(IID(), y[: 9 * CLIENTS + 1], y, 10, CLIENTS, SEED, validation=0.04)
    sizes = [len(train) + len(apart) for train, apart in zip(split.train, split.validation, strict=True)]
    assert [len(apart) for apart in split.validation] == [int(size == 10) for size in sizes]
    assert sum(map(len, split.validation)) == 1
