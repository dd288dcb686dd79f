"""DistributionFusion.

Duan, Li, Zou, Li, Lu: Federated Learning with Data-Agnostic Distribution Fusion. CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.toolbox.fusion import (
    Allotment,
    Fusion,
    Statistics,
    between_components,
    correlation,
    fuse,
    responsibilities,
)
from fedmpi.errors import BadInput
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeInt, PositiveInt, interval
from fedmpi.typing import Cohort, Federation, FlatModel, Layout, Tensor, Vectors

#: Weights become whole numbers, of which means are exact, in units of 2^-48.
UNIT = 2.0**-48


@with_options
class DistributionFusion(Algorithm):
    """One mean of models, weighted by groups that are inferred from normalisation layers (Duan et al., 2023).

    After local training the clients send what their normalisation layers have learnt, a small part of a model. From
    that a variational autoencoder at the server infers which of M virtual components each client belongs to
    (`fedmpi.algorithms.toolbox.allocation`), and from that what each client's model counts
    (`fedmpi.algorithms.toolbox.fusion`); then the rest of the models is averaged, where it is. A rank keeps the
    models of all its clients of the round until then.

    Paper and released code leave open how weights come from components. With components weighted by their mass it
    would be FedAvg, whatever is inferred; here rare ones count more, by `pi_power`. Differs from the paper, too: one
    component is drawn for a client, not each by itself, without which groups are not found
    (`fedmpi.algorithms.toolbox.allocation`).

    Columns of /rounds: components_alive, those with clients of this round; effective_clients, 1 / sum_k omega_k^2;
    weights_l1, how far the weights omega are from FedAvg's, in [0, 2]; between_components, the share of their
    variance, as multiples of FedAvg's, that lies between components; left_out, clients whose statistics are not
    finite; server_seconds, what it takes; and, in rounds with a fit, twin_correlation.

    Args:
        components: M, at most so many groups.
        statistics: the normalisation layers that groups are inferred from: the first and the last, or all.
        pi_power: a component counts its samples to this power. 1 is FedAvg; 0: all components alike.
        allocation: whether a client belongs to its likeliest component, or softly to several.
        cap: how many times FedAvg's weight a weight may be, at the most; null: any.
        bn_merge: of running variances. moments: that of all the clients' activations together, which counts how far
            their means are apart; linear: the mean of the variances.
        fit_every: rounds from one fit of the autoencoder to the next.
        first_steps: of the first fit.
        steps: of the others.
        twin: whether at each fit another autoencoder is drawn and fitted, for the correlation of its weights, as
            multiples of FedAvg's, with those used: the column twin_correlation.
    """

    components: PositiveInt = 15
    statistics: Literal["first_last", "all"] = "first_last"
    pi_power: Annotated[float, interval("[0, 1]", "at least 0 and at most 1, FedAvg")] = 0.5
    allocation: Allotment = "hard"
    cap: Annotated[float, interval("[1, inf)", "at least 1, FedAvg")] | None = 4.0
    bn_merge: Literal["moments", "linear"] = "moments"
    fit_every: PositiveInt = 10
    first_steps: PositiveInt = 250
    steps: NonNegativeInt = 30
    twin: bool = True

    server_state = ("weights", "vae_weights", "vae_moments", "vae_steps", "responsibilities")
    takes_server_optimizer = True
    averages_models = looks_at_models = True
    client_metrics = ("component", "omega")

    is_alone = False  # which `check` tells

    @property
    def welcomes_newcomers(self) -> bool:
        return True

    def check(self, cohort: int) -> None:
        self.is_alone = cohort == 1

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.read = Statistics(fed.layout, self.statistics)
        if not self.read.extent[0]:
            raise BadInput("--model: DistributionFusion needs one with normalisation layers (--model.norm batch)")
        self.network = self.draw_network(fed, "distribution fusion")
        self.vae_weights = self.network.weights[0].cpu().clone()
        self.vae_moments = torch.zeros(2, self.network.layout.parameters)  # Adam's
        self.vae_steps = torch.zeros(1)  # Adam's so far
        self.responsibilities = torch.full((fed.clients, self.components), math.nan)  # when last seen
        if self.is_alone:
            fed.say("a cohort of one: its model counts 1, and nothing is inferred")

    def draw_network(self, fed: Federation, purpose: str) -> FlatModel:
        """An autoencoder that has learnt nothing."""
        from fedmpi.algorithms.toolbox.allocation import Autoencoder

        inputs, outputs = self.read.extent
        return fed.at_server.build(lambda: Autoencoder(inputs, outputs, self.components), purpose)

    @property
    def networks(self) -> Mapping[str, Layout]:
        return {"vae_weights": self.network.layout}

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
            omega = self.infer(fed, cohort, rows)
        weighted = weighted_by(cohort, fed.broadcast(omega, received=len(cohort)))
        trained = slice(0, fed.layout.parameters)
        mean = fed.weighted_mean(weighted, start[trained], columns=trained)
        for block, weights in models:
            mass = weighted.mass[np.searchsorted(cohort.clients, block.clients)]
            mean.add(weights[:, trained], replace(block, mass=mass))
        parameters = mean.reduce(empty=self.weights[trained])
        self.server_step(fed, torch.cat([parameters, self.merged(fed, weighted, rows)]))

    def merged(self, fed: Federation, cohort: Cohort, rows: Tensor) -> Tensor:
        """The running statistics of the mean, from rows [m, n] of what normalisation layers have learnt."""
        buffers = fed.layout.segments["statistics"]
        if not fed.is_server:
            return torch.empty(buffers.stop - buffers.start, device="meta")
        counted = np.flatnonzero(cohort.mass)
        if not len(counted):
            return self.weights[buffers]
        learnt = rows.double().numpy()[counted]
        merged = self.read.merge(learnt, cohort.weights[counted], self.bn_merge == "moments")
        return torch.from_numpy(merged[buffers.start - self.read.columns.start :]).float()

    def infer(self, fed: Federation, cohort: Cohort, rows: Tensor) -> Tensor:
        """[m] float32 at the server, on the meta device elsewhere: what each client's model counts.

        Args:
            rows: [m, n], what their normalisation layers have learnt.
        """
        if not fed.is_server:
            return torch.empty(len(cohort), device="meta")
        x = self.read.features(rows.double().numpy())
        is_finite = rows.isfinite().all(1).numpy() & np.isfinite(x).all(1)
        present = np.flatnonzero(is_finite & (cohort.mass > 0))
        omega, component = np.zeros(len(cohort)), np.full(len(cohort), -1)
        if len(present):
            mass = cohort.mass[present]
            fusion, component[present] = self.fused(fed, cohort.clients[present], mass, x[present])
            omega[present] = fusion.weights
            share = mass / mass.sum()
            fed.log(
                components_alive=len(fusion.components),
                effective_clients=1 / float((fusion.weights**2).sum()),
                weights_l1=float(np.abs(fusion.weights - share).sum()),
                between_components=between_components(fusion.weights, mass, component[present]),
            )
        fed.log(left_out=int((~is_finite & (cohort.mass > 0)).sum()))
        everyone = cohort.block(np.arange(len(cohort)))
        fed.record(everyone, component=torch.from_numpy(component), omega=torch.from_numpy(omega))
        known = torch.where(self.responsibilities[:, 0].isnan(), -1, self.responsibilities.argmax(1))
        fed.report_clusters(known, self.components)
        return torch.from_numpy(omega).float()

    def fused(
        self, fed: Federation, clients: NDArray[np.int64], mass: NDArray[np.int64], x: NDArray[np.float64]
    ) -> tuple[Fusion, NDArray[np.int64]]:
        """The weights of these clients with masses [k] and features [k, d], and the component of each; -1: none."""
        from fedmpi.algorithms.toolbox.allocation import fit, log_probabilities

        if len(x) == 1:  # there is nothing to tell it from
            return fuse(np.ones((1, 1)), mass, self.pi_power, self.cap), np.full(1, -1)
        seen, done = torch.from_numpy(standardised(x)).float().to(fed.device), int(self.vae_steps)
        fits = not done or (fed.round - 1) % self.fit_every == 0
        self.network.load(self.vae_weights)
        if fits:
            steps = self.steps if done else self.first_steps
            rng = fed.stream("distribution fusion")
            self.vae_moments = fit(self.network, self.vae_moments, done, seen, steps, rng)
            self.vae_weights = self.network.weights[0].cpu().clone()
            self.vae_steps = self.vae_steps + steps
        log_q = log_probabilities(self.network, seen)
        r, alive = responsibilities(log_q, mass, self.allocation)
        fusion, component = fuse(r, mass, self.pi_power, self.cap), alive[r.argmax(1)]
        self.responsibilities[clients] = 0
        self.responsibilities[np.ix_(clients, alive)] = torch.from_numpy(r).float()
        if fits and self.twin:
            twin, rng = self.draw_network(fed, "distribution fusion twin"), fed.stream("distribution fusion twin")
            fit(twin, torch.zeros_like(self.vae_moments), 0, seen, self.first_steps, rng)
            r, _ = responsibilities(log_probabilities(twin, seen), mass, self.allocation)
            other = fuse(r, mass, self.pi_power, self.cap)
            fed.log(twin_correlation=correlation(fusion.weights / mass, other.weights / mass))
        return fusion, component


def standardised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """[k, d], each column less its mean, over its standard deviation, but at least 0.001."""
    return np.asarray((x - x.mean(0)) / np.maximum(x.std(0), 1e-3))


def weighted_by(cohort: Cohort, omega: Tensor) -> Cohort:
    """The cohort in whose mean each client counts omega [m], if not none does."""
    mass = np.rint(omega.cpu().double().numpy() / UNIT).astype(np.int64)
    expected = cohort.expected_mass and cohort.expected_mass / cohort.total_mass * int(mass.sum())
    return replace(cohort, mass=mass, expected_mass=expected)
