"""What an algorithm sees of the experiment: clients to train, collectives over their models, and a place to report.

The same calls are made on every rank in the same order (SPMD). What an algorithm never sees: ranks, MPI, devices,
data files, seeds, the true groups of a partition.
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
from fedmpi.adversary import Adversary
from fedmpi.aggregation import WeightedMean, total
from fedmpi.channel import Channel
from fedmpi.client_state import ClientState, StateKeeper
from fedmpi.clustering import adjusted_rand_index
from fedmpi.compression import Compression
from fedmpi.data import Split
from fedmpi.evaluation import Evaluation, Evaluator, Predict, by_the_network, weighted_accuracy
from fedmpi.ledger import Ledger
from fedmpi.mpi.rows import Rows
from fedmpi.mpi.world import World
from fedmpi.privacy import Privacy, Released
from fedmpi.scheduling import Cohort
from fedmpi.scheduling.placement import CostModel
from fedmpi.server_work import Images, Labels, Lesson, sample, spread, teach
from fedmpi.stack import Stack
from fedmpi.training.block import WHOLE, Block, Hooks, Phase
from fedmpi.training.central import CentralTraining
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.layout import Columns, Layout
from fedmpi.training.samples import Batch, Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.symmetry import Group
from fedmpi.training.trainer import Trainer

if TYPE_CHECKING:
    from fedmpi.engine import Engine

#: (network, inputs, vectors by name) -> logits [B, classes], as `Algorithm.predict`
Prediction = Callable[[Net, Batch, Mapping[str, Tensor]], Tensor]


@dataclass
class Trained:
    """The result of `Federation.train`: K models, and the mean training loss [K] and optimizer steps [K] of each.

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


