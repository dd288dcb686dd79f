"""Infers at the server which virtual component each client belongs to, from the clients' normalisation layers.

Part of DistributionFusion (Duan et al., CVPR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.toolbox.fusion import Allotment, Floats, Statistics, responsibilities, scaled, stratified
from fedmpi.errors import BadInput
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeInt, PositiveInt
from fedmpi.typing import Federation, FlatModel, Layout, Tensor


@dataclass(frozen=True)
class Judged:
    """K clients whose components are inferred together.

    Attributes:
        clients: [K], the clients' numbers, ascending.
        masses: [K], weights of the clients.
        r: [K, A], responsibilities of the components for the clients.
        alive: [A], the numbers of the components that have clients.
        twin: [K, B], responsibilities by another autoencoder; None: there is none in this round.
    """

    clients: NDArray[np.int64]
    masses: NDArray[np.int64]
    r: Floats
    alive: NDArray[np.int64]
    twin: Floats | None


@with_options
class InferredComponents(Algorithm):
    """Base of a method whose server infers components of clients with a variational autoencoder.

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
        twin: whether each fit is repeated with another autoencoder, as a check.
    """

    components: PositiveInt = 15
    mixture: Literal["population", "cohort"] = "population"
    statistics: Literal["first_last", "all"] = "first_last"
    allocation: Allotment = "hard"
    fit_every: PositiveInt = 10
    first_steps: PositiveInt = 250
    steps: NonNegativeInt = 30
    twin: bool = True

    def __post_init__(self) -> None:
        self.is_pooled = self.mixture == "population"
        inferred = "vae_weights", "vae_moments", "vae_steps", "responsibilities"
        self.server_state = ("weights", *inferred, *(["features"] if self.is_pooled else []))

    @property
    def counts_clients_once(self) -> bool:  # type: ignore[override]
        return self.is_pooled

    @property
    def networks(self) -> Mapping[str, Layout]:
        return {"vae_weights": self.network.layout}

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.read = Statistics(fed.layout, self.statistics)
        if not self.read.extent[0]:
            raise BadInput("--model: DistributionFusion needs one with normalisation layers (--model.norm batch)")
        self.network = self.draw_network(fed, "distribution fusion")
        self.vae_weights = self.network.weights[0].cpu().clone()
        self.vae_moments = torch.zeros(2, self.network.layout.parameters)  # Adam's
        self.vae_steps = torch.zeros(1)  # Adam's so far
        self.responsibilities = torch.full((fed.clients, self.components), math.nan)  # when last judged
        if self.is_pooled:
            self.features = torch.full((fed.clients, self.read.extent[0]), math.nan)  # when last seen

    def draw_network(self, fed: Federation, purpose: str) -> FlatModel:
        """An untrained autoencoder."""
        from fedmpi.algorithms.toolbox.allocation import Autoencoder

        inputs, outputs = self.read.extent
        return fed.at_server.build(lambda: Autoencoder(inputs, outputs, self.components), purpose)

    def judge(self, fed: Federation, clients: NDArray[np.int64], mass: NDArray[np.int64], x: Floats) -> Judged | None:
        """Infer the components of clients with weights [k] and features [k, d], and of all clients seen before.

        At the server.

        None: there is only one client and none was seen before, so nothing can be inferred.
        """
        from fedmpi.algorithms.toolbox.allocation import fit, log_probabilities

        known = self.keep(fed, clients, mass, x)
        if known is None:
            return None
        clients, vectors = known
        masses = fed.masses[clients] if self.is_pooled else mass
        seen = torch.from_numpy(vectors).float().to(fed.device)
        fits = not self.vae_steps or (fed.round - 1) % self.fit_every == 0
        r, alive = responsibilities(self.log_q(fed, clients, seen, fits), masses, self.allocation)
        self.responsibilities[clients] = 0
        self.responsibilities[np.ix_(clients, alive)] = torch.from_numpy(r).float()
        others = None
        if fits and self.twin:
            twin, rng = self.draw_network(fed, "distribution fusion twin"), fed.stream("distribution fusion twin")
            fit(twin, torch.zeros_like(self.vae_moments), 0, seen, self.first_steps, rng)
            others, _ = responsibilities(log_probabilities(twin, seen), masses, self.allocation)
        return Judged(clients, masses, r, alive, others)

    def keep(
        self, fed: Federation, clients: NDArray[np.int64], mass: NDArray[np.int64], x: Floats
    ) -> tuple[NDArray[np.int64], Floats] | None:
        """The clients whose components are inferred: their numbers [K], ascending, and the autoencoder's inputs [K,
        d].

        The features' common part changes from round to round, so it is subtracted. With `mixture population` it is
        the mean of the cohort, in which known components have their weight in the population. The remainder is kept
        for each client until it is seen again.
        """
        if not self.is_pooled:
            return (clients, scaled(x, x.mean(0))) if len(x) > 1 else None
        if len(x) > 1:
            r = self.responsibilities.double().numpy()
            weights = stratified(r[clients], mass, fed.masses @ np.nan_to_num(r))
            self.features[clients] = torch.from_numpy(x - weights @ x).float()
        known = np.flatnonzero(~self.features[:, 0].isnan().numpy())
        is_known = np.isin(clients, known).all()
        return (known, scaled(self.features[known].double().numpy())) if is_known else None

    def log_q(self, fed: Federation, clients: NDArray[np.int64], seen: Tensor, fits: bool) -> Floats:
        """[K, M], log-probabilities of the components for clients with vectors [K, d].

        The autoencoder may be fitted first.
        """
        from fedmpi.algorithms.toolbox.allocation import fit, log_probabilities

        done = int(self.vae_steps)
        self.network.load(self.vae_weights)
        if fits:
            steps = self.steps if done else self.first_steps
            rng = fed.stream("distribution fusion")
            self.vae_moments = fit(self.network, self.vae_moments, done, seen, steps, rng)
            self.vae_weights = self.network.weights[0].cpu().clone()
            self.vae_steps = self.vae_steps + steps
        return log_probabilities(self.network, seen)
