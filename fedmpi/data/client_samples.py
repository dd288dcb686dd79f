"""The samples of each client, kept in few arrays: no Python object per client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fedmpi.arrays import read_only

Integers = NDArray[np.int64]

# Clients whose samples are looked at together.
AT_ONCE = 1 << 16


class ClientSamples(Sequence[Integers]):
    """The samples of each client: `samples[k]` are the numbers, int64, of the samples of client k.

    A partition that can compute the samples of a client from the client's number returns an object of its own class.
    Then no rank holds the samples of all clients.
    """

    @property
    @abstractmethod
    def sizes(self) -> Integers:
        """[clients] number of samples of each."""

    @abstractmethod
    def of(self, clients: Integers) -> Integers:
        """The samples of these clients [m], one client after another."""

    @abstractmethod
    def first(self, clients: int) -> ClientSamples:
        """The samples of the first clients."""

    @property
    @abstractmethod
    def facts(self) -> tuple[Any, ...]:
        """Arrays and numbers that are equal where two objects give every client the same samples."""

    @property
    @abstractmethod
    def total(self) -> int:
        """Number of samples of all clients together."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of clients."""

    @overload
    def __getitem__(self, client: int) -> Integers: ...

    @overload
    def __getitem__(self, client: slice) -> list[Integers]: ...

    def __getitem__(self, client: int | slice) -> Integers | list[Integers]:
        if isinstance(client, slice):
            return [self[one] for one in range(*client.indices(len(self)))]
        return self.of(np.array([range(len(self))[client]]))

    def parts(self) -> Iterator[tuple[Integers, Integers]]:
        """Clients [m] in rising order, and their samples, one client after another: some clients at a time."""
        for begin in range(0, len(self), AT_ONCE):
            clients = np.arange(begin, min(begin + AT_ONCE, len(self)))
            yield clients, self.of(clients)

    def count_labels(self, labels: NDArray, classes: int) -> Integers:
        """[clients, classes] how many samples of each label each client has.

        Args:
            labels: [n] of all samples, 0 .. classes - 1.
        """
        found = np.zeros((len(self), classes), dtype=np.int64)
        for clients, samples in self.parts():
            places = np.repeat(np.arange(len(clients)), self.sizes[clients])
            counts = np.bincount(places * classes + labels[samples], minlength=len(clients) * classes)
            found[clients] = counts.reshape(-1, classes)
        return found


class ListedSamples(ClientSamples):
    """Lists of samples that have been made for all clients. Memory depends on the number of samples.

    Args:
        samples: [n] the samples of all clients, one client after another.
        owners: [n] the client of each, in rising order.
        clients: number of clients, of which some may have no samples.
    """

    def __init__(self, samples: Integers, owners: Integers, clients: int) -> None:
        self.samples = samples
        self._clients = clients
        self._known, begins = np.unique(owners, return_index=True)  # the clients that have samples
        self._ends = np.append(begins, len(samples))

    @classmethod
    def of_lists(cls, lists: Sequence[Integers]) -> ListedSamples:
        """A list of samples per client, in any order, which is kept."""
        samples = np.concatenate(lists, dtype=np.int64, casting="same_kind")
        return cls(samples, np.repeat(np.arange(len(lists)), list(map(len, lists))), len(lists))

    def protect(self) -> None:
        """Make the lists read-only, before methods receive them."""
        self.samples = read_only(self.samples)

    @classmethod
    def nothing(cls, clients: int) -> ListedSamples:
        """No samples for any client."""
        none = np.empty(0, dtype=np.int64)
        return cls(none, none, clients)

    @cached_property
    def sizes(self) -> Integers:
        found = np.zeros(self._clients, dtype=np.int64)
        found[self._known] = np.diff(self._ends)
        return found

    @property
    def total(self) -> int:
        return len(self.samples)

    def __len__(self) -> int:
        return self._clients

    @property
    def owners(self) -> Integers:
        """[n] the client of each of `samples`."""
        return np.repeat(self._known, np.diff(self._ends))

    def of(self, clients: Integers) -> Integers:
        if len(clients) == 1:
            place = int(np.searchsorted(self._known, clients[0]))
            has_some = place < len(self._known) and self._known[place] == clients[0]
            return self.samples[self._ends[place] : self._ends[place + 1]] if has_some else self.samples[:0]
        sizes = self.sizes[clients]
        begins = self._ends[np.searchsorted(self._known, clients)]
        return self.samples[np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())]

    def first(self, clients: int) -> ListedSamples:
        if clients == self._clients:
            return self
        some = slice(0, self._ends[np.searchsorted(self._known, clients)])
        return ListedSamples(self.samples[some], self.owners[some], clients)

    def sorted(self) -> ListedSamples:
        """The same, with each client's samples in rising order."""
        owners = self.owners
        return ListedSamples(self.samples[np.lexsort((self.samples, owners))], owners, self._clients)

    def where(self, chosen: NDArray[np.bool_]) -> ListedSamples:
        """Without the samples that are not chosen.

        Args:
            chosen: [n] for each of `samples`.
        """
        return ListedSamples(self.samples[chosen], self.owners[chosen], self._clients)

    @property
    def facts(self) -> tuple[Any, ...]:
        return self._clients, self.samples, self._known, self._ends


def gathered(shards: Sequence[Integers]) -> ClientSamples:
    """The samples of each client in few arrays."""
    return shards if isinstance(shards, ClientSamples) else ListedSamples.of_lists(shards)


def dealt_anew(before: ClientSamples, shards: Sequence[Integers]) -> ClientSamples:
    """The samples of each client after the first clients were given others.

    Args:
        before: the samples of all clients.
        shards: for each of the first clients, its new samples in any order.
    """
    return gathered(shards if len(shards) == len(before) else [*shards, *before[len(shards) :]])