class Federation:
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
        local: the settings of local training.
        when_idle: called at the server once a round: while the others train, or at the round's end if it trains, too.
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
        self.rounds = rounds
        self._groups = split.groups
        self.total_mass = total_mass
        self.round = 0
        self.when_idle: Callable[[], None] = _nothing
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

    @property
    def feature_shape(self) -> torch.Size:
        """Of the features of one sample."""
        return self._trainer.feature_shape

    @property
    def lr(self) -> float:
        """The clients' learning rate of this round."""
        return self.local.rate(self.round, self.rounds)

    # Models

    def initial_weights(self, number: int = 0) -> Tensor:
        """[P] freshly drawn weights, the same on every rank; other numbers give other draws."""
        return self._build(number).weights[0].to("cpu", copy=True)

    def broadcast(self, vector: Tensor, received: int | None = None) -> Tensor:
        """The server's `vector` [..., n] on every rank and its device; counts as sent to each client of the round.

        To be read only, and only in this round: the ranks of a node share one copy. Clone what is to be kept.

        Args:
            received: how many numbers of it the clients receive, all together, if not every client all of it.
        """
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

    def gather(self, cohort: Cohort, mine: Mapping[int, Tensor], size: int) -> Tensor:
        """[m, n] at the server, on the meta device elsewhere: a short vector of each client of the cohort, in order.

        As they are, neither attacked nor compressed; NaN for a client whose vector is not there or not finite.

        Args:
            mine: client -> [n], of those that this rank trained.
            size: n, such as that of a layer; of whole models the server would have too many.
        """
        rows = Rows(self._world, cohort.clients, size)
        for client, vector in mine.items():
            rows.put(client, vector.cpu().numpy())
        with self._doing("gathering vectors"):
            rows.close()
            gathered = rows.collect()
        return torch.from_numpy(gathered) if self.is_server else torch.empty(len(cohort), size, device="meta")

    def stream(self, purpose: str, client: int = 0) -> np.random.Generator:
        """Random numbers of this round for a purpose, and a client if they are its own; the same on every rank."""
        return randomness.stream(self._seed, purpose, self.round, client)

    def build(self, make: Callable[[], nn.Module], purpose: str) -> FlatModel:
        """A network of the method's own, its weights drawn for this purpose and round, the same on every rank."""
        torch.manual_seed(randomness.key(self._seed, purpose, self.round))
        return FlatModel(make(), self.device)

    def unit_groups(self) -> list[Group]:
        """The hidden units of the model that may change places, in the order in which it makes them.

        Raises:
            BadInput: the model has a function through which units cannot be followed.
        """
        return self._trainer.unit_groups()

    def share(self, cohort: Cohort) -> float:
        """How much of all clients a cohort is: m / N if they count alike."""
        return cohort.total_mass / self.total_mass

    # Clients

    def client_state(self, name: str, initial: Tensor) -> ClientState:
        """Give every client a vector [n] that it keeps between rounds; to be called in `Algorithm.setup`."""
        return self.states.create(name, initial, self.device)

    def my_clients(self, cohort: Cohort) -> Iterator[Block]:
        """This rank's share of `cohort`, in blocks that are trained together, the longest first."""
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
            yield cohort.block(some)
            took, me = time.perf_counter() - began, self._world.rank - self._world.workers[0]
            self._ledger.observe(took, self._costs.observation(me, steps[some], took))

    def train(self, block: Block, start: Tensor, hooks: Hooks, phase: Phase = WHOLE, **vectors: Tensor) -> Trained:
        """Local training of a block's clients.

        Args:
            block: from `my_clients`.
            start: [P] or [K, P], the weights they receive.
            hooks: whose `loss` and `direction` are used; as a rule the algorithm itself.
            phase: which of several trainings of the round it is, of how long, and of which part of the model.
            vectors: what the hooks may read: [K, ...], a row each, or [n], the same for all.
        """
        self._forget_trained()
        with self._doing("training", block), self._ledger.timed("train_seconds"):
            block.give(vectors)
            start = start.expand(len(block), -1)
            work = self._trainer.train(block, start, hooks, self.round, self.rounds, phase)
        self._ledger.record_work(block, work)
        if not phase.name:
            if self._cohort_mean is not None:
                self._cohort_mean.add(work.weights, block)
            if self._kept_models is not None:
                counted = np.flatnonzero(block.mass).tolist()
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
        decay and clipping. Zeros for a client without samples.
        """
        self._forget_trained()
        with self._doing("measuring gradients", block), self._ledger.timed("train_seconds"):
            block.give(vectors)
            return self._trainer.gradients(block, weights.expand(len(block), -1), hooks, self.round)

    def features(self, block: Block, weights: Tensor) -> Tensor:
        """[K, n, ...]: the features of the clients' training samples, from the extractor with `weights` [P].

        In evaluation mode, of samples as they are, without augmentation. Client k's are in rows [k, :n_k], in the
        order of `Batch.place`.
        """
        with self._doing("extracting features", block), self._ledger.timed("train_seconds"):
            return self._trainer.features(block, weights)

    def losses(self, block: Block, models: Tensor) -> Tensor:
        """[K, M]: the mean training loss of each of `models` [M, P] on each client of the block, forward only."""
        with self._doing("measuring losses", block), self._ledger.timed("train_seconds"):
            found = [self._evaluator.training_losses(client, models) for client in block.clients.tolist()]
        return torch.tensor(found)

    def losses_of_all(self, clients: NDArray[np.int64], models: Tensor) -> NDArray[np.float64]:
        """[m, M]: the same for these clients, whoever trains them, on every rank; `models` are there already."""
        losses = np.zeros((len(clients), len(models)))
        if self._world.is_worker:
            placement, _ = CostModel(len(self._world.workers)).place(self.samples[clients])
            ranks = np.array(self._world.workers)[placement]
            with self._doing("measuring losses"):
                for position in np.flatnonzero(ranks == self._world.rank):
                    losses[position] = self._evaluator.training_losses(int(clients[position]), models)
        self._world.sum(losses)
        return losses

    def count_steps(self, cohort: Cohort) -> NDArray[np.int64]:
        """[m] optimizer steps that each does when it is trained once."""
        return self._trainer.count_steps(cohort.clients, cohort.completed)

    def train_on(self, shards: Sequence[NDArray[np.int64]]) -> None:
        """From now on the clients train on these samples; what they count in means stays as it was."""
        self._trainer.deal(shards)

    # Training at the server, with the help of all ranks

    @contextmanager
    def serving(self) -> Iterator[None]:
        """While the server trains: its time is taken, and random layers of networks draw numbers of this round."""
        with self._doing("training at the server"), self._ledger.serving():
            self._trainer.seed_others(randomness.key(self._seed, "training at the server", self.round))
            yield

    def model_at_server(self, weights: Tensor) -> FlatModel | None:
        """The network of the clients with the server's `weights` [P], to be trained; None on the other ranks.

        Until the next call of `train`: it is the same memory.
        """
        self._forget_trained()
        if not self.is_server:
            return None
        model = self._trainer.model
        model.select((slice(0, self.layout.parameters),))
        model.load(weights)
        return model

    def proxy_batch(self, index: NDArray[np.int64]) -> Tensor:
        """[B, ...] the server's samples of these numbers, as networks take them; on every rank, without a message."""
        assert self._proxy is not None
        return self._proxy.batch(index).x

    def keep_models(self) -> None:
        """From now on in this round, keep the model of each client that counts, where it is trained."""
        self._kept_models = {}

    def ask_models(
        self,
        respond: Callable[..., tuple[Tensor, ...]],
        told: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
        only: int | None = None,
    ) -> list[Tensor]:
        """What the models that are kept say to what the server tells them, summed over the models.

        The models stay where they are: what travels are batches and sums. These are exact, so that they have the same
        bits wherever the models are.

        Args:
            respond: (network, client, *told) -> tensors of the given shapes. The network is the client's, in
                evaluation mode, and no gradient flows into its weights.
            told: the server's; on the other ranks any of the same shapes and types.
            only: the one client who is asked; None: all.

        Returns:
            A float32 sum for each of the shapes, on every rank.
        """
        assert self._kept_models is not None, "no models were kept in this round"
        with self._doing("asking the clients' models"):
            arrived = [self._tell(tensor) for tensor in told]
            with self._ledger.timed("teacher_seconds"):
                net = Net(self._trainer.model)
                answers = [
                    [part.detach().cpu() for part in respond(net.at(weights), client, *arrived)]
                    for client, weights in self._kept_models.items()
                    if only in (None, client)
                ]
            return [part.to(self.device) for part in total(self._world, answers, shapes)]

    def generate(self, weights: Tensor, labels: Labels, noise: int, finish: Callable[[Tensor], Tensor]) -> Images:
        """[n, C, H, W] images that this federation's network, a generator, makes of labels [n]; on every rank.

        See `server_work.sample`; what is shared is read only. The same labels give the same images at any time.

        Args:
            weights: of the server.
        """
        net = Net(self._trainer.model).at(self._distribute(weights))
        with self._doing("sampling"):
            return sample(self._world, net, labels, self.shape, noise, finish, self.device, self._seed)

    def spread(self, images: Images | None, labels: Labels | None) -> tuple[Images, Labels]:
        """The server's images [n, C, H, W] and labels [n] on every rank."""
        with self._doing("spreading images"):
            return spread(self._world, images, labels, self.shape)

    def teach(
        self, lessons: Sequence[Lesson], images: Images, labels: Labels, settings: LocalTraining
    ) -> Iterator[int]:
        """Train networks like the federation's on images [n, C, H, W] and labels [n], which every rank has.

        See `server_work.teach`. To be called between rounds.

        Args:
            settings: batch size and learning rate, of Adam.
        """

        def make(model: FlatModel, number: int) -> CentralTraining:
            seed = randomness.key(self._seed, "lesson", client=number)
            return CentralTraining(model, self._train.like(images, labels), settings, seed)

        starts = [self._distribute(lesson.weights) for lesson in lessons]
        with self._doing("training at the server"):
            for epoch in teach(self._world, lessons, starts, make, self._build):
                self.when_idle()
                yield epoch

    # Measurements

    def training_hits(self, weights: Tensor, shards: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        """[clients]: how many of these training samples of each client the server's model `weights` [P] recognises.

        On every rank; the work is spread over those that train.
        """
        received = self._distribute(weights)
        hits = np.zeros(len(shards))
        if self._world.is_worker:
            with self._doing("evaluation"), self._ledger.timed("evaluation_seconds"):
                hits = self._evaluator.training_hits(received, shards, *self._part)
        self._world.sum(hits)
        return hits

    def evaluate(self, weights: Tensor, predict: Prediction | None = None, **vectors: Tensor) -> Evaluation:
        """Measure the server's model `weights` [P] on the test set, spread over the ranks that train.

        Args:
            predict: how logits are made with it, as a rule `Algorithm.predict`; None: by the network alone.
            vectors: of the server, which it may read.
        """
        received = self._distribute(weights)
        others = {name: self._distribute(vector) for name, vector in vectors.items()}
        measured = self._evaluator.nothing()
        if self._world.is_worker:
            with self._doing("evaluation"), self._ledger.timed("evaluation_seconds"):
                self._evaluator.measure(received, *self._part, measured, predict_with(predict, others))
        self._world.sum(measured)
        return self._evaluator.evaluation(measured)

    def evaluate_clients(self, weights: Tensor, personal: Callable[[Block, Tensor], Tensor]) -> Evaluation:
        """Measure every client's own model on the client's own shard of the test set, where its state lies.

        Args:
            weights: [P] or [n], the server's model or the part of it that clients receive.
            personal: the models [K, P] of a block's clients, from what they keep and `weights`.
        """
        received = self._distribute(weights)
        measured = self._evaluator.nothing()
        with self._doing("evaluation"), self._ledger.timed("evaluation_seconds"):
            for client in self._at_home().tolist():
                self._evaluator.measure_client(personal(self._alone(client), received)[0], client, measured)
        self._world.sum(measured)
        return self._evaluator.evaluation(measured)

    def accuracies(self, weights: Tensor, personal: Callable[[Block, Tensor], Tensor]) -> NDArray[np.float64]:
        """[clients], every client's own model on the whole test set; as expensive as so many evaluations.

        Args:
            weights, personal: as in `evaluate_clients`.
        """
        received = self._distribute(weights)
        found = np.zeros(self.clients)
        with self._doing("evaluation"), self._ledger.timed("evaluation_seconds"):
            for client in self._at_home().tolist():
                found[client] = self._evaluator.accuracy(personal(self._alone(client), received)[0])
        self._world.sum(found)
        return found

    def report_personal(self, evaluation: Evaluation) -> None:
        """Report what `evaluate_clients` found.

        All clients count, those that never took part with what they have from the start; the column clients_trained
        is how many did.
        """
        self.report(evaluation)
        self.log(clients_trained=int((self.states.home >= 0).sum()))

    def report(self, evaluation: Evaluation) -> None:
        """Make an evaluation that of the round: test_loss and test_accuracy, per class and per client.

        These are over all test samples, that is weighted by the clients' test samples; further columns are the mean,
        the standard deviation and three percentiles of the clients' accuracies, each on its own test samples; and the
        mean weighted by their training samples.
        """
        self._ledger.evaluation = evaluation
        known = evaluation.client_accuracy[~np.isnan(evaluation.client_accuracy)]
        if self.is_server and len(known):
            self.log(weighted_client_accuracy=weighted_accuracy(evaluation.client_accuracy, self.samples))
            shares = dict(zip((10, 50, 90), np.percentile(known, (10, 50, 90)).tolist(), strict=True))
            self.log(client_accuracy_mean=float(known.mean()), client_accuracy_std=float(known.std()))
            self.log(**{f"client_accuracy_p{percent}": value for percent, value in shares.items()})

    def report_matched(self, models: Sequence[Evaluation], choice: Tensor) -> None:
        """The same for several models, of which client k uses number `choice[k]`; -1, none yet, is left out.

        test_accuracy and test_loss are client-matched: each client's model on the client's own shard of the test
        set. The column global_matched_accuracy has each client's model on the whole test set, weighted by the
        client's training samples.
        """
        if self.is_server:
            chosen = choice.numpy()
            samples = np.where(chosen < 0, 0, self.samples)
            accuracy = np.array([model.accuracy for model in models])[chosen]
            self.log(global_matched_accuracy=float(accuracy @ samples / samples.sum()) if samples.any() else np.nan)
            self.report(Evaluation.matched(models, chosen))

    def report_clusters(self, assignment: Tensor, models: int) -> None:
        """Report which of several models is each client's, [clients]; -1: none yet.

        Columns of /rounds are how many clients each has and, where the partition knows the true groups, the adjusted
        Rand index of these and the clusters of those that have a model.
        """
        if self.is_server:
            found = assignment.numpy().copy()
            known = found >= 0
            sizes = np.bincount(found[known], minlength=models)
            self.log(**{f"cluster_size_{number}": int(size) for number, size in enumerate(sizes)})
            if self._groups is not None:
                self.log(adjusted_rand_index=adjusted_rand_index(found[known], self._groups[known]))
            self._ledger.clusters = found

    def log(self, **values: float) -> None:
        """Add columns to the round's row in the results; what the server logs is kept."""
        self._ledger.log(values)

    def record(self, block: Block, **values: Tensor) -> None:
        """Record numbers [K] of a block's clients, under names that the algorithm lists in `client_metrics`."""
        self._ledger.record(block, {name: value.cpu().numpy() for name, value in values.items()})

    def gather_records(self) -> dict[str, NDArray[np.float64]]:
        """What was recorded of the round's clients, on every rank: name -> [m], in the order of `cohort.clients`."""
        with self._doing("gathering records"):
            return self._ledger.gather()

    def _measure_locally(self, block: Block, models: Tensor, predict: Prediction) -> None:
        with self._doing("measuring what was trained", block), self._ledger.timed("evaluation_seconds"):
            found = [
                self._evaluator.client_accuracy(model, client, predict_with(predict, block.row(k)))
                for k, (client, model) in enumerate(zip(block.clients.tolist(), models, strict=True))
            ]
        self._ledger.record(block, {"local_accuracy": found})

    @property
    def _part(self) -> tuple[int, int]:
        """Which of how many parts of some work is this rank's, which is one of those that train."""
        return self._world.workers.index(self._world.rank), len(self._world.workers)

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
            self._world, parameters, size, cohort.total_mass, groups, self.device, expected_mass, channel
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
            self._world.expect(float(expected.max()))
        self._ledger.predict(expected if self._costs.is_fitted else np.full(len(expected), np.nan))
        return first + placement

    def _be_idle(self) -> None:
        if self.is_server and not self._was_idle:
            self._was_idle = True
            self.when_idle()

    def _distribute(self, vector: Tensor) -> Tensor:
        with self._doing("broadcast"):
            mine = vector.contiguous() if self.is_server else torch.empty(vector.shape, dtype=vector.dtype)
            return torch.from_numpy(self._world.broadcast(mine.numpy())).to(self.device)

    def _tell(self, tensor: Tensor) -> Tensor:
        memory = torch.from_numpy(self._world.tell(tensor.detach().contiguous().cpu().numpy()))
        # Of its own, and laid out alike on every rank: the bits of convolutions depend on it.
        order = torch.channels_last if memory.dim() == 4 else torch.contiguous_format
        return memory.clone(memory_format=order).to(self.device)

    @contextmanager
    def _doing(self, activity: str, block: Block | None = None) -> Iterator[None]:
        """Note what is done and, if that goes well, that it is over."""
        self._activity = activity if block is None else f"{_named(block)}, {activity}"
        yield
        self._activity = "between two steps of the algorithm"


def predict_with(predict: Prediction | None, vectors: Mapping[str, Tensor]) -> Predict:
    """How a model predicts that has these vectors beside it; given None, the network alone."""
    return by_the_network if predict is None else lambda net, batch: predict(net, batch, vectors)


def _nothing(*arguments: object) -> None:
    """What the server does when it is idle, or is given something to keep, unless it is told otherwise."""


def _named(block: Block) -> str:
    shown = ", ".join(map(str, block.clients[:8]))
    more = f" and {len(block) - 8} more" if len(block) > 8 else ""
    return f"client {shown}" if len(block) == 1 else f"clients {shown}{more}"
