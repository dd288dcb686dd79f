"""The schedule of asynchronous training: who trains when, from which version, and in which order updates arrive.

It is a queue of events on the virtual clock. Times are whole ticks (`clock.TICKS`), and how long a job takes is known
before it is trained. So the schedule is a pure function of the settings, the same on every rank. Clients are trained
later, when their updates arrive. FedScale (Lai et al., 2022) also draws a schedule before it trains.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi import randomness
from fedmpi.checksum import checksum
from fedmpi.errors import BadInput, named, require
from fedmpi.policies.availability import Availability
from fedmpi.policies.clock import TICKS
from fedmpi.policies.conditions import Conditions, Fate, JobCosts, RoundPlan
from fedmpi.policies.sampling import (
    All,
    Bernoulli,
    Cohort,
    Pool,
    PowerOfChoice,
    RoundRobin,
    Sampler,
    Stratified,
    Weighted,
    Weighting,
    masses,
)

#: Samplers that cannot choose clients for free slots, and why.
REFUSED: Mapping[type[Sampler], str] = {
    PowerOfChoice: "the schedule would depend on training",
    Bernoulli: "it draws no fixed number of clients",
    All: "that is --algorithm.concurrency equal to --clients",
    Weighted: "it draws a client more than once",
    RoundRobin: "clients are chosen one at a time",
    Stratified: "clients are chosen one at a time",
}


def check_asynchronous(
    concurrency: int, clients: int, buffer: int, sampler: Sampler, conditions: Conditions, weighting: Weighting
) -> None:
    """Raise BadInput if settings cannot be combined with asynchronous training.

    Args:
        concurrency: number of clients that train at the same time.
        buffer: arrivals per server update.
    """
    most = f"at most the number of clients, {clients}"
    require(concurrency <= clients, "algorithm.concurrency", concurrency, most)
    for cls, reason in REFUSED.items():
        if isinstance(sampler, cls):
            raise BadInput(f"= {named(sampler)}: cannot be combined with an asynchronous method: {reason}", "sampler")
    conditions.check_asynchronous()
    if buffer == 1:
        require(weighting == "uniform", "weighting", weighting, "uniform where each arrival is a server update")
    else:
        allowed = "uniform or samples, because the probability that an update is used is not known"
        require(weighting != "horvitz_thompson", "weighting", weighting, allowed)


@dataclass(frozen=True)
class Arrivals(Cohort):
    """The clients whose updates arrive in a row of the schedule: what a cohort is in synchronous training.

    Attributes:
        version: [m] int64, the server's version that each client started from: the number of server updates so far.
        staleness: [m] int64, the server updates between the client's start and its arrival.
        order: [m] int64, the place of each client's arrival among those of the row, from 0.
        seconds: [m] float64, virtual seconds that each client's job took.
        arrived_at: [m] float64, virtual time of each arrival since the start of the run.
        needed_versions: [v] int64, ascending: versions that jobs in flight at the end of the row have started from,
            and the present one. No other version is needed after the row.
        columns: values for /rounds.
        bytes_lost: bytes received by clients whose updates were lost or too old.
    """

    version: NDArray[np.int64] = field(kw_only=True)
    staleness: NDArray[np.int64] = field(kw_only=True)
    order: NDArray[np.int64] = field(kw_only=True)
    seconds: NDArray[np.float64] = field(kw_only=True)
    arrived_at: NDArray[np.float64] = field(kw_only=True)
    needed_versions: NDArray[np.int64] = field(kw_only=True)
    columns: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    bytes_lost: int = field(default=0, kw_only=True)

    @property
    def number(self) -> NDArray[np.int64]:
        """[m] the server's version when each update arrives."""
        return self.version + self.staleness

    @property
    def checksum(self) -> int:
        return checksum(super().checksum, self.version, self.staleness, self.order, self.seconds)

    @property
    def plan(self) -> RoundPlan:
        """The row as the plan of a round."""
        clients = {
            "start_version": self.version,
            "staleness": self.staleness,
            "virtual_seconds": self.seconds,
            "arrival": self.order,
            "arrived_at": self.arrived_at,
        }
        columns = {name: values.astype(np.float64) for name, values in clients.items()}
        return RoundPlan(self, dict(self.columns), columns, self.bytes_lost)

    def subset(self, positions: NDArray[np.int64]) -> Arrivals:
        """The members at these positions."""
        names = ("clients", "samples", "mass", "version", "staleness", "order", "seconds", "arrived_at")
        return replace(self, **{name: getattr(self, name)[positions] for name in names})

    def waves(self) -> Iterator[Arrivals]:
        """Split the row, in the order of arrival, into parts whose start versions exist when the part begins.

        The clients of a part can be trained side by side. Where a row is one server update, it is one part.
        """
        by_order = np.argsort(self.order)
        begin = 0
        while begin < len(self):
            rest = by_order[begin:]
            too_new = np.flatnonzero(self.version[rest] > self.number[rest[0]])
            count = int(too_new[0]) if len(too_new) else len(rest)
            yield self.subset(np.sort(rest[:count]))
            begin += count


