"""DistributionFusion.

Duan, Li, Zou, Li, Lu: Federated Learning with Data-Agnostic Distribution Fusion. CVPR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.inferred_components import InferredComponents
from fedmpi.algorithms.toolbox.fusion import (
    Floats,
    Fusion,
    between_components,
    component_shares,
    correlation,
    fuse,
    label_distance,
    represented,
    weighted_by,
)
from fedmpi.errors import require
from fedmpi.lazy import torch
from fedmpi.options import null_for, with_options
from fedmpi.ranges import interval
from fedmpi.typing import Cohort, Federation, Layout, Tensor, Vectors


@dataclass(frozen=True)
class Inferred:
    """What the server has inferred about the m clients of a round.

    The other ranks only have `told`, on the meta device.

    Attributes:
        told: [m] float32, a number per client. Without memory it is omega, the weight of the client's model. With
            memory it is the number of the client's component among those of this round, from 0; -1: the client is
            left out.
        component: [m] int64, the number of its component; -1 if it has none.
        shares: [M], the weight of each component in the next model, also of components without a client in this
            round; None: no component is known.
    """

    told: Tensor
    component: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    shares: Floats | None = None


@with_options
class DistributionFusion(InferredComponents):
    """One mean of models, weighted by groups that are inferred from normalisation layers (Duan et al., 2023).

    After local training the clients send the parameters and statistics of their normalisation layers, a small part of
    a model. From these a variational autoencoder at the server infers which of M virtual components each client
    belongs to (`fedmpi.algorithms.toolbox.allocation`), and computes the weights of the clients' models
    (`fedmpi.algorithms.toolbox.fusion`). Then the models are averaged. Until then a rank keeps the models of all its
    clients of the round.

    Paper and released code do not say how weights follow from components. With `mixture population`, components
    describe all clients seen so far: what they have sent is kept, the components of all of them are inferred again in
    each round, and the weight of a component is its share of their samples, however many of its clients are in the
    cohort. A component without a client in the cohort enters with its last update (`memory`). With all clients in
    every round this is FedAvg, whatever is inferred. With `mixture cohort`, components describe the cohort alone.
    Weighted by samples they would give FedAvg, so rare components get more weight, by `pi_power`. Another difference
    from the paper: one component is drawn per client, instead of each one independently, because otherwise groups are
    not found (`fedmpi.algorithms.toolbox.allocation`).

    Columns of /rounds: components_alive: number of components with clients of this round. effective_clients: 1 /
    sum_k omega_k^2. weights_l1: L1 distance of the weights omega from FedAvg's, in [0, 2]. between_components: share
    of the variance of omega (as multiples of FedAvg's weights) that is between components. label_l1: L1 distance of
    the label distribution of the round's clients, weighted by omega, from that of all clients, in [0, 2]. left_out:
    clients whose statistics are not finite. server_seconds: time of the inference. twin_correlation: in rounds with a
    fit.

    Args:
        components: M, the largest number of groups.
        mixture: population: components describe all clients seen so far, each with what it sent last. cohort:
            components describe only the clients of the round.
        statistics: the normalisation layers that groups are inferred from: the first and the last, or all.
        allocation: hard: a client belongs to its most probable component. soft: it belongs to several, by their
            probabilities.
        fit_every: rounds from one fit of the autoencoder to the next.
        first_steps: optimizer steps of the first fit.
        steps: optimizer steps of each later fit.
        twin: whether each fit is repeated with another autoencoder, as a check. The column twin_correlation is the
            correlation of both sets of weights, as multiples of FedAvg's.
        memory: whether a component without clients in the round enters with its last update. This takes memory for M
            models at the server, and needs mixture population and allocation hard. null: whenever it is possible.
        pi_power: the weight of a component is its number of samples to this power. 0: all components have equal
            weights. null: 1; with mixture cohort, where 1 would be FedAvg, 0.5.
        cap: maximum of a weight, as a multiple of FedAvg's weight; null: no maximum.
        bn_merge: how running variances are merged. moments: the variance of all clients' activations together, which
            includes the distances of their means. linear: the mean of the variances.
    """

    memory: bool = null_for()
    pi_power: Annotated[float, interval("[0, 1]")] = null_for()
    cap: Annotated[float, interval("[1, inf)", "at least 1 (FedAvg)")] | None = 4.0
    bn_merge: Literal["moments", "linear"] = "moments"

    takes_server_optimizer = True
    averages_models = looks_at_models = True
    client_metrics = ("component", "omega")

    is_alone = False  # which `check` tells

    def __post_init__(self) -> None:
        super().__post_init__()
        can_remember = self.is_pooled and self.allocation == "hard"
        self.memory = can_remember if self.memory is None else self.memory
        allowed = "false, except with mixture population and allocation hard"
        require(can_remember or not self.memory, "memory", "true", allowed)
        if self.pi_power is None:
            self.pi_power = 1.0 if self.is_pooled else 0.5
        if self.memory:
            self.server_state = (*self.server_state, "changes", "learnt")

    @property
    def takes_held_out(self) -> bool:
        return True

    def check(self, cohort: int) -> None:
        self.is_alone = cohort == 1

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        if self.memory:  # last change of each component: mean of its clients' models minus the received model
            self.changes = torch.zeros(self.components, fed.layout.parameters)
            self.learnt = torch.zeros(self.components, self.read.size)  # of the normalisation layers
        if self.is_alone:
            fed.say("the cohort is one client: its model has weight 1, and nothing is inferred")

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        told = slice(layout.segments["norm"].start, layout.size)
        return [slice(layout.size), 1], [told, slice(0, layout.parameters)]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        models = []
        for block in fed.my_clients(cohort):
            weights, left = self.train(fed, block, start, start).weights, block.undiverged()
            models.append((block.rows(left), weights[left]))
        cohort = fed.undiverged(cohort)
        mine = {
            client: row[self.read.columns]
            for block, weights in models
            for client, row in zip(block.clients.tolist(), weights, strict=True)
        }
        rows = fed.gather(cohort, mine, self.read.size)
        with fed.at_server.serving():
            found = self.infer(fed, cohort, rows)
        told = fed.broadcast(found.told, received=len(cohort)).cpu().numpy()
        groups, group = None, np.zeros(len(cohort), dtype=np.int64)
        if self.memory:
            counted = replace(cohort, mass=np.where(told >= 0, cohort.mass, 0))
            group = told.astype(np.int64).clip(min=0)
            groups = int(group.max(initial=0)) + 1
        else:
            counted = weighted_by(cohort, told)
        trained = slice(0, fed.layout.parameters)
        mean = fed.weighted_mean(counted, start[trained], groups, columns=trained)
        for block, weights in models:
            places = np.searchsorted(counted.clients, block.clients)
            mean.add(weights[:, trained], replace(block, mass=counted.mass[places]), group[places])
        means = mean.reduce(empty=self.weights[trained])
        if self.memory:
            self.server_step(fed, self.remember(fed, found, counted, means, rows))
        else:
            self.server_step(fed, torch.cat([means, self.merged(fed, counted, rows)]))

    def merged(self, fed: Federation, cohort: Cohort, rows: Tensor) -> Tensor:
        """The merged running statistics, from rows [m, n] of the normalisation layers."""
        buffers = fed.layout.segments["statistics"]
        if not fed.is_server:
            return torch.empty(buffers.stop - buffers.start, device="meta")
        counted = np.flatnonzero(cohort.mass)
        if not len(counted):
            return self.weights[buffers]
        return self.statistics_of(fed, rows.double().numpy()[counted], cohort.weights[counted])

    def statistics_of(self, fed: Federation, learnt: Floats, weights: Floats) -> Tensor:
        """The merged running statistics, with weights [k], from rows [k, n] of the normalisation layers."""
        merged = self.read.merge(learnt, weights, self.bn_merge == "moments")
        return torch.from_numpy(merged[fed.layout.parameters - self.read.columns.start :]).float()

    def remember(self, fed: Federation, found: Inferred, cohort: Cohort, means: Tensor, rows: Tensor) -> Tensor:
        """[P], the next model.

        Each component enters with its last update, which is new for the components of this round.

        Args:
            cohort: the clients of the round; those that are left out have weight 0.
            means: [groups, parameters], the means of the components of this round.
            rows: [m, n], the clients' normalisation layers.
        """
        if not fed.is_server or found.shares is None:
            return torch.cat([means[0], self.merged(fed, cohort, rows)])
        before, now = self.weights[: fed.layout.parameters], self.weights[self.read.columns]
        for number, component in enumerate(np.unique(found.component[cohort.mass > 0])):
            self.changes[component] = means[number] - before
            members = np.flatnonzero((found.component == component) & (cohort.mass > 0))
            own = cohort.mass[members] / cohort.mass[members].sum()
            merged = self.read.merge(rows[members].double().numpy(), own, self.bn_merge == "moments")
            self.learnt[component] = torch.from_numpy(merged).float() - now
        parameters, counted = before.clone(), np.flatnonzero(found.shares)
        for component in counted:
            parameters.add_(self.changes[component], alpha=found.shares[component])
        learnt = (now + self.learnt[counted]).double().numpy()
        learnt[:, self.read.variances] = learnt[:, self.read.variances].clip(min=0)
        return torch.cat([parameters, self.statistics_of(fed, learnt, found.shares[counted])])

    def infer(self, fed: Federation, cohort: Cohort, rows: Tensor) -> Inferred:
        """Infer the weight of each client's model.

        Args:
            rows: [m, n], the clients' normalisation layers.
        """
        if not fed.is_server:
            return Inferred(torch.empty(len(cohort), device="meta"))
        x = self.read.features(rows.double().numpy())
        is_finite = rows.isfinite().all(1).numpy() & np.isfinite(x).all(1)
        present = np.flatnonzero(is_finite & (cohort.mass > 0))
        omega, component, shares = np.zeros(len(cohort)), np.full(len(cohort), -1), None
        group = np.full(len(cohort), -1)
        if len(present):
            clients, mass = cohort.clients[present], cohort.mass[present]
            fusion, component[present], shares = self.fused(fed, clients, mass, x[present])
            omega[present] = fusion.weights
            group[present] = np.unique(component[present], return_inverse=True)[1]
            share = mass / mass.sum()
            fed.log(
                components_alive=len(fusion.components),
                effective_clients=1 / float((fusion.weights**2).sum()),
                weights_l1=float(np.abs(fusion.weights - share).sum()),
                between_components=between_components(fusion.weights, mass, component[present]),
                label_l1=label_distance(fusion.weights, fed.label_counts[clients], fed.masses, fed.label_counts),
            )
        fed.log(left_out=int((~is_finite & (cohort.mass > 0)).sum()))
        everyone = cohort.block(np.arange(len(cohort)))
        fed.record(everyone, component=torch.from_numpy(component), omega=torch.from_numpy(omega))
        known = torch.where(self.responsibilities[:, 0].isnan(), -1, self.responsibilities.argmax(1))
        fed.report_clusters(known, self.components)
        return Inferred(torch.from_numpy(group if self.memory else omega).float(), component, shares)

    def fused(
        self, fed: Federation, clients: NDArray[np.int64], mass: NDArray[np.int64], x: Floats
    ) -> tuple[Fusion, NDArray[np.int64], Floats | None]:
        """The weights of these clients with numbers of samples [k] and features [k, d].

        Returns: The weights, the component of each client, and the weight of each of the M components in the next
            model; -1 and None if there is only one client, so that nothing can be inferred.
        """
        judged = self.judge(fed, clients, mass, x)
        if judged is None:
            return fuse(np.ones((1, 1)), mass, self.pi_power, self.cap), np.full(1, -1), None
        here = np.searchsorted(judged.clients, clients) if self.is_pooled else slice(None)
        alive = judged.alive
        r, masses = judged.r[here], judged.masses @ judged.r
        fusion, which = self.weigh(r, mass, masses)
        shares = np.zeros(self.components)
        shares[alive] = component_shares(masses, self.pi_power)
        # Together the components of this round keep the weight that they had before the cap.
        shares[alive[which]] = shares[alive[which]].sum() * (fusion.weights @ r[:, which])
        if judged.twin is not None:
            other, _ = self.weigh(judged.twin[here], mass, judged.masses @ judged.twin)
            fed.log(twin_correlation=correlation(fusion.weights / mass, other.weights / mass))
        return fusion, alive[r.argmax(1)], shares

    def weigh(self, r: Floats, mass: NDArray[np.int64], masses: Floats) -> tuple[Fusion, NDArray[np.int64]]:
        """Weights of clients with responsibilities [k, A] for components of masses [A]."""
        if not self.is_pooled:
            return fuse(r, mass, self.pi_power, self.cap), np.arange(len(masses))
        which = represented(r)
        return fuse(r[:, which], mass, self.pi_power, self.cap, masses[which]), which
