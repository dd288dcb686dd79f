"""The record of one round: the work of clients, the time of ranks, and what the algorithm logs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmpi.errors import REMEDY, Diverged
from fedmpi.federation.energy import CPU, GPU, Energy
from fedmpi.federation.evaluation import Evaluation
from fedmpi.federation.placement import OBSERVED
from fedmpi.mpi.world import World
from fedmpi.policies import RoundPlan
from fedmpi.training.block import Block, Work

# What is recorded of every participation (an algorithm may add to it), and which of it are whole numbers, -1 where
# nothing was recorded; what is no whole number is NaN there.
RECORDED = ("rank", "samples", "steps", "seconds", "loss", "diverged")
COUNTS = ("rank", "samples", "steps", "diverged")
# Where the model of a client whose training diverged is not finite, and what it is there; not for the results.
LOST = ("lost_at", "lost_value")
MISSING = -1
# Further columns of /clients.
KEYS = ("round", "client", "malicious")
# What every rank counts.
SPENT = (
    "train_seconds",
    "communication_seconds",
    "evaluation_seconds",
    "teacher_seconds",
    "server_seconds",
    "wait_seconds",
    "clients",
    "client_seconds",
    "bytes_up",
    CPU,
    GPU,
)
# What a rank asks for when the round is over: to end the run with an exit status, a checkpoint, and to be heard.
ASKED = ("status", "checkpoint", "hearing")
SPENT_BY_WORKERS = SPENT[:3]
BUSY = ("train_seconds", "evaluation_seconds", "teacher_seconds", "server_seconds")


@dataclass(frozen=True)
class Outcome:
    """The results of a round: its row of /rounds, its rows of /clients and /ranks, and an evaluation.

    For a method with several models, also `clusters` [clients], the number of each client's model.

    Attributes:
        status: exit status with which the run ends after the round; 0: it continues. The same on every rank, like
        checkpoint: whether a checkpoint is written, and
        hearing: whether a rank has something to tell.
    """

    row: dict[str, float]
    clients: dict[str, NDArray]
    ranks: dict[str, NDArray]
    evaluation: Evaluation | None
    clusters: NDArray[np.int64] | None = None
    fine_tuned: Evaluation | None = None
    status: int = 0
    checkpoint: bool = False
    hearing: bool = False


class Ledger:
    """The record of one rank in a round. `close` combines the records of all ranks by one small message.

    Args:
        world: the ranks.
        round: number of the round.
        plan: of the round. Every rank has a row for each client of the cohort, and fills in the clients that it
            trained.
        client_metrics: names of the values that are recorded per client.
        averaged: names of those whose mean over the cohort is a column of the round's row.
        began: start of the round, by `time.perf_counter`.
        name_at: the name of the tensor that an element of a model belongs to.

    Attributes:
        cohort: the clients of the round.
    """

    def __init__(
        self,
        world: World,
        round: int,
        plan: RoundPlan,
        client_metrics: tuple[str, ...],
        averaged: tuple[str, ...],
        began: float,
        name_at: Callable[[int], str] = str,
    ) -> None:
        self.round = round
        self.cohort = cohort = plan.cohort
        self._plan = plan
        self._began = began
        self._averaged = averaged
        self.bytes_down = self.bytes_up = 0
        self.evaluation: Evaluation | None = None
        self.clusters: NDArray[np.int64] | None = None
        self.fine_tuned: Evaluation | None = None
        self._is_timing = False
        self._world = world
        self._name_at = name_at
        taken = (*RECORDED, *LOST, *KEYS, *plan.clients)
        own = [name for name in client_metrics if name in taken or client_metrics.count(name) > 1]
        _refuse(own, "client_metrics", "clients")
        self._columns = [*RECORDED, *client_metrics, *LOST]
        # One buffer for all, so that one message brings it together: a sum over the ranks. So a record begins as 0,
        # and next to the records stands of each on how many ranks it was made: on none if it is missing.
        clients, ranks = (2, len(cohort), len(self._columns)), (world.size, len(SPENT) + len(OBSERVED) + len(ASKED))
        self._counted = np.zeros(prod(clients) + prod(ranks))
        self._of_clients, of_ranks = np.split(self._counted, [prod(clients)])
        self._records, self._known = self._of_clients.reshape(clients)
        self._ranks = of_ranks.reshape(ranks)
        self._gathered = False
        self._logged: dict[str, float] = {}
        self._spent = dict.fromkeys((*SPENT, *OBSERVED, *ASKED), 0.0)
        self._predicted = np.zeros(world.size)
        self._waited, self._transferred = world.waiting.seconds, world.transferred

    def log(self, values: Mapping[str, float]) -> None:
        """Add columns to the round's row.

        Raises:
            ValueError: the results file cannot have a column of this name.
        """
        if wrong := [name for name in values if not name or "/" in name or "\0" in name]:
            raise ValueError(f"fed.log: {wrong[0]!r}: must be a name without /, of at least one letter")
        self._logged.update(values)

    def record(self, block: Block, values: Mapping[str, ArrayLike]) -> None:
        """Set values [K] of a block's clients.

        Raises:
            ValueError: there is no such column.
        """
        if unknown := values.keys() - set(self._columns):
            known = ", ".join(self._columns[len(RECORDED) : -len(LOST)]) or "there are none"
            raise ValueError(f"fed.record: {min(unknown)} is not among the client_metrics of the method: {known}")
        rows = np.searchsorted(self.cohort.clients, block.clients)
        for name, value in values.items():
            column = self._columns.index(name)
            self._records[rows, column] = value
            self._known[rows, column] = 1

    def record_work(self, block: Block, work: Work, lost: Mapping[int, tuple[int, float]]) -> None:
        """Record that a block was trained. Steps and seconds add up over several trainings of the round.

        Args:
            lost: for each client that has just diverged, an element of its model that is not finite, and its value.
        """
        self.add_steps(block, work.steps, work.seconds)
        diverged = [client in block.diverged for client in block.clients.tolist()]
        self.record(block, {"rank": self._world.rank, "samples": block.samples, "loss": work.loss})
        self.record(block, {"diverged": diverged})
        for client, found in lost.items():
            row = np.searchsorted(self.cohort.clients, client)
            self._records[row, [self._columns.index(name) for name in LOST]] = found

    def add_steps(self, block: Block, steps: NDArray[np.int64], seconds: NDArray[np.float64]) -> None:
        """Add steps [K] and seconds [K] to those of a block's clients in this round."""
        rows = np.searchsorted(self.cohort.clients, block.clients)
        done, took = self._columns.index("steps"), self._columns.index("seconds")
        self._spent["clients"] += int((self._known[rows, done] == 0).sum())
        self._records[rows, done] += steps
        self._records[rows, took] += seconds
        self._known[rows[:, None], [done, took]] = 1

    def predict(self, seconds: NDArray[np.float64]) -> None:
        """Add the expected time of the ranks that train [workers] for their clients."""
        self._predicted[list(self._world.workers)] += seconds

    def observe(self, seconds: float, sums: Mapping[str, float]) -> None:
        """Add the time that this rank spent on its clients, and the values that the placement learns from."""
        self._spent["client_seconds"] += seconds
        for name, value in sums.items():
            self._spent[name] += value

    @property
    def observed(self) -> NDArray[np.float64]:
        """[workers, OBSERVED], known at the end of the round."""
        return self._ranks[list(self._world.workers), len(SPENT) : -len(ASKED)]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of a block of code to this rank's time, unless the block lies within another timed one."""
        if self._is_timing:
            yield
            return
        started, self._is_timing = time.perf_counter(), True
        yield
        self._spent[name] += time.perf_counter() - started
        self._is_timing = False

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Add the time of a block of code, without waiting, transfers and teachers, to the server's time."""
        started, elsewhere = time.perf_counter(), self._elsewhere
        yield
        self._spent["server_seconds"] += time.perf_counter() - started - (self._elsewhere - elsewhere)

    @property
    def _elsewhere(self) -> float:
        return self._world.waiting.seconds + self._world.transferred + self._spent["teacher_seconds"]

    def gather(self) -> dict[str, NDArray[np.float64]]:
        """All clients' records: name -> [m] in the order of the cohort, on every rank; NaN if there is none.

        Values that are recorded later, on another rank than the first, are lost. A collective.

        Raises:
            Diverged: the training of all clients with weight has diverged.
        """
        if not self._gathered:
            self._world.sum(self._of_clients)
            self._gathered = True
            self._check_records()
        records = self._by_name()
        self._check_left(records)
        return records

    def ask(self, status: int, checkpoint: bool, hearing: bool) -> None:
        """Request what `Outcome` says. The highest status of all ranks is used."""
        self._spent |= {"status": status, "checkpoint": checkpoint, "hearing": hearing}

    def close(
        self,
        bytes_up: int,
        of_workers: Mapping[str, NDArray[np.float64]],
        malicious: NDArray[np.bool_] | None,
        energy: Energy,
    ) -> Outcome:
        """End the round; a collective.

        Args:
            bytes_up: bytes that this rank's clients sent to means.
            of_workers: further columns [workers] of /ranks.
            malicious: [clients] whether a client is malicious; None: none is.
            energy: what this rank's counters of energy say.

        Raises:
            Diverged: as `gather`.
        """
        self._spent["wait_seconds"] = self._world.waiting.seconds - self._waited
        self._spent["communication_seconds"] = self._world.transferred - self._transferred
        self._spent["bytes_up"] = self.bytes_up + bytes_up
        self._spent |= energy.spent()
        self._ranks[self._world.rank] = list(self._spent.values())
        self._world.sum(self._ranks if self._gathered else self._counted)
        self._check_records()
        records = self._by_name()
        self._check_left(records)
        ranks = dict(zip(self._spent, self._ranks.T, strict=True))
        asked = int(ranks["status"].max()), bool(ranks["checkpoint"].any()), bool(ranks["hearing"].any())
        by_rank = {**self._columns_of_ranks(ranks, of_workers), **{kind: ranks[kind] for kind in energy.measured}}
        by_client = self._columns_of_clients(records, malicious)
        row = self._row(ranks, records)
        row |= {kind: float(ranks[kind][holders].sum()) for kind, holders in energy.complete.items()}
        return Outcome(row, by_client, by_rank, self.evaluation, self.clusters, self.fine_tuned, *asked)

    def _row(
        self, ranks: Mapping[str, NDArray[np.float64]], records: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, float]:
        workers = list(self._world.workers)
        row = {
            "round": self.round,
            "train_loss": self._train_loss(records),
            **{name: float(ranks[name][workers].mean()) for name in SPENT_BY_WORKERS},
            "bytes_up": int(ranks["bytes_up"].sum()),
            "bytes_down": self.bytes_down + self._plan.bytes_lost,
            "diverged_clients": int(np.nansum(records["diverged"])),
        }
        measured = self.evaluation.columns if self.evaluation is not None else {}
        own = {*row, *measured, *self._averaged, *self._plan.row, "seconds", "teacher_seconds", "server_seconds"}
        _refuse([name for name in self._logged if name in own], "fed.log", "rounds")
        row |= self._logged
        for name in self._averaged:
            known = records[name][~np.isnan(records[name])]
            row[name] = float(known.mean()) if len(known) else math.nan
        if ranks["server_seconds"].any():
            row["teacher_seconds"] = float(ranks["teacher_seconds"][workers].mean())
            row["server_seconds"] = float(ranks["server_seconds"][0])
        return {**row, **measured, **self._plan.row, "seconds": time.perf_counter() - self._began}

    def _columns_of_clients(
        self, records: Mapping[str, NDArray[np.float64]], malicious: NDArray[np.bool_] | None
    ) -> dict[str, NDArray]:
        found = {
            "round": np.full(len(self.cohort), self.round),
            "client": self.cohort.clients,
            **{name: _whole(column) if name in COUNTS else column for name, column in records.items()},
            **self._plan.clients,
        }
        return found if malicious is None else {**found, "malicious": malicious[self.cohort.clients].astype(np.int64)}

    def _columns_of_ranks(
        self, ranks: Mapping[str, NDArray[np.float64]], of_workers: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, NDArray]:
        found = {
            "round": np.full(self._world.size, self.round),
            "rank": np.arange(self._world.size),
            "busy_seconds": np.sum([ranks[name] for name in BUSY], axis=0),
            "wait_seconds": ranks["wait_seconds"],
            "clients": ranks["clients"].astype(np.int64),
            "client_seconds": ranks["client_seconds"],
            "predicted_seconds": self._predicted,
        }
        for name, values in of_workers.items():
            found[name] = np.full(self._world.size, np.nan)
            found[name][list(self._world.workers)] = values
        return found

    def _mass_left(self, records: Mapping[str, NDArray[np.float64]]) -> NDArray[np.int64]:
        """[m], weight of each client in the round; 0 if its training diverged."""
        return np.where(records["diverged"] == 1, 0, self.cohort.mass)

    def _train_loss(self, records: Mapping[str, NDArray[np.float64]]) -> float:
        """The mean loss of the clients that were trained; NaN if there were none."""
        cohort = replace(self.cohort, mass=np.where(records["steps"] > 0, self._mass_left(records), 0))
        return _weighted(records["loss"], cohort.weights)

    def _check_records(self) -> None:
        """Raise RuntimeError if the method has recorded the same value on several ranks: they were added up."""
        for row, column in np.argwhere(self._known[:, len(RECORDED) :] > 1):
            name, client = self._columns[len(RECORDED) + column], self.cohort.clients[row]
            raise RuntimeError(
                f"{name} of client {client} was recorded on several ranks: record it where the client is trained,"
                " or only at the server (fed.is_server)"
            )

    def _check_left(self, records: Mapping[str, NDArray[np.float64]]) -> None:
        if self.cohort.total_mass and not self._mass_left(records).any():
            count = np.count_nonzero(self.cohort.mass)
            row = np.flatnonzero(records["diverged"] == 1)[0]
            at, value = self._records[row, [self._columns.index(name) for name in LOST]]
            found = f"{self._name_at(int(at))} of client {self.cohort.clients[row]} is {value:g}"
            raise Diverged(f"the training of all {count} clients diverged, {found}; {REMEDY}")

    def _by_name(self) -> dict[str, NDArray[np.float64]]:
        records = np.where(self._known > 0, self._records, np.nan)
        return {name: column for name, column in zip(self._columns, records.T, strict=True) if name not in LOST}


def _refuse(names: Sequence[str], given: str, table: str) -> None:
    """Raise ValueError for columns of a method that would replace fedmpi's own."""
    if names:
        raise ValueError(f"{given}: /{table} has a column {names[0]} already: choose another name")


def _whole(column: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.where(np.isnan(column), MISSING, column).astype(np.int64)


def _weighted(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """A weighted mean with exact summation, so that the order does not matter; NaN if there are no clients."""
    if not weights.any():
        return math.nan
    return math.fsum(np.where(weights, values * weights, 0).tolist())
