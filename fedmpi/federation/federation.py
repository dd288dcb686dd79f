"""What a method sees of an experiment: clients to train, collectives over their models, and a place to report.

The same calls are made on every rank in the same order (SPMD). What a method never sees: ranks, MPI, devices, data
files, seeds, the true groups of a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness, streams
from fedmpi.federation.client_state import ClientState
from fedmpi.federation.context import Context
from fedmpi.federation.evaluation import Evaluation, Prediction
from fedmpi.federation.local import Local, Trained
from fedmpi.federation.mean import WeightedMean
from fedmpi.federation.reports import Personal, Reports
from fedmpi.federation.server import Server
from fedmpi.federation.stack import Stack
from fedmpi.mpi.rows import Rows
from fedmpi.policies import Cohort
from fedmpi.training.block import WHOLE, Block, Hooks, Phase
from fedmpi.training.layout import Columns, Layout
from fedmpi.training.settings import LocalTraining


class Federation:
    """The clients of an experiment, spread over the ranks of a job, and their server.

    What most methods need is here; what a few need is in three parts: `at_clients`, `at_server` and `reports`.

    Args:
        context: what the parts share.

    Attributes:
        clients: how many there are.
        samples: [clients] training samples of each.
        masses: [clients] what each counts in a mean, if it is drawn once.
        label_counts: [clients, classes] training labels of each.
        shards: for each client, int64 numbers of its training samples.
        classes: how many there are.
        shape: of a sample, as networks take it.
        is_text: whether samples are tokens.
        has_images: whether samples are images of pixels from 0 to 255.
        layout: where a model's tensors lie in its vector [P].
        device: what this rank's vectors are on, but for the server's state, which is in host memory.
        is_server: whether this rank holds the server's state.
        local: the settings of local training.
        has_asked_for_rounds: whether the method has asked how many there will be.
        at_clients: further work of clients: gradients, features, losses.
        at_server: training at the server, its samples, and the clients' models as teachers.
        reports: further measurements.
        sibling: (make a network, local training, rounds, name) -> a federation of the same clients around that
            network, which sees images on the scale 0..1; what is random in it goes by the name. See
            `Algorithm.stages`.
        context: for `Engine`, and not for methods.
    """

    sibling: Callable[[Callable[[], nn.Module], LocalTraining, int, str], Federation]

    def __init__(self, context: Context) -> None:
        split, train = context.split, context.train
        self.clients = context.clients
        self.samples = split.samples
        self.masses = context.masses
        self.label_counts = split.label_counts
        self.shards = split.train
        self.classes = split.label_counts.shape[1]
        self.shape = train.shape
        self.is_text = train.is_text
        self.has_images = train.x.dtype == torch.uint8
        self.layout: Layout = context.layout
        self.device = context.device
        self.is_server = context.world.is_server
        self.local = context.trainer.settings
        self.has_asked_for_rounds = False
        self.context = context
        self.at_clients = Local(context)
        self.at_server = Server(context, self.at_clients)
        self.reports = Reports(context)

    # Rounds

    @property
    def round(self) -> int:
        """The current round; they count from 1."""
        return self.context.round.number

    @property
    def rounds(self) -> int:
        """How many there will be. A run of a method that asks for this cannot be given more of them later."""
        self.has_asked_for_rounds = True
        return self.context.rounds

    def has_round(self, number: int) -> bool:
        """Whether there is to be a round of this number: for checks and measurements, which no model depends on."""
        return number <= self.context.rounds

    @property
    def lr(self) -> float:
        """The clients' learning rate of this round."""
        return self.local.rate(self.round, self.context.rounds)

    def stream(self, purpose: str, client: int = 0) -> np.random.Generator:
        """Random numbers of this round for a purpose, and a client if they are its own; the same on every rank."""
        return randomness.stream(self.context.seed, purpose, self.round, client)

    # Clients

    def client_state(self, name: str, initial: Tensor) -> ClientState:
        """Give every client a vector [n] that it keeps between rounds; to be called in `Algorithm.setup`."""
        return self.context.states.create(name, initial, self.device)

    def my_clients(self, cohort: Cohort) -> Iterator[Block]:
        """This rank's share of `cohort`, in blocks that are trained together, the longest first.

        What is drawn from the generators of `random`, `numpy.random` and `torch` for a block depends on its first
        client, on whatever rank it is; afterwards all ranks draw the same again.

        Raises:
            RanksDiffer: ranks gave different cohorts; sooner or later, on one rank at least.
        """
        return self.at_clients.my_clients(cohort)

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
        return self.at_clients.train(block, start, hooks, phase, **vectors)

    def count_steps(self, cohort: Cohort, phase: Phase = WHOLE) -> NDArray[np.int64]:
        """[m] optimizer steps that each does in one training."""
        return self.at_clients.count_steps(cohort, phase)

    def record(self, block: Block, **values: Tensor) -> None:
        """Record numbers [K] of a block's clients, under names that the algorithm lists in `client_metrics`."""
        self.context.round.ledger.record(block, {name: value.cpu().numpy() for name, value in values.items()})

    def gather_records(self) -> dict[str, NDArray[np.float64]]:
        """What was recorded of the round's clients, on every rank: name -> [m], in the order of `cohort.clients`.

        NaN where nothing was recorded, such as of a client that was not trained.
        """
        with self.context.doing("gathering records"):
            return self.context.round.ledger.gather()

    def undiverged(self, cohort: Cohort) -> Cohort:
        """Those of the round's cohort whose training has not diverged; a collective, after all have been trained."""
        return cohort.subset(np.flatnonzero(self.gather_records()["diverged"] != 1))

    # Models

    def initial_weights(self, number: int = 0) -> Tensor:
        """[P] freshly drawn weights, the same on every rank; other numbers give other draws.

        What the network freezes is no part of them: it is that of number 0 in all models.
        """
        return self.context.build(number).weights[0].to("cpu", copy=True)

    def broadcast(self, vector: Tensor, received: int | None = None) -> Tensor:
        """The server's `vector` [..., n] on every rank and its device; counts as sent to each client of the round.

        To be read only, and only in this round: the ranks of a node share one copy. Clone what is to be kept.

        Args:
            received: how many numbers of it the clients receive, all together, if not every client all of it.
        """
        if received != 0:  # else it is no part of what clients do, and may be asked for before there are any
            ledger = self.context.round.ledger
            numbers = vector.numel() * len(ledger.cohort) if received is None else received
            ledger.bytes_down += numbers * vector.element_size()
        return self.context.distribute(vector)

    def weighted_mean(
        self,
        cohort: Cohort,
        start: Tensor | None = None,
        groups: int | None = None,
        columns: Columns = slice(None),
    ) -> WeightedMean:
        """An empty mean over `cohort` of vectors [P] that its clients send, or several side by side.

        See `WeightedMean`, and `Uplink` for what else becomes of what is sent.

        Args:
            start: [P] or [groups, P], what the clients received, if the vectors are models; None: they are changes.
            groups: how many means are formed side by side.
            columns: the part of the model that the vectors are, if not all of it; only this is sent.
        """
        uplink = self.context.uplink(cohort, start, columns)
        return self.context.mean_over(cohort, groups, columns, cohort.expected_mass, uplink)

    def fraction_heard(self, mean: WeightedMean) -> float:
        """Fraction of all clients' total weight that this mean contains: m / N if they count alike."""
        return mean.mass / int(self.masses.sum())

    def stack(self, cohort: Cohort, start: Tensor, group: NDArray[np.int64] | None = None) -> Stack:
        """An empty stack for the models [P] that the clients of `cohort` send.

        See `Stack`, and `Uplink` for what else becomes of what is sent.

        Args:
            start: [P] or [groups, P], what they received.
            group: [m] which of several starts each of them received.
        """
        uplink = self.context.uplink(cohort, start)
        return Stack(self.context.world, cohort, start, self.layout.parameters, uplink, group)

    def gather(self, cohort: Cohort, mine: Mapping[int, Tensor], size: int, counts: bool = True) -> Tensor:
        """[m, n] at the server, on the meta device elsewhere: a short vector of each client of the cohort, in order.

        As they are, neither attacked nor compressed; NaN for a client whose vector is not there or not finite.

        Args:
            mine: client -> [n], of those that this rank trained.
            size: n, such as that of a layer; of whole models the server would have too many.
            counts: whether they count as sent; not if they are in what is sent anyway.
        """
        rows = Rows(self.context.world, cohort.clients, size)
        for client, vector in mine.items():
            rows.put(client, vector.cpu().numpy())
            self.context.round.ledger.bytes_up += vector.nbytes if counts else 0
        with self.context.doing("gathering vectors"):
            rows.close()
            gathered = rows.collect()
        return torch.from_numpy(gathered) if self.is_server else torch.empty(len(cohort), size, device="meta")

    # Measurements and reports

    def evaluate(self, weights: Tensor, predict: Prediction | None = None, **vectors: Tensor) -> Evaluation:
        """Measure the server's model `weights` [P] on the test set, spread over the ranks that train.

        Args:
            predict: how logits are made with it, as a rule `Algorithm.predict`; None: by the network alone.
            vectors: of the server, which it may read.
        """
        return self.reports.evaluate(weights, predict, **vectors)

    def evaluate_clients(self, weights: Tensor, personal: Personal) -> Evaluation:
        """Measure every client's own model on the client's own shard of the test set, where its state lies.

        Args:
            weights: [P] or [n], the server's model or the part of it that clients receive.
            personal: the models [K, P] of a block's clients, from what they keep and `weights`.
        """
        return self.reports.evaluate_clients(weights, personal)

    def report(self, evaluation: Evaluation) -> None:
        """Make an evaluation that of the round: test_loss and test_accuracy, per class and per client.

        These are over all test samples, that is weighted by the clients' test samples; further columns are the mean,
        the standard deviation and three percentiles of the clients' accuracies, each on its own test samples; and the
        mean weighted by their training samples.
        """
        self.reports.report(evaluation)

    def report_personal(self, evaluation: Evaluation) -> None:
        """Report what `evaluate_clients` found.

        All clients count, those that never took part with what they have from the start; the column clients_trained
        is how many did.
        """
        self.reports.report_personal(evaluation)

    def report_clusters(self, assignment: Tensor, models: int) -> None:
        """Report which of several models is each client's, [clients]; -1: none yet.

        Columns of /rounds are how many clients each has and, where the partition knows the true groups, the adjusted
        Rand index of these and the clusters of those that have a model.
        """
        self.reports.report_clusters(assignment, models)

    def log(self, **values: float) -> None:
        """Add columns to the round's row in the results; what the server logs is kept."""
        self.reports.log(**values)

    def say(self, line: str) -> None:
        """Print a line, once per job."""
        if self.is_server:
            streams.say(line)

    def keep(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Put the server's arrays into the results as a group of this name, as they are."""
        if self.is_server:
            self.context.keep(name, arrays)
