"""The clients of an experiment, on whatever ranks: models go to them, are trained there, and come back.

What an algorithm sees beside that, in `fedmpi.federation.federation`, is built on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness
from fedmpi.data import Split
from fedmpi.federation.adversary import Adversary
from fedmpi.federation.client_state import ClientState, StateKeeper
from fedmpi.federation.evaluation import Evaluator, Predict, by_the_network
from fedmpi.federation.ledger import Ledger
from fedmpi.federation.mean import WeightedMean, diverged
from fedmpi.federation.placement import CostModel
from fedmpi.federation.stack import Stack
from fedmpi.federation.uplink import Channel
from fedmpi.mpi.rows import Rows
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort
from fedmpi.policies.compression import Compression
from fedmpi.policies.privacy import Privacy, Released
from fedmpi.training.block import GRADIENT, WHOLE, Block, Hooks, Phase
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.layout import Columns, Layout
from fedmpi.training.samples import Batch, Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.symmetry import Group
from fedmpi.training.trainer import Trainer

if TYPE_CHECKING:
    from fedmpi.federation.engine import Engine

#: (network, inputs, vectors by name) -> logits [B, classes], as `Algorithm.predict`
Prediction = Callable[[Net, Batch, Mapping[str, Tensor]], Tensor]


@dataclass
class Trained:
    """The result of `Clients.train`: K models, and the mean training loss [K] and optimizer steps [K] of each.

    `weights` [K, P] is the memory in which the next clients will be trained: use or clone it before the next call
    of `train`. Reading it later is an error rather than a wrong result.
    """

    loss: NDArray[np.float64]
    steps: NDArray[np.int64]
    _weights: Tensor
    _is_current: bool = True

    @property
    def weights(self) -> Tensor:
        if not self._is_current:
            raise RuntimeError("these weights were overwritten by a later train(); use or clone them before it")
        return self._weights


class Clients:
    """The clients of an experiment, spread over the ranks of a job.

    Args:
        world: the ranks.
        trainer, evaluator: this rank's.
        split: who has what.
        train: the training samples of all clients.
        build: number -> a network with freshly drawn weights, the same on every rank.
        rounds: how many there will be.
        total_mass: what all clients count together in a mean.
        adversary: what malicious clients do to what they send; None: all are honest.
        privacy: what the server does for the clients'.
        released: what it has cost so far.
        compression: of what the clients send.
        proxy: samples that the server has; None: none.
        seed: of the experiment.

    Attributes:
        clients: how many there are.
        samples: [clients] training samples of each.
        label_counts: [clients, classes] training labels of each.
        shards: for each client, int64 numbers of its training samples.
        classes: how many there are.
        shape: of a sample, as networks take it.
        is_text: whether samples are tokens.
        has_images: whether samples are images of pixels from 0 to 255.
        proxies: how many samples the server has.
        layout: where a model's tensors lie in its vector [P].
        at_once: K, how many clients a rank trains together at the most.
        has_features: whether the network is a `Backbone`, so that a loss may look at its features.
        ends_in_head: whether the network ends in a fully connected layer, the layout's head.
        device: what this rank's vectors are on, but for the server's state, which is in host memory.
        is_server: whether this rank holds the server's state.
        round: the current round; they count from 1.
        has_asked_for_rounds: whether the method has asked how many there will be.
        local: the settings of local training.
        when_idle: called at the server once a round: while the others train, or at the round's end if it trains, too.
        pause: called on every rank between two parts of something long that comes between rounds.
        beside: (make a network, local training, rounds, name) -> a federation of the same clients around that
            network, which sees images on the scale 0..1; what is random in it goes by the name. See
            `Algorithm.stages`.
        keep: (name, arrays by name), called at the server: they become a group of the results, as they are.
    """

    beside: Callable[[Callable[[], nn.Module], LocalTraining, int, str], Engine]

    def __init__(
        self,
        world: World,
        trainer: Trainer,
        evaluator: Evaluator,
        split: Split,
        train: Samples,
        build: Callable[[int], FlatModel],
        rounds: int,
        total_mass: int,
        adversary: Adversary | None,
        privacy: Privacy,
        released: Released,
        compression: Compression,
        proxy: Samples | None,
        seed: int,
    ) -> None:
        self.clients = len(split.samples)
        self.samples = split.samples
        self.label_counts = split.label_counts
        self.shards = split.train
        self.classes = split.label_counts.shape[1]
        self.shape = train.shape
        self.is_text = train.is_text
        self.has_images = train.x.dtype == torch.uint8
        self.proxies = len(proxy.y) if proxy else 0
        self.layout: Layout = trainer.model.layout
        self.at_once = trainer.at_once
        self.has_features = trainer.model.has_features
        self.ends_in_head = trainer.model.ends_in_head
        self.device = trainer.model.device
        self.is_server = world.is_server
        self.local = trainer.settings
        self._rounds = rounds
        self.has_asked_for_rounds = False
        self._groups = split.groups
        self.total_mass = total_mass
        self.round = 0
        self.when_idle: Callable[[], None] = _nothing
        self.pause: Callable[[], None] = _nothing
        self.keep: Callable[[str, Mapping[str, NDArray]], None] = _nothing
        self.states = StateKeeper(world, self.clients)
        self._world = world
        self._costs = CostModel(len(world.workers), trainer.at_once)
        self._trainer = trainer
        self._evaluator = evaluator
        self._train = train
        self._build = build
        self._adversary = adversary
        self._privacy = privacy
        self._released = released
        self._compression = compression
        self._proxy = proxy
        self._seed = seed
        self._ledger: Ledger
        self._channels: list[Channel] = []
        self._trained: Trained | None = None
        self._was_idle = False
        self._cohort_mean: WeightedMean | None = None
        self._kept_models: dict[int, Tensor] | None = None
        self._everyone: Cohort
        self._last_models: ClientState | None = None
        self._predict_locally: Prediction | None = None
        self._activity = "setting up"
        self._purpose, self._seedings = "setup", 0

    @property
    def feature_shape(self) -> torch.Size:
        """Of the features of one sample."""
        return self._trainer.feature_shape

    @property
    def lr(self) -> float:
        """The clients' learning rate of this round."""
        return self.local.rate(self.round, self._rounds)

    @property
    def rounds(self) -> int:
        """How many there will be. A run of a method that asks for this cannot be given more of them later."""
        self.has_asked_for_rounds = True
        return self._rounds

    def has_round(self, number: int) -> bool:
        """Whether there is to be a round of this number: for checks and measurements, which no model depends on."""
        return number <= self._rounds

    # Models

    def initial_weights(self, number: int = 0) -> Tensor:
        """[P] freshly drawn weights, the same on every rank; other numbers give other draws.

        What the network freezes is no part of them: it is that of number 0 in all models.
        """
        return self._build(number).weights[0].to("cpu", copy=True)

    def broadcast(self, vector: Tensor, received: int | None = None) -> Tensor:
        """The server's `vector` [..., n] on every rank and its device; counts as sent to each client of the round.

        To be read only, and only in this round: the ranks of a node share one copy. Clone what is to be kept.

        Args:
            received: how many numbers of it the clients receive, all together, if not every client all of it.
        """
        if received != 0:  # else it is no part of what clients do, and may be asked for before there are any
            numbers = vector.numel() * len(self._ledger.cohort) if received is None else received
            self._ledger.bytes_down += numbers * vector.element_size()
        return self._distribute(vector)

    def weighted_mean(
        self,
        cohort: Cohort,
        start: Tensor | None = None,
        groups: int | None = None,
        columns: Columns = slice(None),
    ) -> WeightedMean:
        """An empty mean over `cohort` of vectors [P] that its clients send, or several side by side.

        See `WeightedMean`, and `Channel` for what else becomes of what is sent.

        Args:
            start: [P] or [groups, P], what the clients received, if the vectors are models; None: they are changes.
            groups: how many means are formed side by side.
            columns: the part of the model that the vectors are, if not all of it; only this is sent.
        """
        channel = self._channel(cohort, start, columns)
        return self._mean_over(cohort, groups, columns, cohort.expected_mass, channel)

    def stack(self, cohort: Cohort, start: Tensor, group: NDArray[np.int64] | None = None) -> Stack:
        """An empty stack for the models [P] that the clients of `cohort` send.

        See `Stack`, and `Channel` for what else becomes of what is sent.

        Args:
            start: [P] or [groups, P], what they received.
            group: [m] which of several starts each of them received.
        """
        return Stack(self._world, cohort, start, self.layout.parameters, self._channel(cohort, start), group)

    def gather(self, cohort: Cohort, mine: Mapping[int, Tensor], size: int, counts: bool = True) -> Tensor:
        """[m, n] at the server, on the meta device elsewhere: a short vector of each client of the cohort, in order.

        As they are, neither attacked nor compressed; NaN for a client whose vector is not there or not finite.

        Args:
            mine: client -> [n], of those that this rank trained.
            size: n, such as that of a layer; of whole models the server would have too many.
            counts: whether they count as sent; not if they are in what is sent anyway.
        """
        rows = Rows(self._world, cohort.clients, size)
        for client, vector in mine.items():
            rows.put(client, vector.cpu().numpy())
            self._ledger.bytes_up += vector.nbytes if counts else 0
        with self.doing("gathering vectors"):
            rows.close()
            gathered = rows.collect()
        return torch.from_numpy(gathered) if self.is_server else torch.empty(len(cohort), size, device="meta")

    def stream(self, purpose: str, client: int = 0) -> np.random.Generator:
        """Random numbers of this round for a purpose, and a client if they are its own; the same on every rank."""
        return randomness.stream(self._seed, purpose, self.round, client)

    def build(self, make: Callable[[], nn.Module], purpose: str) -> FlatModel:
        """A network of the method's own, its weights drawn for this purpose and round, the same on every rank."""
        randomness.seed_globals(randomness.key(self._seed, purpose, self.round))
        return FlatModel(make(), self.device)

    def reseed(self, purpose: str | None = None) -> None:
        """Seed the generators of `random`, `numpy.random` and `torch` alike on every rank, to be called on all.

        Done by the engine before a method's code runs, and after all that ranks do by themselves.

        Args:
            purpose: of what is drawn next, in this round; None: that of before goes on, with other numbers.
        """
        self._purpose, self._seedings = (self._purpose, self._seedings + 1) if purpose is None else (purpose, 0)
        randomness.seed_globals(randomness.key(self._seed, f"own: {self._purpose}", self.round, self._seedings))

    def unit_groups(self) -> list[Group]:
        """The hidden units of the model that may change places, in the order in which it makes them.

        Those of frozen layers may not, nor those that frozen layers take.

        Raises:
            BadInput: the model has a function through which units cannot be followed.
        """
        return self._trainer.unit_groups()

    def share(self, mean: WeightedMean) -> float:
        """How much of all clients those are whose vectors a mean was formed of: m / N if they count alike."""
        return mean.mass / self.total_mass

    # Clients

    def client_state(self, name: str, initial: Tensor) -> ClientState:
        """Give every client a vector [n] that it keeps between rounds; to be called in `Algorithm.setup`."""
        return self.states.create(name, initial, self.device)

    def my_clients(self, cohort: Cohort) -> Iterator[Block]:
        """This rank's share of `cohort`, in blocks that are trained together, the longest first.

        What is drawn from the generators of `random`, `numpy.random` and `torch` for a block depends on its first
        client, on whatever rank it is; afterwards all ranks draw the same again.

        Raises:
            RanksDiffer: ranks gave different cohorts; sooner or later, on one rank at least.
        """
        if cohort is not self._ledger.cohort:
            self._world.vouch({"the method: ranks gave `my_clients` different cohorts": cohort.checksum})
        steps = self.count_steps(cohort)
        ranks = self._place(cohort, steps)
        began = time.perf_counter()
        moved = self.states.gather(cohort.clients, ranks)
        if moved:
            took = time.perf_counter() - began
            self._ledger.observe(took, {"moved_bytes": moved, "moving_seconds": took})
        if not self._world.is_worker:
            self._be_idle()
        mine = np.flatnonzero(ranks == self._world.rank)
        mine = mine[np.argsort(-steps[mine], kind="stable")]
        for first in range(0, len(mine), self._trainer.at_once):
            some = mine[first : first + self._trainer.at_once]
            began = time.perf_counter()
            self._turn_to(int(cohort.clients[some[0]]))
            yield cohort.block(some)
            took, me = time.perf_counter() - began, self._world.rank - self._world.workers[0]
            self._ledger.observe(took, self._costs.observation(me, steps[some], took))
        self.reseed()

    def train(self, block: Block, start: Tensor, hooks: Hooks, phase: Phase = WHOLE, **vectors: Tensor) -> Trained:
        """Local training of a block's clients.

        Those of whom it makes a model that is not finite are noted as diverged: means and client states leave them
        out from then on.

        Args:
            block: from `my_clients`.
            start: [P] or [K, P], the weights they receive.
            hooks: whose `loss` and `direction` are used; as a rule the algorithm itself.
            phase: which of several trainings of the round it is, of how long, and of which part of the model.
            vectors: what the hooks may read: [K, ...], a row each, or [n], the same for all.
        """
        self._forget_trained()
        with self.doing("training", block), self._ledger.timed("train_seconds"):
            block.give(vectors)
            start = start.expand(len(block), -1)
            work = self._trainer.train(block, start, hooks, self.round, self._rounds, phase)
        lost = {int(block.clients[k]): found for k, found in diverged(work.weights).items()}
        block.diverged |= lost.keys()
        self._ledger.record_work(block, work, lost)
        if not phase.name:
            if self._cohort_mean is not None:
                self._cohort_mean.add(work.weights, block)
            if self._kept_models is not None:
                counted = [k for k in block.left() if block.mass[k]]
                self._kept_models |= {int(block.clients[k]): work.weights[k].clone() for k in counted}
            if self._last_models is not None:
                self._last_models[block] = work.weights
            if self._predict_locally is not None:
                self._measure_locally(block, work.weights, self._predict_locally)
        self._trained = Trained(work.loss, work.steps, work.weights)
        return self._trained

    def gradients(self, block: Block, weights: Tensor, hooks: Hooks, **vectors: Tensor) -> Tensor:
        """[K, d]: the gradient, at `weights` [P] or [K, P], of each client's mean loss over its training samples.

        The loss is that of training: the hooks' own, batch by batch, in training mode. Without `direction`, weight
        decay and clipping. Zeros for a client without samples. The batches count as steps in /clients.
        """
        self._forget_trained()
        began = time.perf_counter()
        with self.doing("measuring gradients", block), self._ledger.timed("train_seconds"):
            block.give(vectors)
            found = self._trainer.gradients(block, weights.expand(len(block), -1), hooks, self.round)
        steps = self._trainer.count_steps(block.clients, None, GRADIENT)
        share = steps / max(steps.sum(), 1)
        self._ledger.add_steps(block, steps, (time.perf_counter() - began) * share)
        return found

    def features(self, block: Block, weights: Tensor) -> Tensor:
        """[K, n, ...]: the features of the clients' training samples, from the extractor with `weights` [P].

        In evaluation mode, of samples as they are, without augmentation. Client k's are in rows [k, :n_k], in the
        order of `Batch.place`.
        """
        with self.doing("extracting features", block), self._ledger.timed("train_seconds"):
            return self._trainer.features(block, weights)

    def losses(self, block: Block, models: Tensor) -> Tensor:
        """[K, M]: the mean training loss of each of `models` [M, P] on each client of the block, forward only."""
        with self.doing("measuring losses", block), self._ledger.timed("train_seconds"):
            found = [self._evaluator.training_losses(client, models) for client in block.clients.tolist()]
        return torch.tensor(found)

    def losses_of_all(self, clients: NDArray[np.int64], models: Tensor) -> NDArray[np.float64]:
        """[m, M]: the same for these clients, whoever trains them, on every rank; `models` are there already."""
        losses = np.zeros((len(clients), len(models)))
        if self._world.is_worker:
            placement, _ = CostModel(len(self._world.workers)).place(self.samples[clients])
            ranks = np.array(self._world.workers)[placement]
            with self.doing("measuring losses"):
                for position in np.flatnonzero(ranks == self._world.rank):
                    losses[position] = self._evaluator.training_losses(int(clients[position]), models)
        self._world.sum(losses)
        self.reseed()
        return losses

    def count_steps(self, cohort: Cohort, phase: Phase = WHOLE) -> NDArray[np.int64]:
        """[m] optimizer steps that each does in one training."""
        return self._trainer.count_steps(cohort.clients, cohort.completed, phase)

    def train_on(self, shards: Sequence[NDArray[np.int64]]) -> None:
        """From now on the clients train on these samples; what they count in means stays as it was."""
        self._trainer.deal(shards)

    def _measure_locally(self, block: Block, models: Tensor, predict: Prediction) -> None:
        with self.doing("measuring what was trained", block), self._ledger.timed("evaluation_seconds"):
            found = [
                self._evaluator.client_accuracy(model, client, predict_with(predict, block.row(k)))
                for k, (client, model) in enumerate(zip(block.clients.tolist(), models, strict=True))
            ]
        self._ledger.record(block, {"local_accuracy": found})

    @property
    def _part(self) -> tuple[int, int]:
        """Which of how many parts of some work is this rank's, which is one of those that train."""
        return self._world.workers.index(self._world.rank), len(self._world.workers)

    def _turn_to(self, client: int) -> None:
        """What this rank does next is for one client: so is what is drawn."""
        purpose = f"own: {self._purpose} {self._seedings}, a client"
        randomness.seed_globals(randomness.key(self._seed, purpose, self.round, client))

    def _forget_trained(self) -> None:
        if self._trained is not None:
            self._trained._is_current = False

    def _mean_over(
        self,
        cohort: Cohort,
        groups: int | None = None,
        columns: Columns = slice(None),
        expected_mass: float | None = None,
        channel: Channel | None = None,
    ) -> WeightedMean:
        size, parameters = self.layout.extent(columns)
        return WeightedMean(
            self._world,
            parameters,
            size,
            cohort.total_mass,
            groups,
            self.device,
            expected_mass,
            channel,
            lambda place: self.layout.name_at(place, columns),
        )

    def _channel(self, cohort: Cohort, start: Tensor | None, columns: Columns = slice(None)) -> Channel:
        number, (_, parameters) = len(self._channels), self.layout.extent(columns)
        name = f"compression {number}"  # a method sends the same vectors in every round
        if name not in self.states.states and (count := self._compression.kept(parameters)):
            self.states.create(name, torch.zeros(count), self.device)
        kept, about = self.states.states.get(name), (cohort.clients, self._seed, self.round, number)
        divisor = int(cohort.expected_mass or cohort.total_mass)
        what = self._adversary, self._compression, parameters, start, kept
        self._channels.append(Channel(*what, *about, self._privacy, divisor))
        return self._channels[-1]

    def _at_home(self) -> NDArray[np.int64]:
        """The clients whose states lie here; those that have none yet are dealt out to the ranks that train."""
        workers = np.array(self._world.workers)
        home = np.where(self.states.home < 0, workers[np.arange(self.clients) % len(workers)], self.states.home)
        return np.flatnonzero(home == self._world.rank)

    def _alone(self, client: int) -> Block:
        one = np.array([client])
        return Block(one, self.samples[one], self.samples[one])

    def _place(self, cohort: Cohort, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """[m] the ranks that train the cohort's clients, the same on every rank."""
        first, kept = self._world.workers[0], self.states.bytes
        home = self.states.home[cohort.clients] - first if kept else None
        placement, expected = self._costs.place(steps, home, kept)
        if self._costs.is_fitted:
            self._world.waiting.expect(float(expected.max()))
        self._ledger.predict(expected if self._costs.is_fitted else np.full(len(expected), np.nan))
        return first + placement

    def _be_idle(self) -> None:
        if self.is_server and not self._was_idle:
            self._was_idle = True
            with self.doing("writing results"):
                self.when_idle()

    def _distribute(self, vector: Tensor) -> Tensor:
        with self.doing("broadcast"):
            mine = vector.contiguous() if self.is_server else torch.empty(vector.shape, dtype=vector.dtype)
            return torch.from_numpy(self._world.broadcast(mine.numpy())).to(self.device)

    @contextmanager
    def doing(self, activity: str, block: Block | None = None) -> Iterator[None]:
        """Note what is done, for the report of a failure, and, if that goes well, that it is over."""
        before = self._activity
        self._activity = activity if block is None else f"{_named(block)}, {activity}"
        yield
        self._activity = before


def predict_with(predict: Prediction | None, vectors: Mapping[str, Tensor]) -> Predict:
    """How a model predicts that has these vectors beside it; given None, the network alone."""
    return by_the_network if predict is None else lambda net, batch: predict(net, batch, vectors)


def _nothing(*arguments: object) -> None:
    """What the server does when it is idle, or is given something to keep, unless it is told otherwise."""


def _named(block: Block) -> str:
    shown = ", ".join(map(str, block.clients[:8]))
    more = f" and {len(block) - 8} more" if len(block) > 8 else ""
    return f"client {shown}" if len(block) == 1 else f"clients {shown}{more}"
