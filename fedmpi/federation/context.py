"""What the parts of a federation share: what is fixed for a whole experiment, and the round that is going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness
from fedmpi.data import Split
from fedmpi.federation.adversary import Adversary
from fedmpi.federation.client_state import StateKeeper
from fedmpi.federation.evaluation import Evaluator
from fedmpi.federation.ledger import Ledger
from fedmpi.federation.mean import WeightedMean
from fedmpi.federation.placement import CostModel
from fedmpi.federation.uplink import Uplink
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort
from fedmpi.policies.compression import Compression
from fedmpi.policies.privacy import Privacy, Released
from fedmpi.training.block import Block
from fedmpi.training.flat import FlatModel
from fedmpi.training.layout import Columns, Layout
from fedmpi.training.samples import Samples
from fedmpi.training.trainer import Trainer


class Observer(Protocol):
    """Hears of the models that clients have trained, where they were trained."""

    def trained(self, block: Block, weights: Tensor) -> None:
        """These clients have trained these models [K, P], whose memory the next training overwrites."""


@dataclass
class Round:
    """What belongs to one round, and ends with it.

    Attributes:
        number: rounds count from 1; 0 is what comes before the first one.
        activity: what this rank is doing, for the report of a failure.
        purpose, seedings: what is drawn at the moment, and how often the generators were seeded for it.
        uplinks: the kinds of vectors that clients have sent so far.
        observers: of what is trained in this round.
        has_idled: whether the server has done what it does while the others train.
        began: when it did, by `time.perf_counter`.
        ledger: what was done; there is one as soon as clients are invited.
    """

    number: int = 0
    activity: str = "setting up"
    purpose: str = "setup"
    seedings: int = 0
    uplinks: list[Uplink] = field(default_factory=list)
    observers: list[Observer] = field(default_factory=list)
    has_idled: bool = False
    began: float = field(default_factory=time.perf_counter)
    ledger: Ledger = field(init=False)


def _nothing(*arguments: object) -> None:
    """What the server does when it is idle, or is given something to keep, unless it is told otherwise."""


@dataclass(kw_only=True, eq=False)
class Context:
    """What the parts of a federation share.

    Args:
        world: the ranks.
        trainer, evaluator: this rank's.
        split: who has what.
        train: the training samples of all clients.
        build: number -> a network with freshly drawn weights, the same on every rank.
        rounds: how many there will be.
        masses: [clients] what each counts in a mean.
        adversary: what malicious clients do to what they send; None: all are honest.
        privacy: what the server does for the clients'.
        released: what it has cost so far.
        compression: of what the clients send.
        proxy: samples that the server has; None: none.
        seed: of the experiment.

    Attributes:
        states: what clients keep between rounds.
        costs: how long clients take.
        round: the one that is going on.
        observers: of what is trained in any round.
        when_idle: called at the server once per round: while the others train, or at the round's end if it trains,
            too.
        pause: called on every rank between two parts of something long that comes between rounds.
        keep: (name, arrays by name), called at the server: they become a group of the results, as they are.
    """

    world: World
    trainer: Trainer
    evaluator: Evaluator
    split: Split
    train: Samples
    build: Callable[[int], FlatModel]
    rounds: int
    masses: NDArray[np.int64]
    adversary: Adversary | None
    privacy: Privacy
    released: Released
    compression: Compression
    proxy: Samples | None
    seed: int
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
        """How many there are."""
        return len(self.split.samples)

    @property
    def layout(self) -> Layout:
        """Where a model's tensors lie in its vector [P]."""
        return self.trainer.model.layout

    @property
    def device(self) -> torch.device:
        """That of this rank's vectors."""
        return self.trainer.model.device

    @property
    def part(self) -> tuple[int, int]:
        """Which of how many parts of some work is this rank's, which is one of those that train."""
        return self.world.workers.index(self.world.rank), len(self.world.workers)

    # What is going on

    @contextmanager
    def doing(self, activity: str, block: Block | None = None) -> Iterator[None]:
        """Note what is done, for the report of a failure, and, if that goes well, that it is over."""
        round = self.round
        before = round.activity
        round.activity = activity if block is None else f"{_named(block)}, {activity}"
        yield
        round.activity = before

    def be_idle(self) -> None:
        """Do what the server does once per round while others train."""
        if self.world.is_server and not self.round.has_idled:
            self.round.has_idled = True
            with self.doing("writing results"):
                self.when_idle()

    # What is drawn

    def reseed(self, purpose: str | None = None) -> None:
        """Seed the generators of `random`, `numpy.random` and `torch` alike on every rank, to be called on all.

        Done before a method's code runs, and after all that ranks do by themselves.

        Args:
            purpose: of what is drawn next, in this round; None: that of before goes on, with other numbers.
        """
        round = self.round
        round.purpose, round.seedings = (round.purpose, round.seedings + 1) if purpose is None else (purpose, 0)
        randomness.seed_globals(randomness.key(self.seed, f"own: {round.purpose}", round.number, round.seedings))

    def turn_to(self, client: int) -> None:
        """What this rank does next is for one client: so is what is drawn."""
        purpose = f"own: {self.round.purpose} {self.round.seedings}, a client"
        randomness.seed_globals(randomness.key(self.seed, purpose, self.round.number, client))

    # Vectors

    def distribute(self, vector: Tensor) -> Tensor:
        """The server's `vector` on every rank and its device, read only, until the end of the round."""
        with self.doing("broadcast"):
            mine = vector.contiguous() if self.world.is_server else torch.empty(vector.shape, dtype=vector.dtype)
            return torch.from_numpy(self.world.broadcast(mine.numpy())).to(self.device)

    def mean_over(
        self,
        cohort: Cohort,
        groups: int | None = None,
        columns: Columns = slice(None),
        expected_mass: float | None = None,
        uplink: Uplink | None = None,
    ) -> WeightedMean:
        """An empty mean of vectors that are these columns of a model; arguments as of `WeightedMean`."""
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
            lambda place: self.layout.name_at(place, columns),
        )

    def uplink(self, cohort: Cohort, start: Tensor | None, columns: Columns = slice(None)) -> Uplink:
        """The way of another kind of vector that the clients of the round send.

        Args:
            start: what they received, if the vectors are models; None: they are changes.
            columns: the part of the model that the vectors are.
        """
        number, (_, parameters) = len(self.round.uplinks), self.layout.extent(columns)
        name = f"compression {number}"  # a method sends the same vectors in every round
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
        """The clients whose states lie here; those that have none yet are dealt out to the ranks that train."""
        workers = np.array(self.world.workers)
        home = np.where(self.states.home < 0, workers[np.arange(self.clients) % len(workers)], self.states.home)
        return np.flatnonzero(home == self.world.rank)

    def alone(self, client: int) -> Block:
        """A block of one client."""
        one = np.array([client])
        return Block(one, self.split.samples[one], self.split.samples[one])


def _named(block: Block) -> str:
    shown = ", ".join(map(str, block.clients[:8]))
    more = f" and {len(block) - 8} more" if len(block) > 8 else ""
    return f"client {shown}" if len(block) == 1 else f"clients {shown}{more}"
