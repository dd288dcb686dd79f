"""Partitions of training samples, and the split of training and test samples that is made from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.algorithms.centralized import Centralized
from fedmpi.data import (
    IID,
    Arrays,
    ClassesPerClient,
    Dataset,
    Digits,
    Dirichlet,
    DirichletPrior,
    LogNormal,
    Partition,
    Permuted,
    Progress,
    Rotated,
    Shards,
    Split,
    SwappedLabels,
    make_split,
)
from fedmpi.data._owners import apportion, draw_classes, top_up
from fedmpi.data.repeated import RepeatedSamples
from fedmpi.errors import BadInput
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import read, run

CLASSES = 10
EXTREMES = [
    IID(),
    Dirichlet(0.5),
    Dirichlet(1e-3),
    Dirichlet(1e-6),
    Dirichlet(1e4),
    Dirichlet(0.1, min_samples=10),
    DirichletPrior(0.3),
    DirichletPrior(1e-3),
    DirichletPrior(1e-6),
    DirichletPrior(1e4),
    Shards(),
    Shards(3),
    ClassesPerClient(1),
    ClassesPerClient(3),
    ClassesPerClient(CLASSES),
    LogNormal(),
    LogNormal(10.0, min_samples=5),
    LogNormal(0.0),
    Permuted(),
    Permuted(Dirichlet(0.1), permutations=3),
]


def describe(partition: Partition) -> str:
    return "-".join(
        [type(partition).__name__, *(str(v) for v in vars(partition).values() if isinstance(v, (int, float)))]
    )


def labels_of(samples: int, seed: int = 0) -> NDArray[np.int64]:
    """Slightly unbalanced classes in random order, as real data have them."""
    weights = np.linspace(0.8, 1.2, CLASSES)
    labels = np.repeat(np.arange(CLASSES), np.ceil(samples * weights / weights.sum()).astype(int))[:samples]
    return np.random.default_rng(seed).permutation(labels)


def split(partition: Partition, samples: int = 2000, clients: int = 20, seed: int = 0) -> Split:
    return make_split(partition, labels_of(samples), labels_of(samples // 4, 1), CLASSES, clients, seed)


def same(a: Split, b: Split) -> bool:
    return all(map(np.array_equal, a.train, b.train)) and all(map(np.array_equal, a.test, b.test))


@pytest.mark.parametrize("partition", EXTREMES, ids=describe)
@pytest.mark.parametrize("clients", [1, 7, 20, 100])
def test_samples_are_used_once_and_everybody_has_enough(partition: Partition, clients: int) -> None:
    for seed in range(5):
        made = split(partition, clients=clients, seed=seed)
        used = np.concatenate(made.train)
        assert len(made.train) == clients
        assert len(np.unique(used)) == len(used)
        assert used.min() >= 0
        assert used.max() < 2000
        assert made.samples.min() >= getattr(partition, "min_samples", 1)
        assert all((np.diff(part) > 0).all() for part in made.train)


@pytest.mark.parametrize("partition", EXTREMES, ids=describe)
def test_split_is_a_function_of_the_seed(partition: Partition) -> None:
    assert same(split(partition, seed=3), split(partition, seed=3))
    assert not same(split(partition, seed=3), split(partition, seed=4))


@pytest.mark.parametrize(
    "partition", [IID(), Dirichlet(0.2), LogNormal(), ClassesPerClient(2), Shards()], ids=describe
)
def test_nothing_is_left_out_where_all_samples_can_be_used(partition: Partition) -> None:
    assert split(partition).samples.sum() == 2000


@pytest.mark.parametrize("partition", [Dirichlet(1e-3), Dirichlet(1e4), LogNormal(3.0)], ids=describe)
def test_as_many_clients_as_the_minimum_allows(partition: Partition) -> None:
    assert (split(partition, samples=600, clients=300).samples == 2).all()


@pytest.mark.parametrize("partition", EXTREMES, ids=describe)
def test_too_many_clients(partition: Partition) -> None:
    with pytest.raises(BadInput, match=r"--clients = 601: .*samples") as error:
        split(partition, samples=600, clients=601)
    assert "\n" not in str(error.value)


def test_iid_sizes_differ_by_one_at_most() -> None:
    samples = split(IID(), samples=2005, clients=20).samples
    assert samples.max() - samples.min() == 1


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_dirichlet_moments(alpha: float) -> None:
    """Shares of a class over N clients: mean 1/N, variance (1/N)(1 - 1/N) / (N alpha + 1)."""
    clients, labels = 20, np.repeat(np.arange(CLASSES), 2000)
    counts = [make_split(Dirichlet(alpha), labels, labels, CLASSES, clients, s).label_counts for s in range(40)]
    shares = np.array(counts) / 2000
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert shares.mean() == pytest.approx(1 / clients, abs=1e-12)
    assert shares.var() == pytest.approx(variance, rel=0.1)
    # Exchangeable clients: none is favoured by the way shares are rounded.
    error = np.sqrt(variance / (40 * CLASSES))
    assert np.abs(shares.mean(axis=(0, 2)) - 1 / clients).max() < 4.5 * error


def test_dirichlet_with_large_alpha_is_nearly_iid() -> None:
    labels = np.repeat(np.arange(CLASSES), 6000)
    made = make_split(Dirichlet(1e6), labels, labels, CLASSES, 10, 0)
    assert np.abs(made.label_counts / made.samples[:, None] - 0.1).max() < 0.01 * 0.1 + 1 / 600


def test_dirichlet_favours_no_client_where_classes_are_smaller_than_the_federation() -> None:
    labels = np.repeat(np.arange(CLASSES), 50)
    sizes = sum(make_split(Dirichlet(1e4, 1), labels, labels, CLASSES, 100, seed).samples for seed in range(100))
    assert np.std(sizes / 100) < 0.5  # five samples each; without shuffling, half of the clients had ten


def test_dirichlet_prior_has_equal_sizes() -> None:
    assert (split(DirichletPrior(0.1), samples=2013, clients=20).samples == 100).all()


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_dirichlet_prior_moments(alpha: float) -> None:
    """As long as no class is used up, label counts are Dirichlet-multinomial."""
    rng = np.random.default_rng(0)
    clients, size = 2000, 50
    turns = rng.permutation(np.repeat(np.arange(clients), size))
    priors = rng.dirichlet(np.full(CLASSES, alpha), size=clients)
    taken = draw_classes(priors, turns, np.full(CLASSES, 10**9), rng)
    counts = np.bincount(turns * CLASSES + taken, minlength=clients * CLASSES).reshape(clients, CLASSES)
    total = CLASSES * alpha
    variance = 0.1 * 0.9 / size * (size + total) / (1 + total)
    assert (counts.sum(axis=1) == size).all()
    assert (counts / size).var() == pytest.approx(variance, rel=0.05)
    # Given the priors, the counts are multinomial.
    chi2 = ((counts - size * priors) ** 2).sum() / (size * priors * (1 - priors)).sum()
    assert chi2 == pytest.approx(1, rel=0.05)


def published_protocol(labels: NDArray, clients: int, alpha: float, rng: np.random.Generator) -> NDArray:
    """Label counts by the loop of the FedDyn code, one sample at a time, with renormalised priors."""
    left = np.bincount(labels)
    room = np.full(clients, len(labels) // clients)
    priors = rng.dirichlet(np.full(len(left), alpha), size=clients)
    counts = np.zeros((clients, len(left)), int)
    while room.any():
        client = rng.choice(np.flatnonzero(room))
        prior = (priors[client] + 1e-30) * (left > 0)
        label = rng.choice(len(left), p=prior / prior.sum())
        counts[client, label] += 1
        left[label] -= 1
        room[client] -= 1
    return counts


def test_dirichlet_prior_agrees_with_the_published_loop() -> None:
    labels, clients = np.repeat(np.arange(5), 60), 10

    def concentration(counts: NDArray) -> float:
        return float(((counts / counts.sum(axis=1, keepdims=True)) ** 2).sum(axis=1).mean())

    rng = np.random.default_rng(0)
    loop = [concentration(published_protocol(labels, clients, 0.3, rng)) for _ in range(60)]
    ours = [
        concentration(make_split(DirichletPrior(0.3), labels, labels, 5, clients, seed).label_counts)
        for seed in range(300)
    ]
    error = np.sqrt(np.var(loop) / len(loop) + np.var(ours) / len(ours))
    assert abs(np.mean(loop) - np.mean(ours)) < 3.5 * error


def test_draw_classes_uses_every_sample_of_every_class() -> None:
    left = np.array([5, 0, 1, 14])
    priors = np.eye(4)[[0, 0]]  # two clients that want class 0 alone
    taken = draw_classes(priors, np.arange(20) % 2, left, np.random.default_rng(0))
    assert np.array_equal(np.bincount(taken, minlength=4), left)
    assert (taken[:5] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_shards(seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(CLASSES), 200))
    made = make_split(Shards(2), labels, labels, CLASSES, 50, seed)
    assert (made.samples == 40).all()
    assert (made.label_counts % 20 == 0).all()  # 100 shards of 20 samples, each of one class
    assert ((made.label_counts > 0).sum(axis=1) <= 2).all()


def test_shards_that_are_not_dealt() -> None:
    labels = np.repeat(np.arange(CLASSES), 200)
    made = make_split(Shards(2, total=200), labels, labels, CLASSES, 50, 0)
    assert (made.samples == 20).all()
    with pytest.raises(BadInput, match="total = 99: must be between 100"):
        make_split(Shards(2, total=99), labels, labels, CLASSES, 50, 0)


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("clients", [10, 33, 60])
def test_classes_per_client(classes: int, clients: int) -> None:
    for seed in range(5):
        held = split(ClassesPerClient(classes), clients=clients, seed=seed).label_counts > 0
        assert (held.sum(axis=1) == classes).all()
        owners = held.sum(axis=0)
        assert owners.min() >= 1
        assert owners.max() - owners.min() <= 2  # equal but for the last deck, and the hand begun before it


def test_classes_per_client_divides_a_class_equally() -> None:
    counts = split(ClassesPerClient(2), clients=25).label_counts
    for label in range(CLASSES):
        owned = counts[:, label][counts[:, label] > 0]
        assert owned.max() - owned.min() <= 1


def test_classes_per_client_deals_disjoint_halves_to_two_clients() -> None:
    held = split(ClassesPerClient(5), clients=2).label_counts > 0
    assert (held[0] != held[1]).all()


def test_more_classes_than_there_are() -> None:
    with pytest.raises(BadInput, match="classes = 11: must be at most 10"):
        split(ClassesPerClient(11))


def test_log_normal_sizes() -> None:
    labels = np.repeat(np.arange(CLASSES), 20_000)
    logs = np.log(make_split(LogNormal(0.7), labels, labels, CLASSES, 1000, 0).samples)
    assert logs.std() == pytest.approx(0.7, rel=0.1)
    samples = split(LogNormal(0.0), samples=2005).samples
    assert samples.max() - samples.min() == 1


def test_top_up_takes_from_the_largest() -> None:
    owner = np.repeat([0, 1, 2, 3], [10, 9, 4, 0])
    topped = top_up(owner, 5, 3, np.random.default_rng(0))
    assert np.bincount(topped).tolist() == [7, 6, 4, 3, 3]
    assert (topped != owner).sum() == 6  # as few as possible


@pytest.mark.parametrize("kind", [Dirichlet, LogNormal])
def test_what_was_moved_is_known(kind: type[Dirichlet] | type[LogNormal]) -> None:
    """Oracle: the same draw, in which only those without any sample got one."""
    large, least = kind(3.0 if kind is LogNormal else 0.01, 40), kind(3.0 if kind is LogNormal else 0.01, 1)
    made, free = split(large), split(least)
    assert made.samples.min() == 40
    assert large.moved == np.maximum(40 - free.samples, 0).sum() + least.moved > 0
    around = Permuted(large)
    split(around)
    assert around.moved == large.moved
    assert kind().moved == 0


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Dirichlet(0), "alpha"),
        (lambda: Dirichlet(float("nan")), "alpha"),
        (lambda: Dirichlet(min_samples=0), "min_samples"),
        (lambda: DirichletPrior(-1), "alpha"),
        (lambda: DirichletPrior(float("inf")), "alpha"),
        (lambda: Shards(0), "shards_per_client"),
        (lambda: ClassesPerClient(0), "classes"),
        (lambda: LogNormal(-0.1), "sigma"),
        (lambda: LogNormal(min_samples=0), "min_samples"),
        (lambda: Permuted(permutations=-1), "permutations"),
        (lambda: Rotated(angles=(0, 45)), "angles"),
        (lambda: Rotated(angles=(0, 360)), "angles"),
        (lambda: Rotated(angles=()), "angles"),
        (lambda: SwappedLabels(tasks=1), "tasks"),
        (lambda: SwappedLabels(swaps=0), "swaps"),
    ],
)
def test_bad_options(make: object, option: str) -> None:
    with pytest.raises(BadInput) as error:
        make()  # type: ignore[operator]
    assert error.value.option == option


def test_permuted_delegates_the_split() -> None:
    inner = Dirichlet(0.2)
    plain, permuted = split(inner), split(Permuted(inner))
    assert same(plain, permuted)
    assert plain.groups is None
    assert plain.pixels(0, 64) is None


def test_every_client_has_its_own_permutation() -> None:
    made, again, other = split(Permuted()), split(Permuted()), split(Permuted(), seed=1)
    orders = [made.pixels(client, 64) for client in range(20)]
    assert len({tuple(order) for order in orders if order is not None}) == 20
    assert all(np.array_equal(np.sort(order), np.arange(64)) for order in orders if order is not None)
    assert np.array_equal(orders[5], again.pixels(5, 64))  # type: ignore[arg-type]
    assert not np.array_equal(orders[5], other.pixels(5, 64))  # type: ignore[arg-type]


def test_groups_of_permutations() -> None:
    made = split(Permuted(permutations=3), clients=20)
    assert made.groups is not None
    assert sorted(np.bincount(made.groups)) == [6, 7, 7]
    for client in range(20):
        leader = int(np.flatnonzero(made.groups == made.groups[client])[0])
        assert np.array_equal(made.pixels(client, 64), made.pixels(leader, 64))  # type: ignore[arg-type]


@pytest.mark.parametrize("partition", EXTREMES, ids=describe)
def test_label_counts(partition: Partition) -> None:
    labels, made = labels_of(2000), split(partition)
    assert made.label_counts.shape == (20, CLASSES)
    for client, part in enumerate(made.train):
        assert np.array_equal(np.bincount(labels[part], minlength=CLASSES), made.label_counts[client])
    assert np.array_equal(made.samples, [len(part) for part in made.train])


@pytest.mark.parametrize("partition", EXTREMES, ids=describe)
@pytest.mark.parametrize("clients", [1, 20, 100])
def test_test_shards(partition: Partition, clients: int) -> None:
    """They partition the test set, in the proportions of the training labels."""
    test_y = labels_of(500, 1)
    made = split(partition, clients=clients)
    assert np.array_equal(np.sort(np.concatenate(made.test)), np.arange(500))
    got = np.array([np.bincount(test_y[shard], minlength=CLASSES) for shard in made.test])
    used = made.label_counts.sum(axis=0) > 0
    quota = made.label_counts[:, used] / made.label_counts[:, used].sum(axis=0) * got.sum(axis=0)[used]
    assert np.abs(got[:, used] - quota).max() < 1


@pytest.mark.parametrize("partition", EXTREMES, ids=describe)
def test_weighted_client_accuracy_is_global_accuracy(partition: Partition) -> None:
    right = np.random.default_rng(7).random(500) < 0.7
    made = split(partition)
    sizes = np.array([len(shard) for shard in made.test])
    correct = np.array([right[shard].sum() for shard in made.test])
    assert correct.sum() / sizes.sum() == right.mean()  # integers: exactly
    accuracy = correct[sizes > 0] / sizes[sizes > 0]
    assert np.average(accuracy, weights=sizes[sizes > 0]) == pytest.approx(right.mean(), abs=1e-12)


def test_test_samples_of_a_class_that_nobody_trains_on() -> None:
    made = split(ClassesPerClient(2), clients=3)
    assert (made.label_counts.sum(axis=0) == 0).sum() == 4
    assert np.array_equal(np.sort(np.concatenate(made.test)), np.arange(500))


def test_apportion() -> None:
    rng = np.random.default_rng(0)
    assert apportion(np.array([3, 2, 1]), 12, rng).tolist() == [6, 4, 2]
    assert apportion(np.array([1.0, 0.0, 1.0]), 5, rng).sum() == 5
    first = sum(apportion(np.ones(10), 3, rng) for _ in range(1000))
    assert np.abs(first - 300).max() < 75  # ties favour nobody: five standard deviations


def test_the_largest_remainders_of_all_are_rounded_up() -> None:
    """Oracle: the definition, by sorting all remainders, ties by the same random numbers."""
    rng = np.random.default_rng(0)
    for seed in range(300):
        parts = int(rng.integers(1, 40))
        weights = rng.integers(1, 4, parts) if seed % 2 else rng.random(parts)
        total = int(rng.integers(0, 60))
        exact = weights * (total / weights.sum())
        expected = np.floor(exact)
        order = np.lexsort((np.random.default_rng(seed).random(parts), expected - exact))
        expected[order[: total - int(expected.sum())]] += 1
        assert np.array_equal(apportion(weights, total, np.random.default_rng(seed)), expected)


class Halves(Partition):
    """As in the documentation of `Partition`."""

    def split(self, labels: NDArray, clients: int, rng: np.random.Generator) -> list[NDArray]:
        return np.array_split(rng.permutation(len(labels) // 2), clients)


class Greedy(Halves):
    def split(self, labels: NDArray, clients: int, rng: np.random.Generator) -> list[NDArray]:
        return [np.arange(len(labels))] * clients


class Twice(Halves):
    """The fourth client has two samples, which are the same."""

    def split(self, labels: NDArray, clients: int, rng: np.random.Generator) -> list[NDArray]:
        return [np.array([client] * (1 + (client == 3))) for client in range(clients)]


class Idle(Halves):
    def split(self, labels: NDArray, clients: int, rng: np.random.Generator) -> list[NDArray]:
        return [np.arange(0)] * clients


class Named(Partition):
    """What is given; by default as few samples as there are clients."""

    def __init__(self, first: Any) -> None:
        self.first = first

    def split(self, labels: NDArray, clients: int, rng: np.random.Generator) -> list[NDArray]:
        return [self.first, *np.arange(1, clients)[:, None]]


class Early(RepeatedSamples):
    """Each sample is the one before."""

    def of(self, clients: NDArray) -> NDArray:
        return super().of(clients) - 1


class Late(Partition):
    shares_samples = True

    def split(self, labels: NDArray, clients: int, rng: np.random.Generator) -> Early:
        return Early(len(labels), len(labels), clients, 0)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (np.array([0, -1]), "it gives a client sample -1: must be numbers of training samples, 0 to 1999"),
        (np.array([2000, 0]), "it gives a client sample 2000: must be numbers of training samples, 0 to 1999"),
        (np.array([0.0, 30.0]), "it gives a client float64 values: must be numbers of training samples, 0 to 1999"),
        (np.arange(2000) < 1, "it gives a client bool values: must be numbers of training samples, 0 to 1999"),
    ],
)
def test_what_is_no_sample(first: NDArray, said: str) -> None:
    """Oracle: the line; also for samples that are computed when they are needed."""
    with pytest.raises(BadInput, match=f"^partition Named: {said}$"):
        split(Named(first))
    assert split(Named(np.array([0, 30]))).samples.tolist() == [2, *[1] * 19]
    assert split(Named([30, 0])).train[0].tolist() == [0, 30]
    with pytest.raises(BadInput, match=r"^partition Late: it gives a client sample -1: must be numbers of training"):
        split(Late())


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda shards: (shard for shard in shards), "a generator"),
        (lambda shards: None, "nothing"),
        (lambda shards: range(len(shards)), "a range"),
    ],
)
def test_what_is_no_list(returned: Callable[[Any], Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the line, in place of a traceback."""
    usual = IID.split
    monkeypatch.setattr(IID, "split", lambda *arguments: returned(usual(*arguments)))
    message = f"^partition IID: split returned {said}: must be a list with an array for each client$"
    with pytest.raises(BadInput, match=message):
        split(IID())


