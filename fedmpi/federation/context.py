"""State that the parts of a federation share: what is fixed for the whole experiment, and the current round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness
from fedmpi.arrays import read_only
from fedmpi.data import Split
from fedmpi.errors import BadInput, named
from fedmpi.federation.adversary import Adversary
from fedmpi.federation.client_state import INTERNAL, StateKeeper
from fedmpi.federation.energy import Energy
from fedmpi.federation.evaluation import Evaluator
from fedmpi.federation.ledger import Ledger
from fedmpi.federation.mean import Arrive, WeightedMean
from fedmpi.federation.placement import CostModel
from fedmpi.federation.uplink import Uplink
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort
from fedmpi.policies.compression import Compression
from fedmpi.policies.privacy import NoPrivacy, Privacy, Released
from fedmpi.policies.sampling import Weighting, masses
from fedmpi.training.block import Block
from fedmpi.training.flat import FlatModel
from fedmpi.training.layout import Columns, Layout
from fedmpi.training.samples import Samples
from fedmpi.training.trainer import Trainer


class Observer(Protocol):
    """Is given the models that clients have trained, on the ranks that trained them."""

    def trained(self, block: Block, weights: Tensor) -> None:
        """Called when these clients have trained these models [K, P]. The next training overwrites their memory."""


@dataclass
class Round:
    """State of one round.

    Attributes:
        number: of the round. The first is 1; 0 is the time before it.
        activity: what this rank is doing, for failure reports.
        purpose, seedings: purpose of the current random numbers, and how often the generators were seeded for it.
        uplinks: number of kinds of vectors that clients have sent so far.
        observers: observers of the models trained in this round.
        observed: clients whose models were shown to observers.
        unobserved: a block of clients and what they have trained in a phase with a name, perhaps not their last.
        has_idled: whether the server has done its work for the time in which others train.
        began: start of the round, by `time.perf_counter`.
        ledger: record of the work; it exists as soon as clients are invited.
    """

    number: int = 0
    activity: str = "setting up"
    purpose: str = "setup"
    seedings: int = 0
    uplinks: list[Uplink] = field(default_factory=list)
    observers: list[Observer] = field(default_factory=list)
    observed: set[int] = field(default_factory=set)
    unobserved: tuple[Block, Tensor] | None = None
    has_idled: bool = False
    began: float = field(default_factory=time.perf_counter)
    ledger: Ledger = field(init=False)


def _nothing(*arguments: object) -> None:
    """The default of `when_idle` and `keep`: do nothing."""


@dataclass(kw_only=True, eq=False)
class Context:
    """State that the parts of a federation share.

    Args:
        world: the ranks.
        trainer, evaluator: of this rank.
        split: the samples of each client.
        count_labels: gives `label_counts`.
        train: the training samples of all clients.
        build: number -> a network with newly drawn weights, the same on every rank.
        rounds: number of rounds of the run.
        weighting: of clients in a mean.
        adversary: the malicious clients; None: all are honest.
        privacy: the privacy mechanism of the server.
        released: its cost so far.
        compression: of client updates.
        proxy: unlabelled samples of the server; None: none.
        seed: of the experiment.
        energy: the counters of energy that this rank reads.

    Attributes:
        states: vectors that clients keep between rounds.
        costs: model of the time that clients take.
        round: the current round.
        observers: observers of the models trained in all rounds.
        when_idle: called at the server once per round: while the others train, or at the end of the round if the
            server also trains.
        pause: called on every rank between two parts of long work outside of rounds.
        keep: (name, arrays by name), called at the server: stores the arrays as a group of the results file.
    """

    world: World
    trainer: Trainer
    evaluator: Evaluator
    split: Split
    count_labels: Callable[[], NDArray[np.int64]]
    train: Samples
    build: Callable[[int], FlatModel]
    rounds: int
    weighting: Weighting
    adversary: Adversary | None
    privacy: Privacy
    released: Released
    compression: Compression
    proxy: Samples | None
    seed: int
    energy: Energy
    round: Round = field(default_factory=Round, init=False)
    observers: list[Observer] = field(default_factory=list, init=False)
    when_idle: Callable[[], None] = field(default=_nothing, init=False)
    pause: Callable[[], None] = field(default=_nothing, init=False)
    keep: Callable[[str, Mapping[str, NDArray]], None] = field(default=_nothing, init=False)

    def __post_init__(self) -> None:
        self.states = StateKeeper(self.world, self.clients)
        self.costs = CostModel(len(self.world.workers), self.trainer.at_once)

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.split.samples)

    @cached_property
    def label_counts(self) -> NDArray[np.int64]:
        """[clients, strata] numbers of training samples by the labels that clients train on."""
        return read_only(self.count_labels())

    @cached_property
    def masses(self) -> NDArray[np.int64]:
        """[clients] weight of each client in a mean."""
        return read_only(masses(self.split.samples, self.weighting))

    @property
    def layout(self) -> Layout:
        """The positions of a model's tensors in its vector [P]."""
        return self.trainer.model.layout

    @property
    def device(self) -> torch.device:
        """Device of this rank's vectors."""
        return self.trainer.model.device

    @property
    def part(self) -> tuple[int, int]:
        """The number of this rank's part of some work, and the number of parts; for ranks that train."""
        return self.world.workers.index(self.world.rank), len(self.world.workers)

    # What is going on

    @contextmanager
    def doing(self, activity: str, block: Block | None = None) -> Iterator[None]:
        """Note the current activity for failure reports; reset it if the activity succeeds."""
        round = self.round
        before = round.activity
        round.activity = activity if block is None else f"{_named(block)}, {activity}"
        yield
        round.activity = before

    def be_idle(self) -> None:
        """Do the server's work for the time in which others train, once per round."""
        if self.world.is_server and not self.round.has_idled:
            self.round.has_idled = True
            with self.doing("writing results"):
                self.when_idle()

    def refuse_if_private(self, call: str) -> None:
        """Raise BadInput under `--privacy`, on every rank alike, for a call whose result no noise protects."""
        if not isinstance(self.privacy, NoPrivacy):
            allowed = "one fed.weighted_mean per round, which gets noise"
            with self.world.agreed():
                raise BadInput(f"= {named(self.privacy)}: {call} is not private: must be {allowed}", "--privacy")

    # What is drawn

    def reseed(self, purpose: str | None = None) -> None:
        """Seed the generators of `random`, `numpy.random` and `torch`.

        To be called on all ranks, which then draw the same.

        Called before a method's code runs, and after work that differs between ranks.

        Args:
            purpose: of the next random numbers in this round; None: the same purpose as before, with other numbers.
        """
        round = self.round
        round.purpose, round.seedings = (round.purpose, round.seedings + 1) if purpose is None else (purpose, 0)
        randomness.seed_globals(randomness.key(self.seed, f"own: {round.purpose}", round.number, round.seedings))

    def turn_to(self, client: int) -> None:
        """Seed the generators for one client, whose work this rank does next."""
        purpose = f"own: {self.round.purpose} {self.round.seedings}, a client"
        randomness.seed_globals(randomness.key(self.seed, purpose, self.round.number, client))

    # Vectors

    def distribute(self, vector: Tensor | Sequence[Tensor]) -> Tensor:
        """The server's `vector` (or a matrix of several) on every rank's device, read-only, until the round ends."""

        def mine(one: Tensor) -> NDArray:
            here = one.contiguous() if self.world.is_server else torch.empty(one.shape, dtype=one.dtype)
            return here.numpy()

        with self.doing("broadcast"):
            sent = mine(vector) if isinstance(vector, Tensor) else list(map(mine, vector))
            return torch.from_numpy(self.world.broadcast(sent)).to(self.device)

    def mean_over(
        self,
        cohort: Cohort,
        groups: int | None = None,
        columns: Columns = slice(None),
        expected_mass: float | None = None,
        uplink: Uplink | None = None,
        arrive: Arrive | None = None,
    ) -> WeightedMean:
        """An empty mean of vectors that are these columns of a model; arguments as for `WeightedMean`."""
        size, parameters = self.layout.extent(columns)
        return WeightedMean(
            self.world,
            parameters,
            size,
            cohort.total_mass,
            groups,
            self.device,
            expected_mass,
            uplink,
            arrive,
            lambda place: self.layout.name_at(place, columns),
        )

    def uplink(self, cohort: Cohort, start: Tensor | None, columns: Columns = slice(None)) -> Uplink:
        """The uplink for another kind of vector that the clients of the round send.

        Args:
            start: the received vector, if the vectors are models; None: they are changes.
            columns: the part of the model that the vectors hold.
        """
        if self.round.uplinks:  # of which clipping bounds each alone
            self.refuse_if_private("a second mean in a round")
        number, (_, parameters) = len(self.round.uplinks), self.layout.extent(columns)
        name = f"{INTERNAL}compression {number}"  # a method sends the same vectors in every round
        if name not in self.states.states and (count := self.compression.kept(parameters)):
            self.states.create(name, torch.zeros(count), self.device)
        uplink = Uplink(
            adversary=self.adversary,
            compression=self.compression,
            parameters=parameters,
            start=start,
            kept=self.states.states.get(name),
            cohort=cohort.clients,
            seed=self.seed,
            round=self.round.number,
            number=number,
            privacy=self.privacy,
            divisor=int(cohort.expected_mass or cohort.total_mass),
        )
        self.round.uplinks.append(uplink)
        return uplink

    # Clients

    def at_home(self) -> NDArray[np.int64]:
        """The clients whose states are on this rank.

        Clients without a state are distributed over the ranks that train.
        """
        workers = np.array(self.world.workers)
        everyone = np.arange(self.clients)
        home = self.states.home(everyone)
        return np.flatnonzero(np.where(home < 0, workers[everyone % len(workers)], home) == self.world.rank)

    def alone(self, client: int) -> Block:
        """A block of one client."""
        return self.block(np.array([client]))

    def block(self, clients: NDArray[np.int64]) -> Block:
        """A block of these clients, outside of a cohort."""
        samples = self.split.samples[clients]
        return Block(clients, samples, samples)


def _named(block: Block) -> str:
    shown = ", ".join(map(str, block.clients[:8]))
    more = f" and {len(block) - 8} more" if len(block) > 8 else ""
    return f"client {shown}" if len(block) == 1 else f"clients {shown}{more}"
