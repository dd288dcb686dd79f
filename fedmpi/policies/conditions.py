"""System heterogeneity: how long the asked clients take in virtual time, and which updates arrive.

Everything is decided before training, from (seed, round, client) and the cost of a round. So every rank decides the
same without communication, and real time has no influence. A client whose update does not arrive is not trained at
all, because neither its update nor its state would be used.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmpi import randomness
from fedmpi.errors import BadInput, named, require
from fedmpi.options import Configured, with_options
from fedmpi.policies.clock import TICKS, to_ticks
from fedmpi.policies.sampling import Cohort
from fedmpi.policies.traces import read_table
from fedmpi.ranges import PositiveFloat, Probability, interval
from fedmpi.training.settings import LocalTraining


@dataclass(frozen=True)
class RoundPlan:
    """What happens in a round.

    Attributes:
        cohort: the clients whose updates arrive.
        row: columns for /rounds.
        clients: columns [m] for /clients.
        bytes_lost: bytes received by clients whose updates are not used.
    """

    cohort: Cohort
    row: dict[str, float] = field(default_factory=dict)
    clients: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    bytes_lost: int = 0


class Workload(Protocol):
    """The work of the coming round.

    Attributes:
        round: its number.
        clients: number of all clients.
        epochs: number of epochs of local training, of which a straggler may do only some; steps, if --local.steps is
            given.
        accepts_partial_work: whether the method uses the partial updates of stragglers.
    """

    round: int
    clients: int
    epochs: int
    accepts_partial_work: bool

    def work(self, cohort: Cohort) -> NDArray[np.float64]:
        """[m] computation of each client, in steps of plain training."""

    def payload(self, cohort: Cohort) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[m] bytes that each client receives, and sends."""


#: What becomes of a client's job: its update arrives, the client drops out, or it takes longer than the deadline.
Fate = Literal["arrives", "dropped", "late"]
#: (client, number of the client's jobs so far, from 1) -> the ticks (`clock.TICKS`) after which the client is free
#: again, at least 1, and the job's fate.
Job = Callable[[int, int], tuple[int, Fate]]


@dataclass(frozen=True)
class JobCosts:
    """What one job of each client costs, in asynchronous training.

    Attributes:
        work: [clients] float64, computation in steps of plain training.
        down, up: [clients] int64, bytes that the client receives, and sends.
    """

    work: NDArray[np.float64]
    down: NDArray[np.int64]
    up: NDArray[np.int64]


class Conditions(metaclass=Configured):
    """Base of the classes for simulated conditions."""

    def check(self, clients: int, local: LocalTraining) -> None:
        """Raise BadInput if the options do not fit this number of clients or these settings of local training."""

    def check_asynchronous(self) -> None:
        """Raise BadInput if the options cannot be combined with asynchronous training."""
        raise BadInput(f"= {named(self)}: says nothing about jobs of asynchronous training", "conditions")

    def asked(self, cohort: int) -> int:
        """Number of clients that are asked for a cohort of this size."""
        return cohort

    def arrival(self, asked: int, accepts_partial_work: bool) -> float | None:
        """Probability that the update of an asked client is used; None: it is not the same for all of them.

        Args:
            accepts_partial_work: whether the method uses the partial updates of stragglers.
        """
        return None

    @abstractmethod
    def plan(self, asked: Cohort, size: int, workload: Workload, seed: int) -> RoundPlan:
        """What happens to the asked clients in the current round; a pure function, the same on every rank.

        Args:
            size: of the cohort, as the user set it.
        """

    def job(self, costs: JobCosts, seed: int) -> Job:
        """How long the jobs of asynchronous training take, and which arrive: a pure function of client and number.

        A method that is asynchronous calls `check_asynchronous` first.
        """
        raise NotImplementedError


class Ideal(Conditions):
    """Every update arrives, and there is no virtual clock. In asynchronous training every job takes a second."""

    def check_asynchronous(self) -> None:
        pass

    def arrival(self, asked: int, accepts_partial_work: bool) -> float:
        return 1.0

    def job(self, costs: JobCosts, seed: int) -> Job:
        return lambda client, number: (TICKS, "arrives")

    def plan(self, asked: Cohort, size: int, workload: Workload, seed: int) -> RoundPlan:
        return RoundPlan(asked)