def test_a_partition_of_ones_own() -> None:
    assert split(Halves()).samples.sum() == 1000
    with pytest.raises(BadInput, match="partition Greedy: it gives sample 0 to clients 0 and 1"):
        split(Greedy())
    with pytest.raises(BadInput, match="partition Twice: it gives sample 3 to client 3 twice"):
        split(Twice())
    with pytest.raises(BadInput, match="partition Idle: it must give samples to each of the 20 clients"):
        split(Idle())


@pytest.mark.parametrize(
    "partition", [Dirichlet(0.3), DirichletPrior(0.3), Shards(), ClassesPerClient(2), LogNormal()]
)
def test_ten_thousand_clients_take_no_time(partition: Partition) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), 6000))
    start = time.process_time()
    made = make_split(partition, labels, labels[:10_000], CLASSES, 10_000, 0)
    assert time.process_time() - start < 1.5
    assert len(made.train) == 10_000


# Groups that see the same samples in different ways


def test_turned_images() -> None:
    """Oracle: np.rot90 of an image; the groups are equally large, and the split is that of the other partition."""
    partition = Rotated(Dirichlet(0.5), angles=(180, 0, 270, -270))
    made, plain = split(partition), split(Dirichlet(0.5))
    assert same(made, plain)
    assert made.groups is not None
    assert np.bincount(made.groups).tolist() == [5, 5, 5, 5]
    image = np.random.default_rng(0).integers(0, 256, (8, 8))
    for client, group in enumerate(made.groups):
        order = made.pixels(client, 64)
        assert order is not None
        np.testing.assert_array_equal(image.ravel()[order].reshape(8, 8), np.rot90(image, (2, 0, 3, 1)[group]))


