"""The interface for methods: clients to train, collectives over their models, and reports.

The same calls are made on every rank in the same order (SPMD). Methods never see ranks, MPI, devices, data files,
seeds, or the true groups of a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness, streams
from fedmpi.errors import BadInput
from fedmpi.federation.client_state import INTERNAL, ClientState
from fedmpi.federation.context import Context
from fedmpi.federation.evaluation import Evaluation, Prediction
from fedmpi.federation.local import Local, Trained
from fedmpi.federation.mean import Arrive, WeightedMean
from fedmpi.federation.reports import Known, Personal, Reports
from fedmpi.federation.server import Server
from fedmpi.federation.stack import Stack
from fedmpi.mpi.rows import Rows
from fedmpi.policies import Cohort
from fedmpi.results.writer import check_kept
from fedmpi.training.block import WHOLE, Block, Hooks, Phase
from fedmpi.training.layout import Columns, Layout
from fedmpi.training.settings import LocalTraining


class Federation:
    """The clients of an experiment, distributed over the ranks of a job, and their server.

    It has what most methods need. What only some methods need is in `at_clients`, `at_server` and `reports`.

    Args:
        context: the state that the parts share.

    Attributes:
        clients: number of clients.
        samples: [clients] number of training samples of each client, read-only.
        shards: for each client, int64 numbers of its training samples, read-only.
        classes: how many there are, or strata.
        task: what is learned.
        shape: shape of a sample, as networks take it.
        is_text: whether samples are tokens.
        has_images: whether samples are images of pixels from 0 to 255.
        layout: the positions of a model's tensors in its vector [P].
        device: device of this rank's vectors. The server's state is in host memory.
        is_server: whether this rank holds the server's state.
        local: the settings of local training.
        has_asked_for_rounds: whether the method has read `rounds`.
        at_clients: further work of clients: gradients, features, losses.
        at_server: training at the server, its samples, and the clients' models as teachers.
        reports: further evaluations.
        sibling: (make a network, local training, rounds, name) -> a federation of the same clients around that
            network, which sees images on the scale 0..1. Its random numbers depend on the name. See
            `Algorithm.stages`.
        context: for `Engine`; not for methods.
    """

    sibling: Callable[[Callable[[], nn.Module], LocalTraining, int, str], Federation]

    def __init__(self, context: Context) -> None:
        split, train = context.split, context.train
        self.clients = context.clients
        self.samples = split.samples
        self.shards = split.train
        self.classes = split.classes
        self.task = context.evaluator.measures.task
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
        """The number of the current round; the first is 1."""
        return self.context.round.number

    @property
    def rounds(self) -> int:
        """The number of rounds of the run. If a method reads it, no rounds can be added later."""
        self.has_asked_for_rounds = True
        return self.context.rounds

    def has_round(self, number: int) -> bool:
        """Whether the run has a round with this number: for checks and evaluations that do not influence a model."""
        return number <= self.context.rounds

    @property
    def lr(self) -> float:
        """The clients' learning rate of this round."""
        return self.local.rate(self.round, self.context.rounds)

    def stream(self, purpose: str, client: int = 0) -> np.random.Generator:
        """A random generator for a purpose in this round (and a client, if given); the same on every rank.

        Its numbers are others than those that fedmpi itself draws, whatever the purpose is called.
        """
        return randomness.stream(self.context.seed, randomness.of_method(purpose), self.round, client)

    # Clients

    @property
    def masses(self) -> NDArray[np.int64]:
        """[clients] weight of each client in a mean, if it is drawn once; read-only."""
        return self.context.masses

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """[clients, classes] number of training samples of each client and class, or stratum of targets; read-only.

        Those of malicious clients are by the labels that they train on.
        """
        return self.context.label_counts

    def client_state(self, name: str, initial: Tensor) -> ClientState:
        """Give every client a vector [n] that it keeps between rounds; must be called in `Algorithm.setup`.

        Raises:
            BadInput: the name is taken, for example by the method that this one extends, or is reserved for fedmpi.
        """
        if name.startswith(INTERNAL):
            raise BadInput(f"fed.client_state: {name!r}: must not begin with {INTERNAL!r}: choose another name")
        return self.context.states.create(name, initial, self.device)

    def my_clients(self, cohort: Cohort, phase: Phase = WHOLE) -> Iterator[Block]:
        """This rank's clients of `cohort`, in blocks that are trained together; the longest block first.

        The generators of `random`, `numpy.random` and `torch` are seeded by the first client of a block, whatever the
        rank. After the last block all ranks draw the same numbers again.

        Args:
            phase: the training whose steps decide which rank trains a client. It matters only for time.

        Raises:
            RanksDiffer: ranks gave different cohorts. It is raised on at least one rank, possibly later.
        """
        return self.at_clients.my_clients(cohort, phase)

    def train(self, block: Block, start: Tensor, hooks: Hooks, phase: Phase = WHOLE, **vectors: Tensor) -> Trained:
        """Local training of a block's clients.

        Clients whose model is not finite are marked as diverged: means and client states leave them out.

        Args:
            block: from `my_clients`.
            start: [P] or [K, P], the received weights.
            hooks: has the `loss` and `direction` that are used; usually the algorithm itself.
            phase: which of several trainings of the round it is, its length, its optimizer, and the part of the
                model that is trained.
            vectors: vectors for the hooks: [K, ...], one row per client, or [n], the same for all clients. A
                `direction` that is not elementwise may change its copies of the rows in place, see `Trained`.
        """
        return self.at_clients.train(block, start, hooks, phase, **vectors)

    def count_steps(self, cohort: Cohort, phase: Phase = WHOLE) -> NDArray[np.int64]:
        """[m] optimizer steps of each client in one training."""
        return self.at_clients.count_steps(cohort, phase)

    def record(self, block: Block, **values: Tensor) -> None:
        """Record values [K] of a block's clients, under names that the algorithm lists in `client_metrics`."""
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.shape != (len(block),):
                given = f"{list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                allowed = f"must be a tensor [{len(block)}], a value per client"
                raise ValueError(f"fed.record: {name} is {given}: {allowed}")
        self.context.round.ledger.record(block, {name: value.cpu().numpy() for name, value in values.items()})

    def gather_records(self) -> dict[str, NDArray[np.float64]]:
        """The recorded values of the round's clients, on every rank: name -> [m], in the order of `cohort.clients`.

        NaN if nothing was recorded, for example because a client was not trained. Refused under `--privacy`.
        """
        self.context.refuse_if_private("fed.gather_records")
        return self._records()

    def undiverged(self, cohort: Cohort) -> Cohort:
        """The clients of the round's cohort whose training has not diverged.

        A collective; call it after all training.
        """
        return cohort.subset(np.flatnonzero(self._records()["diverged"] != 1))

    def _records(self) -> dict[str, NDArray[np.float64]]:
        with self.context.doing("gathering records"):
            return self.context.round.ledger.gather()

    # Models

    def initial_weights(self, number: int = 0) -> Tensor:
        """[P] newly drawn weights, the same on every rank; different for each number.

        Number 0 is the initial model of the run, which `--init` takes from another run.
        Frozen parameters are not part of them: all models have those of number 0.
        """
        return self.context.build(number).weights[0].to("cpu", copy=True)

    def broadcast(self, vector: Tensor | Sequence[Tensor], received: int | None = None) -> Tensor:
        """The server's `vector` [..., n] on every rank's device. It counts as sent to each client of the round.

        It is read-only and valid only in this round, because the ranks of a node share one copy. Clone it to keep it.

        Args:
            vector: or several vectors [n], which arrive as a matrix; a copy is saved that `torch.stack` would make.
            received: how many numbers all clients together receive; None: every client receives the whole vector.
        """
        if received != 0:  # else it is no part of what clients do, and may be asked for before there are any
            ledger = self.context.round.ledger
            vectors = [vector] if isinstance(vector, Tensor) else vector
            numbers = sum(one.numel() for one in vectors) * len(ledger.cohort) if received is None else received
            ledger.bytes_down += numbers * vectors[0].element_size()
        return self.context.distribute(vector)

    def weighted_mean(
        self,
        cohort: Cohort,
        start: Tensor | None = None,
        groups: int | None = None,
        columns: Columns = slice(None),
        arrive: Arrive | None = None,
    ) -> WeightedMean:
        """An empty mean over `cohort` of vectors [P] that its clients send, or several means (`groups`).

        See `WeightedMean`, and `Uplink` for attacks, clipping and compression of sent vectors. A client's share of
        the mean is rounded to a multiple of 2^-43, about 1e-13: scale vectors of much smaller numbers before.

        Args:
            start: [P] or [groups, P], the received vector, if the vectors are models; None: they are changes.
            groups: number of means.
            columns: the part of the model that is sent; None: all of it.
            arrive: changes the vectors where they arrive, see `WeightedMean`.
        """
        if groups is not None:
            self.context.refuse_if_private("fed.weighted_mean of groups")
        uplink = self.context.uplink(cohort, start, columns)
        return self.context.mean_over(cohort, groups, columns, cohort.expected_mass, uplink, arrive)

    def fraction_heard(self, mean: WeightedMean) -> float:
        """The share of all clients' total weight in this mean: m / N if all clients have equal weights."""
        return mean.mass / int(self.masses.sum())

    def stack(self, cohort: Cohort, start: Tensor, group: NDArray[np.int64] | None = None) -> Stack:
        """An empty stack for the models [P] that the clients of `cohort` send.

        See `Stack`, and `Uplink` for what else becomes of what is sent. Refused under `--privacy`.

        Args:
            start: [P] or [groups, P], the received models.
            group: [m] the number of the start that each client received.
        """
        self.context.refuse_if_private("fed.stack")
        uplink, ledger = self.context.uplink(cohort, start), self.context.round.ledger
        return Stack(self.context.world, cohort, start, self.layout.parameters, uplink, ledger, group)

    def gather(self, cohort: Cohort, mine: Mapping[int, Tensor], size: int, counts: bool = True) -> Tensor:
        """[m, n] at the server (meta tensors on other ranks): a short vector per client of the cohort, in order.

        The vectors are neither attacked nor compressed. NaN for a client whose vector is missing or not finite.
        Refused under `--privacy`.

        Args:
            mine: client -> [n], for the clients that this rank trained.
            size: n, for example the size of a layer; whole models would take too much memory at the server.
            counts: whether the vectors count as sent. They should not if they are part of another sent vector.
        """
        self.context.refuse_if_private("fed.gather")
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
        """Evaluate the server's model `weights` [P] on the test set, distributed over the ranks that train.

        Args:
            predict: computes the output, usually `Algorithm.predict`; None: the network's own output.
            vectors: vectors of the server that `predict` may read.
        """
        return self.reports.evaluate(weights, predict, **vectors)

    def evaluate_clients(
        self, weights: Tensor, personal: Personal, predict: Prediction | None = None, known: Known | None = None
    ) -> Evaluation:
        """Evaluate every client's model on the client's test samples, on the rank that holds its state.

        Args:
            weights: [P] or [n], the server's model, or the part of it that clients receive.
            personal: computes the models [K, P] of a block's clients from their state and `weights`.
            predict: computes the output with a client's model; None: the network's own output.
            known: computes the vectors [K, ...] of a block's clients that `predict` reads, from their models [K, P]
                and their training samples.
        """
        return self.reports.evaluate_clients(weights, personal, predict, known)

    def report(self, evaluation: Evaluation) -> None:
        """Report an evaluation as that of the round: test_loss, test_accuracy and other metrics, and per client.

        These are over all test samples. Further columns are, for the main metric on the clients' own test samples:
        mean, standard deviation, three percentiles, mean of the worst tenth of the clients, and the mean weighted by
        their training samples.
        """
        self.reports.report(evaluation)

    def report_personal(self, evaluation: Evaluation) -> None:
        """Report the results of `evaluate_clients`.

        All clients count. Those that have never taken part have their initial model. The column clients_trained is
        the number of clients that have taken part.
        """
        self.reports.report_personal(evaluation)

    def report_clusters(self, assignment: Tensor, models: int) -> None:
        """Report the number of each client's model, [clients]; -1: none yet.

        Columns of /rounds: the number of clients of each model and, if the partition has true groups, the adjusted
        Rand index between the groups and the models of clients that have one.
        """
        self.reports.report_clusters(assignment, models)

    def log(self, **values: float) -> None:
        """Add columns to the round's row in the results; the values of the server are used."""
        self.reports.log(**values)

    def say(self, line: str) -> None:
        """Print a line, once per job."""
        if self.is_server:
            streams.say(line)

    def keep(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Store the server's arrays as a group of this name in the results file. They replace those from before.

        Raises:
            BadInput: this is the name of a group of fedmpi's own, or there are no numbers in an array.
        """
        check_kept(name, arrays if self.is_server else {})
        if self.is_server:
            self.context.keep(name, arrays)
