"""A partition for more clients than there are samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedmpi.data.client_samples import ClientSamples, Integers
from fedmpi.data.partitions import Partition
from fedmpi.errors import require
from fedmpi.options import with_options
from fedmpi.randomness import keys, permuted
from fedmpi.ranges import PositiveInt


@with_options
class Repeated(Partition):
    """For millions of clients: each gets equally many random samples, and different clients may share samples.

    The data set is dealt out again and again, each time in another random order. A client's samples are computed from
    its number when they are needed, so no memory is used per client. The test samples are dealt out at random.

    Args:
        samples: training samples per client.
    """

    samples: PositiveInt = 20

    by_label = False
    shares_samples = True

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> ClientSamples:
        allowed = f"at most {len(labels)}, the number of training samples"
        require(self.samples <= len(labels), "samples", self.samples, allowed)
        return RepeatedSamples(len(labels), self.samples, clients, int(rng.integers(2**63)))


class RepeatedSamples(ClientSamples):
    """The samples of clients that are dealt out in passes over the data, each pass in another random order.

    Args:
        number: number of all samples.
        each: samples per client. All samples of a client are dealt in one pass, so no client has a sample twice.
        clients: number of clients.
        seed: of the random orders.
    """

    def __init__(self, number: int, each: int, clients: int, seed: int) -> None:
        self._number = number
        self._each = each
        self._clients = clients
        self._seed = seed

    @property
    def sizes(self) -> Integers:
        return np.broadcast_to(np.int64(self._each), self._clients)

    @property
    def total(self) -> int:
        return self._each * self._clients

    def __len__(self) -> int:
        return self._clients

    def of(self, clients: Integers) -> Integers:
        which, turn = np.divmod(clients, self._number // self._each)  # pass, and the client's turn in it
        orders = np.repeat(keys(self._seed, "passes", clients=which), self._each)
        places = (turn[:, None] * self._each + np.arange(self._each)).ravel()
        found = permuted(orders, places, self._number).reshape(len(clients), self._each)
        found.sort(axis=1)
        return found.ravel()

    def first(self, clients: int) -> RepeatedSamples:
        return RepeatedSamples(self._number, self._each, clients, self._seed)

    @property
    def facts(self) -> tuple[Any, ...]:
        return self._number, self._each, self._clients, str(self._seed)