@pytest.mark.parametrize(
    ("tasks", "swaps", "pairs"), [(2, None, 5), (2, 1, 1), (3, None, 2), (4, None, 1), (6, 1, 1)]
)
def test_swapped_labels(tasks: int, swaps: int | None, pairs: int) -> None:
    """Oracle: by hand: so many pairs change places, none in two groups, and nothing does in the first group."""
    made, plain = split(SwappedLabels(tasks=tasks, swaps=swaps)), split(IID())
    labels, groups = labels_of(2000), made.groups
    assert groups is not None
    seen = made.labels_seen(labels, made.train)
    swapped: dict[int, set[tuple[int, int]]] = {group: set() for group in range(tasks)}
    for client, part in enumerate(made.train):
        assert np.array_equal(part, plain.train[client])
        swapped[groups[client]] |= {
            (min(a, b), max(a, b)) for a, b in zip(labels[part], seen[part], strict=True) if a != b
        }
        assert np.array_equal(np.bincount(seen[part], minlength=CLASSES), made.label_counts[client])
    assert not swapped.pop(0)
    assert all(len(found) == pairs for found in swapped.values())
    changed = [label for found in swapped.values() for pair in found for label in pair]
    assert len(changed) == len(set(changed)) == 2 * pairs * (tasks - 1)
    again = split(SwappedLabels(tasks=tasks, swaps=swaps), seed=1).labels_seen(labels, made.train)
    assert not np.array_equal(again, seen)
    assert plain.labels_seen(labels, plain.train) is labels


