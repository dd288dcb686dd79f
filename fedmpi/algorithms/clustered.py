"""Base of the methods that train one model per cluster of clients."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import require
from fedmpi.lazy import torch
from fedmpi.training.block import WHOLE, Phase
from fedmpi.typing import Block, Cohort, Federation, Stack, Tensor


class Clustered(Algorithm):
    """Several global models, one per cluster of clients. Each is trained by, and evaluated on, its cluster.

    A model that no client trained in a round does not change.

    Attributes:
        centers: [M, P], the models.
        assignment: [clients] int64, the number of each client's model; -1: none yet.
    """

    server_state: tuple[str, ...] = ("centers", "assignment")
    client_metrics = ("cluster",)

    def setup(self, fed: Federation) -> None:
        self.centers = fed.initial_weights()[None]
        self.assignment = torch.full((fed.clients,), -1)

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """[P], the model of the most clients."""
        chosen = self.assignment[self.assignment >= 0]
        return self.centers[int(chosen.bincount().argmax()) if len(chosen) else 0]

    def note(self, fed: Federation, cohort: Cohort) -> None:
        """Take the recorded values `cluster` of the round's clients as their assignment, and report it."""
        records = fed.gather_records()
        left = (records["diverged"] == 0) & ~np.isnan(records["cluster"])
        if fed.is_server:
            self.assignment[cohort.clients[left]] = torch.from_numpy(records["cluster"][left]).long()
        fed.report_clusters(self.assignment, len(self.centers))

    def evaluate(self, fed: Federation) -> None:
        """Evaluate each client's model on its test samples (client-matched) and on all (global-matched)."""
        fed.reports.report_matched([fed.evaluate(center) for center in self.centers], self.assignment)