@dataclass(frozen=True)
class Profile:
    """Speed of clients: [m] virtual seconds per step, and bytes per virtual second down and up."""

    seconds_per_step: NDArray[np.float64]
    download: NDArray[np.float64]
    upload: NDArray[np.float64]

    def seconds(
        self, work: NDArray[np.float64], down: NDArray[np.int64], up: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """[m] virtual seconds that the clients need for this work and these bytes."""
        return down / self.download + work * self.seconds_per_step + up / self.upload


#: The option of `Trace` that names its file.
PATH = "conditions.path"
#: A standard deviation of a logarithm.
Spread = Annotated[float, interval("[0, 10]", "between 0 and 10")]


@with_options
class OnVirtualClock(Conditions):
    """Clients of different speed on a virtual clock; some drop out, come late, or do only a part of their work.

    A client takes bytes down / download + work seconds_per_step + bytes up / upload virtual seconds. Each client has
    its own three rates for the whole experiment. Work is the number of optimizer steps in all trainings of the client
    in the round. Other computation of a method counts as additional steps; a forward pass counts as a third of a
    step. A round takes as long as the slowest update that is used. If fewer updates come than were waited for, and
    there is a deadline, the round ends at the deadline.

    Args:
        dropout: probability that a client drops out between receiving the model and sending its update.
        deadline: virtual seconds per round after which updates are not used; null: wait for all. In asynchronous
            training: virtual seconds after which a client's job is given up.
        over_select: factor by which more clients than the cohort are asked. The first updates that make up a cohort
            are used.
        stragglers: share of the asked clients that do only a part of their epochs (of --local.steps, if given): a
            random number, at least one. Methods that accept partial work use it, others drop it (Li et al.: FedProx,
            2020).
    """

    dropout: Probability = 0.0
    deadline: PositiveFloat | None = None
    over_select: Annotated[float, interval("[1, inf)")] = 1.0
    stragglers: Probability = 0.0

    def check(self, clients: int, local: LocalTraining) -> None:
        parts = local.steps or local.epochs
        option = "local.steps" if local.steps else "local.epochs"
        require(not self.stragglers or parts >= 2, option, parts, "at least 2 with stragglers")

    def check_asynchronous(self) -> None:
        reason = "with an asynchronous method"
        require(self.over_select == 1, "conditions.over_select", self.over_select, f"1 {reason}")
        require(self.stragglers == 0, "conditions.stragglers", self.stragglers, f"0 {reason}")

    @abstractmethod
    def profile(self, clients: NDArray[np.int64], of: int, seed: int) -> Profile:
        """The profile of these clients, out of a given number."""

    def asked(self, cohort: int) -> int:
        return math.ceil(self.over_select * cohort - 1e-9)  # 1.1 times 10 is a bit more than 11

    def arrival(self, asked: int, accepts_partial_work: bool) -> float | None:
        if self.deadline is not None or self.over_select > 1:
            return None  # fast clients are used more often
        dropped = 0 if accepts_partial_work else self._count_stragglers(asked)
        return (1 - self.dropout) * (1 - dropped / max(asked, 1))

    def plan(self, asked: Cohort, size: int, workload: Workload, seed: int) -> RoundPlan:
        asked, straggles = self._hold_up(asked, workload, seed)
        profile, (down, up) = self.profile(asked.clients, workload.clients, seed), workload.payload(asked)
        seconds = profile.seconds(workload.work(asked), down, up)

        dropped = randomness.uniform(seed, "dropout", workload.round, asked.clients) < self.dropout
        deadline = self.deadline or math.inf
        arrives = ~dropped & (seconds <= deadline)
        if not workload.accepts_partial_work:
            arrives &= ~straggles
        wanted = min(size, len(asked)) if self.over_select > 1 else len(asked)
        in_order = np.argsort(seconds, kind="stable")
        used = np.sort(in_order[arrives[in_order]][:wanted])

        waits_in_vain = len(used) < wanted and deadline < math.inf
        row = {
            "virtual_seconds": deadline if waits_in_vain else float(seconds[used].max(initial=0)),
            "selected": len(asked),
            "dropped": int(dropped.sum()),
            "late": len(asked) - int(dropped.sum()) - len(used),
            "stragglers": int(straggles.sum()),
        }
        bytes_lost = int(down.sum() - down[used].sum())
        return RoundPlan(asked.subset(used), row, {"virtual_seconds": seconds[used]}, bytes_lost)

    def job(self, costs: JobCosts, seed: int) -> Job:
        profile = self.profile(np.arange(len(costs.work)), len(costs.work), seed)
        lengths = np.maximum(to_ticks(profile.seconds(costs.work, costs.down, costs.up)), 1)
        timeout = math.inf if self.deadline is None else max(int(to_ticks(self.deadline)), 1)

        def job(client: int, number: int) -> tuple[int, Fate]:
            ticks = int(lengths[client])
            fate: Fate = "arrives" if ticks <= timeout else "late"
            if self.dropout and randomness.uniform(seed, "dropout", number, client) < self.dropout:
                fate = "dropped"
            return int(min(ticks, timeout)), fate

        return job

    def _hold_up(self, asked: Cohort, workload: Workload, seed: int) -> tuple[Cohort, NDArray[np.bool_]]:
        """The cohort with the work that each client gets done, and [m] whether it is a straggler."""
        straggles = np.zeros(len(asked), dtype=bool)
        if not self.stragglers:
            return asked, straggles
        lots, draws = (
            randomness.uniform(seed, purpose, workload.round, asked.clients)
            for purpose in ("stragglers", "partial work")
        )
        straggles[np.argsort(lots, kind="stable")[: self._count_stragglers(len(asked))]] = True
        parts = workload.epochs
        done = 1 + np.floor(draws * (parts - 1))
        return replace(asked, completed=np.where(straggles, done / parts, 1.0)), straggles

    def _count_stragglers(self, asked: int) -> int:
        return round(self.stragglers * asked)


@with_options
class DrawnSpeeds(OnVirtualClock):
    """Clients on a virtual clock whose three rates are drawn.

    Args:
        seconds_per_step: virtual seconds per step of plain training, for the median client.
        download: bytes per virtual second that the median client receives.
        upload: bytes per virtual second that the median client sends.
        bandwidth_spread: standard deviation over clients of the logarithms of download and upload.
    """

    seconds_per_step: PositiveFloat = 0.05
    download: PositiveFloat = 2e6
    upload: PositiveFloat = 5e5
    bandwidth_spread: Spread = 0.5

    def profile(self, clients: NDArray[np.int64], of: int, seed: int) -> Profile:
        """The profile of these clients, out of a given number."""
        slowness = self.slowness(clients, of, seed)
        rates = (
            median * np.exp(self.bandwidth_spread * standard_normal(seed, purpose, of)[clients])
            for purpose, median in (("download", self.download), ("upload", self.upload))
        )
        return Profile(self.seconds_per_step * slowness, *rates)

    @abstractmethod
    def slowness(self, clients: NDArray[np.int64], of: int, seed: int) -> NDArray[np.float64]:
        """[m] the seconds per step of these clients, out of a given number, in times of the median client's."""


@with_options
class Heterogeneous(DrawnSpeeds):
    """Clients of different speed on a virtual clock; some drop out, come late, or do only a part of their work.

    Each client's three rates are drawn from lognormal distributions around the values given here.

    Args:
        speed_spread: standard deviation of the logarithm of seconds_per_step over clients; 0: all clients are equal.
    """

    speed_spread: Spread = 0.5

    def slowness(self, clients: NDArray[np.int64], of: int, seed: int) -> NDArray[np.float64]:
        return np.exp(self.speed_spread * standard_normal(seed, "seconds per step", of)[clients])


@with_options
class Trace(OnVirtualClock):
    """Clients with the measured speeds of a file, on a virtual clock; else as Heterogeneous.

    Args:
        path: CSV file with the columns client, seconds_per_step (virtual seconds per step of plain training),
            download and upload (bytes per virtual second). Without the column client, each client gets the speeds of
            a line that is drawn for it.
    """

    path: Path = field(kw_only=True)

    def __post_init__(self) -> None:
        rates = tuple(one.name for one in fields(Profile))
        self._table = table = read_table(self.path, ("client", *rates), optional=("client",))
        for name in rates:
            table.refuse(table.columns[name] <= 0, name, "above 0")

    def check(self, clients: int, local: LocalTraining) -> None:
        super().check(clients, local)
        numbers = self._table.columns.get("client")
        if numbers is None:
            return
        self._table.refuse(numbers >= clients, "client", f"below the number of clients, {clients}", PATH)
        first = np.unique(numbers, return_index=True)[1]
        again = ~np.isin(np.arange(len(numbers)), first)
        self._table.refuse(again, "client", "on one line only", PATH)
        for missing in np.setdiff1d(np.arange(clients), numbers)[:1]:
            raise BadInput(f"= {self.path}: client {missing} is missing: must have all {clients} clients", PATH)

    def profile(self, clients: NDArray[np.int64], of: int, seed: int) -> Profile:
        columns = self._table.columns
        if "client" in columns:
            lines = np.argsort(columns["client"])[clients]
        else:
            lines = (randomness.uniform(seed, "device", 0, clients) * len(self._table)).astype(np.int64)
        return Profile(*(columns[one.name][lines] for one in fields(Profile)))


@cache
def standard_normal(seed: int, purpose: str, clients: int) -> NDArray[np.float64]:
    """[clients] standard normal numbers. A client's numbers do not depend on how many others there are."""
    return randomness.stream(seed, purpose).standard_normal(clients)
