"""What an algorithm sees of the experiment: clients to train, collectives over their models, and a place to report.

The same calls are made on every rank in the same order (SPMD). What an algorithm never sees: ranks, MPI, devices,
data files, seeds, the true groups of a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness, streams
from fedmpi.algorithms.toolbox.clustering import adjusted_rand_index
from fedmpi.federation.clients import Clients, Prediction, predict_with
from fedmpi.federation.evaluation import Evaluation, weighted_accuracy
from fedmpi.federation.mean import total
from fedmpi.federation.server import Images, Labels, Lesson, sample, spread, teach
from fedmpi.policies import Cohort
from fedmpi.training.block import Block
from fedmpi.training.central import CentralTraining
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.settings import LocalTraining


class Federation(Clients):
    """The clients, with the server's own work, measurements, and a place to report.

    Its constructor and its attributes are those of `Clients`.
    """

    # Training at the server, with the help of all ranks

    @contextmanager
    def serving(self) -> Iterator[None]:
        """While the server trains: its time is taken, and random layers of networks draw numbers of this round."""
        key = randomness.key(self._seed, "training at the server", self.round)
        with self.doing("training at the server"), self._ledger.serving(), randomness.globals_kept():
            randomness.seed_globals(key)
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
        with self.doing("asking the clients' models"):
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
        with self.doing("sampling"):
            images = sample(self._world, net, labels, self.shape, noise, finish, self.device, self._seed)
        self.reseed()
        return images

    def spread(self, images: Images | None, labels: Labels | None) -> tuple[Images, Labels]:
        """The server's images [n, C, H, W] and labels [n] on every rank."""
        with self.doing("spreading images"):
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
        with self.doing("training at the server"):
            for epoch in teach(self._world, lessons, starts, make, self._build):
                self.when_idle()
                self.pause()
                yield epoch

    # Measurements

    def training_hits(self, weights: Tensor, shards: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        """[clients]: how many of these training samples of each client the server's model `weights` [P] recognises.

        On every rank; the work is spread over those that train.
        """
        received = self._distribute(weights)
        hits = np.zeros(len(shards))
        if self._world.is_worker:
            with self.doing("evaluation"), self._ledger.timed("evaluation_seconds"):
                hits = self._evaluator.training_hits(received, shards, *self._part)
        self._world.sum(hits)
        self.reseed()
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
            with self.doing("evaluation"), self._ledger.timed("evaluation_seconds"):
                self._evaluator.measure(received, *self._part, measured, predict_with(predict, others))
        self._world.sum(measured)
        self.reseed()
        return self._evaluator.evaluation(measured)

    def evaluate_clients(self, weights: Tensor, personal: Callable[[Block, Tensor], Tensor]) -> Evaluation:
        """Measure every client's own model on the client's own shard of the test set, where its state lies.

        Args:
            weights: [P] or [n], the server's model or the part of it that clients receive.
            personal: the models [K, P] of a block's clients, from what they keep and `weights`.
        """
        received = self._distribute(weights)
        measured = self._evaluator.nothing()
        with self.doing("evaluation"), self._ledger.timed("evaluation_seconds"):
            for client in self._at_home().tolist():
                self._turn_to(client)
                self._evaluator.measure_client(personal(self._alone(client), received)[0], client, measured)
        self._world.sum(measured)
        self.reseed()
        return self._evaluator.evaluation(measured)

    def accuracies(self, weights: Tensor, personal: Callable[[Block, Tensor], Tensor]) -> NDArray[np.float64]:
        """[clients], every client's own model on the whole test set; as expensive as so many evaluations.

        Args:
            weights, personal: as in `evaluate_clients`.
        """
        received = self._distribute(weights)
        found = np.zeros(self.clients)
        with self.doing("evaluation"), self._ledger.timed("evaluation_seconds"):
            for client in self._at_home().tolist():
                self._turn_to(client)
                found[client] = self._evaluator.accuracy(personal(self._alone(client), received)[0])
        self._world.sum(found)
        self.reseed()
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

    def say(self, line: str) -> None:
        """Print a line, once for the job."""
        if self.is_server:
            streams.say(line)

    def log(self, **values: float) -> None:
        """Add columns to the round's row in the results; what the server logs is kept."""
        self._ledger.log(values)

    def record(self, block: Block, **values: Tensor) -> None:
        """Record numbers [K] of a block's clients, under names that the algorithm lists in `client_metrics`."""
        self._ledger.record(block, {name: value.cpu().numpy() for name, value in values.items()})

    def left(self, cohort: Cohort) -> Cohort:
        """Those of the round's cohort whose training has not diverged; a collective, after all have been trained."""
        return cohort.subset(np.flatnonzero(self.gather_records()["diverged"] != 1))

    def gather_records(self) -> dict[str, NDArray[np.float64]]:
        """What was recorded of the round's clients, on every rank: name -> [m], in the order of `cohort.clients`.

        NaN where nothing was recorded, such as of a client that was not trained.
        """
        with self.doing("gathering records"):
            return self._ledger.gather()

    def _tell(self, tensor: Tensor) -> Tensor:
        memory = torch.from_numpy(self._world.tell(tensor.detach().contiguous().cpu().numpy()))
        # Of its own, and laid out alike on every rank: the bits of convolutions depend on it.
        order = torch.channels_last if memory.dim() == 4 else torch.contiguous_format
        return memory.clone(memory_format=order).to(self.device)