class Kept(Dataset):
    """Digits that have been changed before."""

    classes, mean, std = Digits.classes, Digits.mean, Digits.std

    def __init__(self, x: NDArray, y: NDArray, test_x: NDArray, test_y: NDArray) -> None:
        self.x = x
        self.y = y
        self.test_x = test_x
        self.test_y = test_y

    def read(self, progress: Progress) -> Arrays:
        return Arrays(self.x, self.y, self.test_x, self.test_y)


def as_seen(made: Split) -> Kept:
    """The digits as the clients of a split see them, without any word of it."""
    arrays = read(Digits())
    x, y = np.array(arrays.train_x), np.array(made.labels_seen(arrays.train_y, made.train))
    test_x, test_y = np.array(arrays.test_x), np.array(made.labels_seen(arrays.test_y, made.test))
    if isinstance(made.partition, Rotated):
        assert made.groups is not None
        for images, shards in ((x, made.train), (test_x, made.test)):
            for shard, group in zip(shards, made.groups, strict=True):
                images[shard] = np.rot90(images[shard], group, axes=(2, 3))
    return Kept(x, y, test_x, test_y)


class Given(Partition):
    """The training samples of a split."""

    def __init__(self, train: list[NDArray]) -> None:
        self.train = train

    def split(self, labels: NDArray, clients: int, rng: np.random.Generator) -> list[NDArray]:
        return self.train


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("partition", [Rotated(), SwappedLabels(Dirichlet(0.5), tasks=3)])
def test_clients_see_their_samples(partition: Partition, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: a data set that has been changed before, bit for bit, in training, in evaluation and in the results."""
    arrays = read(Digits())
    made = make_split(partition, arrays.train_y, arrays.test_y, 10, 6, 3)
    settings: dict[str, Any] = {"clients": 6, "rounds": 2, "local": LocalTraining(epochs=1, vectorize=vectorize)}
    seen = run(tmp_path / "seen.h5", partition=partition, **settings)
    plain = run(tmp_path / "plain.h5", dataset=as_seen(made), partition=Given(made.train[:]), **settings)
    assert seen.weights_sha256 == plain.weights_sha256
    for column in ("train_loss", "test_loss", "test_accuracy"):
        np.testing.assert_array_equal(seen.rounds[column], plain.rounds[column])
    np.testing.assert_array_equal(
        seen.evaluation["per_class_accuracy"], plain.evaluation["per_class_accuracy"], strict=True
    )
    np.testing.assert_array_equal(seen.partition["label_counts"], plain.partition["label_counts"])
    assert made.groups is not None


class Flat(Dataset):
    """Ten numbers a sample."""

    classes = 2

    def read(self, progress: Progress) -> Arrays:
        x, y = np.ones((40, 10), np.float32), np.arange(40) % 2
        return Arrays(x, y, x, y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"partition": Rotated(), "dataset": Flat()},
            "--partition = Rotated: turns square images, and Flat has none",
        ),
        (
            {"partition": SwappedLabels(tasks=2, swaps=2), "dataset": Flat()},
            "--partition.swaps = 2: must be such that 2 x swaps x (tasks - 1) is at most 2, the number of classes",
        ),
        (
            {"partition": SwappedLabels(tasks=7)},
            "--partition.tasks = 7: must be such that 2 x swaps x (tasks - 1) is at most 10, the number of classes",
        ),
        (
            {"partition": SwappedLabels(), "algorithm": Centralized()},
            "algorithm = Centralized: cannot pool the samples if each client sees them differently,"
            " as with SwappedLabels",
        ),
    ],
)
def test_what_cannot_be_seen_differently(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput) as error:
        run(tmp_path / "run.h5", **settings)
    assert str(error.value) == message
