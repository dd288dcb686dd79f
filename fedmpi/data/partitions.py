"""How the training samples are divided among the clients (`--partition`).

A partition is a pure function of the labels (or users), the number of clients and a random stream. Every sample
belongs to at most one client (but see `Repeated`), and every client gets samples. Published code draws again until
every client has enough samples, which may take forever. Here as few samples as possible are moved from the largest
clients instead (`top_up`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import isqrt
from typing import Annotated

import numpy as np

from fedmpi.data._owners import NOBODY, apportion, by_owner, draw_classes, top_up
from fedmpi.data.client_samples import Integers, ListedSamples
from fedmpi.errors import BadInput, require
from fedmpi.options import Configured, null_for, with_options
from fedmpi.ranges import Allowed, NonNegativeInt, PositiveInt, interval


class Partition(metaclass=Configured):
    """A way to split samples among clients. One of your own, used with `--partition my_module.Halves`:

        class Halves(Partition):
            def split(self, labels, clients, rng):
                return np.array_split(rng.permutation(len(labels) // 2), clients)

    Attributes:
        permutes_pixels: whether clients see the pixels of their samples in another order (`pixels`).
        turns_images: whether this order is a rotation of square images.
        relabels: whether clients see other labels (`relabelled`).
        by_label: whether `split` looks at the labels. For tasks other than classification they are strata of the
            targets (`Task.strata`). A task without strata needs a partition that does not look at them.
        shares_samples: whether several clients may have the same training sample.
        by_user: whether `split` is given the users of the samples instead of their labels. Clients then also get
            their users' test samples, if these are known.
        moved: number of samples that the last split moved to clients with too few samples.
    """

    permutes_pixels: bool = False
    turns_images: bool = False
    relabels: bool = False
    by_label: bool = True
    by_user: bool = False
    shares_samples: bool = False
    moved: int = 0

    @abstractmethod
    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        """The samples of each client, as indices into `labels` (int64 [n]) in any order. No index occurs twice.

        For very many clients, return a `ClientSamples` (`fedmpi.data.client_samples`), which computes a client's
        samples when they are asked for.

        Args:
            labels: of the training samples; with `by_user`, the numbers of their users.

        Raises:
            BadInput: there are too few samples for this number of clients.
        """

    def groups(self, clients: int, rng: np.random.Generator) -> Integers | None:
        """[clients] the true groups, within which all clients have the same distribution; None: there are none."""
        return None

    def pixels(self, group: int, count: int, rng: np.random.Generator) -> Integers:
        """[count] the order in which the clients of a group see the pixels of their samples.

        Args:
            rng: random numbers of the group.
        """
        return np.arange(count)

    def relabelled(self, group: int, classes: int, rng: np.random.Generator) -> Integers:
        """[classes] the label that the clients of a group see for each true label.

        Args:
            rng: random numbers, the same for all groups.

        Raises:
            BadInput: there are too few classes.
        """
        return np.arange(classes)


class IID(Partition):
    """Every client gets a random part of all samples; the parts' sizes differ by one at most."""

    by_label = False

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        _require_samples(len(labels), clients, 1)
        least, more = divmod(len(labels), clients)
        sizes = np.where(np.arange(clients) < more, least + 1, least)
        return ListedSamples(rng.permutation(len(labels)), np.repeat(np.arange(clients), sizes), clients)


@with_options
class LogNormal(Partition):
    """Random samples for every client, with sizes in proportion to exp(sigma * N(0, 1)).

    Args:
        sigma: spread of the sizes; 0 makes them equal.
        min_samples: fewest samples of a client; missing ones are taken from the largest clients.
    """

    sigma: Annotated[float, interval("[0, 10]", "between 0 and 10")] = 1.0
    min_samples: PositiveInt = 2

    by_label = False

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        _require_samples(len(labels), clients, self.min_samples)
        sizes = apportion(np.exp(self.sigma * rng.standard_normal(clients)), len(labels), rng)
        owner = np.empty(len(labels), np.int64)
        owner[rng.permutation(len(labels))] = np.repeat(np.arange(clients), sizes)
        topped = top_up(owner, clients, self.min_samples, rng)
        self.moved = int((topped != owner).sum())
        return by_owner(topped, clients)


Concentration = Annotated[float, interval("[1e-6, 1e6]", "greater than 0 (from 1e-6 to 1e6)")]


@with_options
class Dirichlet(Partition):
    """The clients divide the samples of each class in proportions drawn from Dir(alpha) over the clients.

    As in Yurochkin et al. (2019) and NIID-Bench (Li et al., 2022), but without the latter's cap on the size of a
    client, and without drawing again until every client has enough samples. Sizes and label shares both vary.

    Args:
        alpha: concentration; towards 0 each class belongs to one client, large values come near to IID.
        min_samples: fewest samples of a client; missing ones are taken from the largest clients.
    """

    alpha: Concentration = 0.5
    min_samples: PositiveInt = 2

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        _require_samples(len(labels), clients, self.min_samples)
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            samples = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(clients, self.alpha))
            # Rounding gives the same positions fewer samples in every class, so clients take them in another order
            # per class.
            order = rng.permutation(clients)
            ends = np.floor(np.cumsum(shares) * len(samples)).astype(np.int64)
            ends[-1] = len(samples)
            owner[samples] = np.repeat(order, np.diff(ends, prepend=0))
        topped = top_up(owner, clients, self.min_samples, rng)
        self.moved = int((topped != owner).sum())
        return by_owner(topped, clients)


@with_options
class DirichletPrior(Partition):
    """Equally large clients, each with class shares drawn from Dir(alpha) over the classes.

    The protocol of FedDyn (Acar et al., 2021) and FedFTG (Zhang et al., 2022): in random order, a client
    draws a class from its prior and takes a sample of it; a class that is used up is no longer drawn. Samples
    beyond the equal sizes stay unused.

    Args:
        alpha: concentration; towards 0 each client has one class, large values come near to IID.
    """

    alpha: Concentration = 0.5

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        _require_samples(len(labels), clients, 1)
        _, labels, left = np.unique(labels, return_inverse=True, return_counts=True)
        supply = np.split(np.lexsort((rng.random(len(labels)), labels)), np.cumsum(left)[:-1])
        priors = rng.dirichlet(np.full(len(left), self.alpha), size=clients)
        turns = rng.permutation(np.repeat(np.arange(clients), len(labels) // clients))
        taken = draw_classes(priors, turns, left, rng)
        owner = np.full(len(labels), NOBODY)
        for label, samples in enumerate(supply):
            takers = turns[taken == label]
            owner[samples[: len(takers)]] = takers
        return by_owner(owner, clients)


@with_options
class Shards(Partition):
    """Sorted by label, the samples are cut into equal shards; every client gets a few (McMahan et al., 2017).

    Args:
        shards_per_client: shards per client, which is about the largest number of classes of a client.
        total: number of shards that are cut; null: as many as the clients get. Other shards stay unused.
    """

    shards_per_client: PositiveInt = 2
    total: PositiveInt | None = None

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        _require_samples(len(labels), clients, self.shards_per_client)
        dealt = clients * self.shards_per_client
        total = dealt if self.total is None else self.total
        require(
            dealt <= total <= len(labels),
            "total",
            self.total,
            f"between {dealt} (clients x shards_per_client) and {len(labels)} (training samples)",
        )
        shards = np.array_split(np.lexsort((rng.random(len(labels)), labels)), total)
        hands = rng.permutation(total)[:dealt].reshape(clients, self.shards_per_client)
        return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]


@with_options
class ClassesPerClient(Partition):
    """Every client has samples of exactly `classes` classes, and every class has about equally many clients.

    The clients of a class divide its samples equally. All classes are used if there are enough clients.

    Args:
        classes: number of classes per client.
    """

    classes: PositiveInt = 2

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        known, sizes = np.unique(labels, return_counts=True)
        require(self.classes <= len(known), "classes", self.classes, f"at most {len(known)}, as in the data")
        hands = self._deal(len(known), clients, rng)
        owner = np.full(len(labels), NOBODY)
        for label, size in enumerate(sizes):
            owners = rng.permutation(np.flatnonzero((hands == label).any(axis=1)))
            if len(owners) > size:
                raise BadInput(
                    f"--clients = {clients}: {len(owners)} of them share class {known[label]}, which has only"
                    f" {size} training samples; use fewer clients or fewer classes per client"
                )
            if len(owners) > 0:
                samples = rng.permutation(np.flatnonzero(labels == known[label]))
                owner[samples] = owners[np.arange(size) % len(owners)]
        return by_owner(owner, clients)

    def _deal(self, known: int, clients: int, rng: np.random.Generator) -> Integers:
        """[clients, classes] dealt from shuffled decks of all classes. No client gets a class twice."""
        dealt: list[int] = []
        while len(dealt) < clients * self.classes:
            begun = dealt[len(dealt) - len(dealt) % self.classes :]  # the client whose classes this deck completes
            deck = rng.permutation(known)
            again = np.isin(deck, begun)
            dealt.extend([*deck[~again], *deck[again]])
        return np.array(dealt[: clients * self.classes]).reshape(clients, self.classes)


@with_options
class Users(Partition):
    """Every client is one of the people (or devices) that a data set's samples come from, as in LEAF.

    The users are drawn at random. Sentiment140, FEMNIST and Shakespeare record their users. A client's test samples
    are those of its user, if the users of the test samples are known.

    Args:
        min_samples: fewest training samples with which a user can be a client.
    """

    min_samples: PositiveInt = 1

    by_label = False
    by_user = True

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        samples = np.bincount(labels)
        users = np.flatnonzero(samples >= self.min_samples)
        if clients > len(users):
            raise BadInput(
                f"--clients = {clients}: must be at most {len(users)}, the users with {self.min_samples} or more"
                " training samples"
            )
        client_of = np.full(len(samples), NOBODY)
        client_of[rng.permutation(users)[:clients]] = np.arange(clients)
        return by_owner(client_of[labels], clients)


@with_options
class SeenDifferently(Partition):
    """Base of the partitions that wrap another one and let groups of clients see samples differently.

    This applies to a client's training and test samples. The groups are drawn at random and have equal sizes.

    Args:
        over: the partition that is wrapped, which divides the samples; null: IID.
    """

    over: Partition = null_for(IID)

    def __post_init__(self) -> None:
        self.by_label = self.over.by_label
        self.by_user = self.over.by_user
        self.shares_samples = self.over.shares_samples

    @property
    @abstractmethod
    def ways(self) -> int:
        """Number of groups; 0: every client is a group."""

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> Sequence[Integers]:
        parts = self.over.split(labels, clients, rng)
        self.moved = self.over.moved
        return parts

    def groups(self, clients: int, rng: np.random.Generator) -> Integers:
        return np.arange(clients) if self.ways == 0 else rng.permutation(clients) % self.ways


@with_options
class Permuted(SeenDifferently):
    """Feature shift: every client, or group of clients, has its own fixed permutation of the pixels.

    The user-specific partition of FeatureFusion (Yao et al., 2019), known as permuted MNIST.

    Args:
        over: the partition that is wrapped, which divides the samples; null: IID.
        permutations: number of different permutations, each for equally many clients; 0: one per client.
    """

    permutations: NonNegativeInt = 0

    permutes_pixels = True

    @property
    def ways(self) -> int:
        return self.permutations

    def pixels(self, group: int, count: int, rng: np.random.Generator) -> Integers:
        return rng.permutation(count)


def _are_turns(angles: tuple[int, ...]) -> bool:
    return 1 <= len({angle // 90 % 4 for angle in angles if angle % 90 == 0}) == len(angles)


Turns = Annotated[tuple[int, ...], Allowed(_are_turns, "one or more different multiples of 90")]


@with_options
class Rotated(SeenDifferently):
    """Feature shift: every group of clients has its own rotation of images, as in IFCA (Ghosh et al., 2020).

    Args:
        over: the partition that is wrapped, which divides the samples; null: IID.
        angles: rotation of each group in degrees, multiples of 90.
    """

    angles: Turns = (0, 90, 180, 270)

    permutes_pixels = True
    turns_images = True

    @property
    def ways(self) -> int:
        return len(self.angles)

    def pixels(self, group: int, count: int, rng: np.random.Generator) -> Integers:
        side = isqrt(count)
        return np.rot90(np.arange(count).reshape(side, side), self.angles[group] // 90 % 4).ravel()


@with_options
class SwappedLabels(SeenDifferently):
    """Label shift: every group of clients but the first has swapped labels, as in CFL (Sattler et al., 2019).

    In each group, random pairs of classes are swapped. No class is swapped in two groups.

    Args:
        over: the partition that is wrapped, which divides the samples; null: IID.
        tasks: number of groups.
        swaps: number of swapped pairs of classes per group; null: as many as possible.
    """

    tasks: Annotated[int, interval("[2, inf)")] = 2
    swaps: PositiveInt | None = None

    relabels = True

    @property
    def ways(self) -> int:
        return self.tasks

    def relabelled(self, group: int, classes: int, rng: np.random.Generator) -> Integers:
        swaps = self.swaps or max(classes // 2 // (self.tasks - 1), 1)
        option, value = ("tasks", self.tasks) if self.swaps is None else ("swaps", swaps)
        needed = 2 * swaps * (self.tasks - 1)
        allowed = f"such that 2 x swaps x (tasks - 1) is at most {classes}, the number of classes"
        require(needed <= classes, option, value, allowed)
        pairs = rng.permutation(classes)[:needed].reshape(-1, swaps, 2)
        seen = np.arange(classes)
        if group > 0:
            seen[pairs[group - 1]] = pairs[group - 1][:, ::-1]
        return seen


def _require_samples(samples: int, clients: int, least: int) -> None:
    if clients * least > samples:
        raise BadInput(
            f"--clients = {clients}: must be at most {samples // least}, for {samples} training samples"
            f" and at least {least} for each client"
        )
