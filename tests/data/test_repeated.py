"""The partition that computes a client's samples from its number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fedmpi.data import Dirichlet, Permuted, Repeated, make_split
from fedmpi.data.client_samples import Integers, ListedSamples
from fedmpi.data.repeated import RepeatedSamples
from fedmpi.errors import BadInput
from fedmpi.randomness import permuted

LABELS = np.arange(1000) % 7


def of(clients: int, each: int = 30, seed: int = 3) -> Sequence[Integers]:
    return make_split(Repeated(each), LABELS, LABELS[:50], 7, clients, seed).train


@pytest.mark.parametrize("count", [1, 2, 3, 8, 60, 997, 1000])
def test_permutations(count: int) -> None:
    """Oracle: the range itself; and other keys give other orders."""
    orders = [permuted(np.full(count, key, np.uint64), np.arange(count), count) for key in (1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    assert count < 60 or np.mean(orders[0] == orders[1]) < 0.1


def test_permutations_are_random() -> None:
    """Oracle: each of 50 places goes to each of 50 places as often, 200 of 10,000 times; and so do two together."""
    keys, count = np.arange(10_000, dtype=np.uint64), 50
    found = np.stack([permuted(keys, np.full(len(keys), place), count) for place in range(count)])
    expected = len(keys) / count
    times = np.stack([np.bincount(row, minlength=count) for row in found])
    chi2 = ((times - expected) ** 2 / expected).sum() / (count - 1) ** 2
    assert 0.85 < chi2 < 1.15
    apart = np.bincount((found[1:] - found[:-1]).ravel() % count, minlength=count)[1:]
    assert apart.std() < 2 * np.sqrt(apart.mean())


def test_passes() -> None:
    """Oracle: by hand: 33 clients make a pass over 1000 samples. No sample comes twice, and 10 are left out."""
    train = of(1000)
    for first in range(0, 990, 33):
        one = np.concatenate(train[first : first + 33])
        assert len(np.unique(one)) == len(one) == 990
    assert all((np.diff(shard) > 0).all() for shard in train)
    times = np.bincount(np.concatenate(train[:990]), minlength=1000)
    assert times.min() > 20, "what is left out in one pass comes in another one"
    assert times.max() == 30
    assert not np.array_equal(np.sort(np.concatenate(train[:33])), np.sort(np.concatenate(train[33:66])))


def test_a_client_depends_on_its_number_alone() -> None:
    """Oracle: the same client among others, and together with others."""
    few, many = of(40), of(15_000_000)
    assert isinstance(many, RepeatedSamples)
    np.testing.assert_array_equal(few[17], many[17])
    np.testing.assert_array_equal(many.of(np.array([14_999_999, 5])), np.concatenate([many[-1], many[5]]))
    assert len(many) == 15_000_000
    assert many.total == 450_000_000
    assert many.sizes[[0, -1]].tolist() == [30, 30]
    assert not np.array_equal(few[17], of(40, seed=4)[17])


def test_label_counts() -> None:
    """Oracle: NumPy, client by client."""
    split = make_split(Repeated(30), LABELS, LABELS[:50], 7, 100, 0)
    counted = [np.bincount(LABELS[shard], minlength=7) for shard in split.train]
    np.testing.assert_array_equal(split.label_counts, counted)


@pytest.mark.parametrize("clients", [3, 49, 50, 51, 10_000_000])
def test_test_samples(clients: int) -> None:
    """Each belongs to one client; all clients have as many, up to one."""
    test = make_split(Repeated(2), LABELS, LABELS[:50], 7, clients, 0).test
    np.testing.assert_array_equal(np.sort(test.samples), np.arange(50))
    sizes = np.bincount(test.owners)
    assert sizes[sizes > 0].max() - sizes[sizes > 0].min() <= (clients < 50)
    assert len(np.unique(test.owners)) == min(clients, 50)


def test_too_many_samples() -> None:
    with pytest.raises(BadInput, match=r"samples = 1001: must be at most 1000, the number of training samples"):
        of(3, 1001)


def test_clients_may_see_them_differently() -> None:
    """Permuted over Repeated: the same samples, in orders of pixels of their own."""
    split = make_split(Permuted(Repeated(30), 4), LABELS, LABELS[:50], 7, 100, 3)
    np.testing.assert_array_equal(split.train[8], of(100)[8])
    assert split.groups is not None
    assert np.bincount(split.groups).tolist() == [25] * 4


def test_lists() -> None:
    """Oracle: lists, of which some are empty."""
    lists = [np.array([4, 2]), np.array([], np.int64), np.array([7]), np.array([0, 1, 9]), np.array([], np.int64)]
    made = ListedSamples.of_lists(lists)
    assert [one.tolist() for one in made] == [one.tolist() for one in lists]
    assert made.sizes.tolist() == [2, 0, 1, 3, 0]
    assert made.owners.tolist() == [0, 0, 2, 3, 3, 3]
    assert made.of(np.array([3, 1, 0])).tolist() == [0, 1, 9, 4, 2]
    assert [one.tolist() for one in made.sorted()] == [sorted(one.tolist()) for one in lists]
    assert [one.tolist() for one in made.first(3)] == [[4, 2], [], [7]]
    assert made[-2].tolist() == [0, 1, 9]
    assert made.where(made.samples != 1)[3].tolist() == [0, 9]
    with pytest.raises(IndexError):
        made[5]


def test_memory_of_lists() -> None:
    """As many numbers as samples, and not an object per client."""
    train = make_split(Dirichlet(), np.arange(50_000) % 10, LABELS[:50], 10, 10_000, 0).train
    assert isinstance(train, ListedSamples)
    assert sum(fact.nbytes for fact in train.facts if isinstance(fact, np.ndarray)) <= 8 * (50_000 + 2 * 10_001)