class Job(NamedTuple):
    """A client's job; jobs are sorted by their end, then by client. A client has one job at a time.

    Attributes:
        end, began: ticks.
        version: the server's version that the client starts from.
    """

    end: int
    client: int
    version: int
    began: int
    fate: Fate


class State(NamedTuple):
    """How far a schedule has come: by these numbers a replay is compared.

    Attributes:
        now: tick.
        events: how often clients were chosen.
        arrivals: number of arrivals.
    """

    now: int
    events: int
    arrivals: int


@dataclass(kw_only=True, eq=False)
class Timeline:
    """The schedule, row by row. `check_asynchronous` has accepted its settings.

    Args:
        concurrency: number of clients that train at the same time.
        cohort: most arrivals per row.
        buffer: arrivals per server update: 1, or the cohort.
        weighting: uniform or samples.
        pool: all clients, with their samples.
        costs: of one job of each client.
        seed: of the experiment.
        max_staleness: an update that is older when it arrives is discarded; None: none is.

    Attributes:
        rows: number of rows so far.
        version: number of server updates so far.
    """

    concurrency: int
    cohort: int
    buffer: int
    sampler: Sampler
    conditions: Conditions
    availability: Availability
    weighting: Weighting
    pool: Pool
    costs: JobCosts
    seed: int
    max_staleness: int | None = None
    rows: int = field(default=0, init=False)
    version: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._clients = len(self.pool.samples)
        self._job = self.conditions.job(self.costs, self.seed)
        self._now = self._row_end = 0  # ticks
        self._events = self._arrivals = 0
        self._is_due = True  # whether free slots are to be filled before the next job ends
        self._heap: list[Job] = []
        self._ahead: Job | None = None  # an arrival that was taken from the heap, but not yet for a row
        self._is_free = self.pool.samples > 0  # clients with samples that are neither in flight nor in the buffer
        self._buffered: list[int] = []
        self._jobs = np.zeros(self._clients, dtype=np.int64)  # number of jobs of each client so far
        self._present = np.ones(self._clients, dtype=bool)
        self._present_in = -1
        self._lost = {"discarded": 0, "dropped": 0, "late": 0}
        self._bytes_lost = 0

    @property
    def state(self) -> State:
        """How far the schedule has come."""
        return State(self._now, self._events, self._arrivals)

    def row(self, number: int) -> Arrivals:
        """The arrivals of a row; rows before it that were not asked for are computed first.

        Args:
            number: of the row, from 1; above that of the last call.
        """
        if number <= self.rows:
            raise ValueError(f"row {number} is over")
        while self.rows < number:
            arrivals = self._next_row()
        return arrivals

    def _next_row(self) -> Arrivals:
        self.rows += 1
        self._lost = dict.fromkeys(self._lost, 0)
        self._bytes_lost = 0
        taken: dict[int, tuple[Job, int]] = {}
        while len(taken) < self.cohort and (job := self._peek()) is not None:
            if job.client in taken:
                break
            self._ahead = None
            taken[job.client] = job, self.version - job.version
            if self.buffer == 1:
                self.version += 1
            else:
                self._is_free[job.client] = False
                self._buffered.append(job.client)
        if self.buffer > 1 and taken:
            self.version += 1
            self._is_free[self._buffered] = True
            self._buffered = []
        self._arrivals += len(taken)
        return self._made(taken)

    def _made(self, taken: Mapping[int, tuple[Job, int]]) -> Arrivals:
        places = {client: place for place, client in enumerate(taken)}
        clients = sorted(taken)
        jobs, staleness = [taken[client][0] for client in clients], [taken[client][1] for client in clients]
        before, self._row_end = self._row_end, max((job.end for job in jobs), default=self._now)
        flying = [job.version for job in (*self._heap, *filter(None, [self._ahead]))]
        numbers = np.array(clients, dtype=np.int64)
        samples = self.pool.samples[numbers]
        columns = {
            "virtual_seconds": (self._row_end - before) / TICKS,
            "staleness_mean": float(np.mean(staleness)) if staleness else np.nan,
            "staleness_max": max(staleness, default=np.nan),
            "version": self.version,
            "updates": len(jobs),
            "in_flight": len(flying),
            "versions_in_flight": len(set(flying)),
            **self._lost,
        }
        arrivals = Arrivals(
            numbers,
            samples,
            masses(samples, self.weighting),
            version=np.array([job.version for job in jobs], dtype=np.int64),
            staleness=np.array(staleness, dtype=np.int64),
            order=np.array([places[client] for client in clients], dtype=np.int64),
            seconds=np.array([(job.end - job.began) / TICKS for job in jobs]),
            arrived_at=np.array([job.end / TICKS for job in jobs]),
            needed_versions=np.array(sorted({*flying, self.version}), dtype=np.int64),
            bytes_lost=self._bytes_lost,
        )
        waves = sum(1 for _ in arrivals.waves())
        return replace(arrivals, columns={**columns, "waves": waves})

    def _peek(self) -> Job | None:
        """The next arrival; None: there is none, or there were as many events in turn without one as clients."""
        for _ in range(self._clients):
            if self._ahead is not None:
                break
            if self._is_due:
                self._fill()
            while self._heap and (later := self._next_comer()) is not None and later < self._heap[0].end:
                self._now = later
                self._fill()
            if self._heap:
                self._end_first()
            else:
                self._is_due = True
                later = self.availability.arrival(self._now, self._is_free, self.seed)
                if later is None:
                    break
                self._now = later
        return self._ahead

    def _next_comer(self) -> int | None:
        """When the next client comes for whom a slot is free; None: there is no such client, or no such slot."""
        if not self.availability.by_clock or len(self._heap) >= self.concurrency:
            return None
        return self.availability.arrival(self._now, self._is_free, self.seed)

    def _end_first(self) -> None:
        """End the first job in the heap."""
        job = heapq.heappop(self._heap)
        self._now = job.end
        self._is_free[job.client] = True
        self._is_due = not self._heap or self._heap[0].end > self._now  # all jobs that end now come first
        most = self.max_staleness
        if job.fate == "arrives" and (most is None or self.version - job.version <= most):
            self._ahead = job
        else:
            self._lost["discarded" if job.fate == "arrives" else job.fate] += 1
            self._bytes_lost += int(self.costs.down[job.client])

    def _fill(self) -> None:
        """Choose clients for all free slots, and start their jobs."""
        self._events += 1
        self._is_due = False
        able = np.flatnonzero(self._is_free & self._reachable())
        size = min(self.concurrency - len(self._heap), len(able))
        if not size:
            return
        stream = randomness.stream(self.seed, "cohort", self._events)
        drawn = self.sampler.drawn(self._events, size, Pool(self.pool.samples, self.pool.count_labels, able), stream)
        for client in sorted(list(dict.fromkeys(drawn.tolist()))[:size]):
            self._is_free[client] = False
            self._jobs[client] += 1
            ticks, fate = self._job(client, int(self._jobs[client]))
            if self.availability.interrupts:
                leaves = self.availability.departure(client, self._now, self._clients, self.seed)
                if leaves is not None and leaves < self._now + ticks:
                    ticks, fate = leaves - self._now, "dropped"
            heapq.heappush(self._heap, Job(self._now + ticks, client, self.version, self._now, fate))

    def _reachable(self) -> NDArray[np.bool_]:
        """[clients] whether each client can be reached in this row, or now."""
        when = self._now if self.availability.by_clock else self.rows
        if when != self._present_in:
            self._present = self.availability.reachable(when, self._clients, self.seed)
            self._present_in = when
        return self._present