class ClusteredOnce(Clustered):
    """Base of the methods that cluster the clients once, by their updates of a common model.

    Before that, all clients train the common model, called origin. The first model of a cluster is the mean of its
    members' models. A client that was not available then first trains the origin, as the others did. It joins the
    cluster whose mean update is nearest to its own: it receives the first models of the clusters, and sends the
    number of its choice.

    Attributes:
        first_round: the round in which clients are clustered.
        models: number of clusters.
        origin: [P], the common model that they received.
        prototypes: [M, P], the first models of the clusters.
    """

    server_state = (*Clustered.server_state, "origin", "prototypes")

    #: Whether clients have equal weights in the first models of the clusters.
    alike_at_first: bool = False

    first_round = 1
    models: int

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        require(self.models <= fed.clients, "models", self.models, f"at most the number of clients, {fed.clients}")
        self.origin = self.centers[0].clone()
        self.prototypes = self.centers.clone()

    @property
    def phase(self) -> Phase:
        """The training by which clients are clustered."""
        return WHOLE

    def count_steps(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        assignment = fed.broadcast(self.assignment, received=0)
        if self.clusters_now(fed, assignment):
            return fed.count_steps(cohort, self.phase)
        return fed.count_steps(cohort) + self.come_first(assignment, cohort) * fed.count_steps(cohort, self.phase)

    def received_beside(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        """The origin, and the first models of the clusters, for clients that take part for the first time."""
        first = self.come_first(fed.broadcast(self.assignment, received=0), cohort)
        return first * (1 + len(self.prototypes)) * fed.layout.size

    def clusters_now(self, fed: Federation, assignment: Tensor) -> bool:
        """Whether the clients are clustered in this round."""
        return fed.round >= self.first_round and not bool((assignment >= 0).any())

    def come_first(self, assignment: Tensor, cohort: Cohort) -> NDArray[np.int64]:
        """[m], 1 for clients that take part for the first time since the clustering; else 0."""
        is_late = (assignment >= 0).any() & (assignment[cohort.clients] < 0)
        return np.asarray(is_late.long().cpu().numpy())

    def compare(self, changes: Stack) -> NDArray[np.float64]:
        """[k, k] pairwise similarity matrix of the updates of the clients that take part; a collective."""
        from fedmpi.federation.stack import inner_products

        return changes.pairwise(inner_products)

    @abstractmethod
    def clusters(self, fed: Federation, compared: NDArray[np.float64]) -> NDArray[np.int64]:
        """[k], the clusters computed from this similarity matrix [k, k], numbered from 0; only at the server."""

    @abstractmethod
    def nearest(self, changes: Tensor, prototypes: Tensor) -> Tensor:
        """[K], the number of the change [M, d] of the first models that is nearest to each of the changes [K, d]."""

    def again(self, models: Tensor, centers: Tensor, choice: Tensor) -> Tensor:
        """[K], the new clusters of clients from the clusters `choice` that have trained the models [K, P]."""
        return choice

    def merged(self, centers: Tensor, parameters: int) -> Tensor:
        """[M, P], the clusters' models after the round. The first columns are parameters."""
        return centers

    def round(self, fed: Federation, cohort: Cohort) -> None:
        assignment = fed.broadcast(self.assignment, received=0)
        nobody = not (assignment >= 0).any()
        if self.clusters_now(fed, assignment):
            self.begin(fed, cohort)
        else:
            self.go_on(fed, cohort, assignment.clamp(min=0) if nobody else assignment)
            if nobody:
                return
        self.note(fed, cohort)

    def begin(self, fed: Federation, cohort: Cohort) -> None:
        """Form the clusters."""
        start = fed.broadcast(self.centers[0])
        changes = fed.stack(cohort, start)
        for block in fed.my_clients(cohort):
            changes.add(fed.train(block, start, self, self.phase).weights, block)
        changes.close()
        fed.log(rejected=changes.rejected)
        compared = self.compare(changes)
        if fed.is_server and len(compared):
            found = self.clusters(fed, compared)
            self.assignment[cohort.clients[changes.present]] = torch.from_numpy(found)
        assignment = fed.broadcast(self.assignment, received=0)
        if (assignment >= 0).any():
            self.origin = self.centers[0].clone()
            group, mass = assignment[cohort.clients].cpu().numpy(), cohort.mass
            mass = np.minimum(mass, 1) if self.alike_at_first else mass
            self.centers = changes.means(group, mass, int(assignment.max()) + 1)
            self.prototypes = self.centers.clone()
        if fed.is_server:
            fed.record(cohort.block(np.arange(len(cohort))), cluster=self.assignment[cohort.clients])

    def go_on(self, fed: Federation, cohort: Cohort, assignment: Tensor) -> None:
        """Train the clusters' models."""
        size, models = fed.layout.size, len(self.centers)
        centers = fed.broadcast(self.centers, received=len(cohort) * size)
        newcomers = int((assignment[cohort.clients] < 0).sum())
        if newcomers:
            origin = fed.broadcast(self.origin, received=newcomers * size)
            prototypes = fed.broadcast(self.prototypes, received=newcomers * models * size)
        mean = fed.weighted_mean(cohort, centers, groups=models)
        for block in fed.my_clients(cohort):
            choice = assignment[block.clients]
            new = (choice < 0).nonzero()[:, 0]
            if len(new):
                choice[new] = self.welcome(fed, block.rows(new.tolist()), origin, prototypes)
            local = fed.train(block, centers[choice], self)
            choice = self.again(local.weights, centers, choice)
            mean.add(local.weights, block, group=choice)
            fed.record(block, cluster=choice)
        self.centers = self.merged(mean.reduce(empty=self.centers), fed.layout.parameters)

    def welcome(self, fed: Federation, block: Block, origin: Tensor, prototypes: Tensor) -> Tensor:
        """[K], the clusters of clients that take part for the first time."""
        from dataclasses import replace

        trained = slice(0, fed.layout.parameters)
        # In a separate phase, with other batches than the training that follows.
        own = fed.train(block, origin, self, replace(self.phase, name="newcomers ")).weights
        return self.nearest((own - origin)[:, trained], (prototypes - origin)[:, trained])

    def evaluate(self, fed: Federation) -> None:
        """As for other clusters. Before the clustering all clients have the same model."""
        evaluations = [fed.evaluate(center) for center in self.centers]
        together = fed.is_server and not bool((self.assignment >= 0).any())
        fed.reports.report_matched(evaluations, torch.zeros_like(self.assignment) if together else self.assignment)


def nearest(vectors: Tensor, centers: Tensor, norm: int = 2) -> Tensor:
    """[K], the number of the center [M, n] that is nearest to each vector [K, n]; of equally near ones the first.

    Distances are computed from differences in float64, because products of weights lose the digits in which models
    differ.
    """
    distances = [torch.linalg.vector_norm((centers - vector).double(), norm, dim=1) for vector in vectors]
    return torch.stack(distances).argmin(1)


def best_aligned(vectors: Tensor, directions: Tensor) -> Tensor:
    """[K], the number of the direction [M, n] with the largest cosine to each vector [K, n]; of equals the first."""
    units = torch.nn.functional.normalize(directions.double(), dim=1)
    return torch.stack([units @ torch.nn.functional.normalize(v.double(), dim=0) for v in vectors]).argmax(1)
