"""Asynchronous federated optimization.

Xie, Koyejo, Gupta: Asynchronous Federated Optimization. 2019. https://arxiv.org/abs/1903.03934
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedmpi.algorithms.asynchronous import Asynchronous, rows
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.policies.timeline import Arrivals
from fedmpi.ranges import NonNegativeFloat, UpToOne
from fedmpi.typing import Federation


@with_options
class FedAsync(Asynchronous):
    """The server mixes each client's model into its own as soon as it arrives (Xie et al., 2019).

    w := (1 - a) w + a x, with a = alpha s(staleness). Staleness is the number of server updates since the client
    started, which is about the number of clients in flight. So the hinge with its published parameters suits only a
    small concurrency. Running statistics of batch normalisation are mixed like the parameters.

    A round is up to `--cohort` arrivals. It ends before a client would arrive a second time. Arrivals whose start
    versions exist are trained side by side on all ranks; then the server applies them one by one.

    Args:
        alpha: weight of a fresh model.
        discount: how the weight falls with staleness t. constant: it does not. polynomial: (1 + t)^-exponent. hinge:
            1 up to `hinge_start`, then 1 / (exponent (t - hinge_start) + 1).
        exponent: see `discount`; the paper has 0.5 for polynomial, and 10 for hinge.
        hinge_start: see `discount`.
    """

    alpha: UpToOne = 0.6
    discount: Literal["constant", "polynomial", "hinge"] = "polynomial"
    exponent: NonNegativeFloat = 0.5
    hinge_start: NonNegativeFloat = 4.0

    takes_server_optimizer = takes_compression = False
    looks_at_models = True
    counts_clients_alike = True

    def update(self, fed: Federation, arrivals: Arrivals, formed: list[int]) -> None:
        for wave in arrivals.waves():
            starts, which = self.starts(fed, wave)
            models = fed.stack(wave, starts, which)
            for block in fed.my_clients(wave):
                own = which[np.searchsorted(wave.clients, block.clients)]
                start = rows(starts, own)
                models.add(self.train(fed, block, start, received=start).weights, block)
            models.close()
            order = np.argsort(wave.order).tolist()
            for place, model in zip(order, models.each(order), strict=True):
                share = self.alpha * self.factor(int(wave.staleness[place]))
                version = int(wave.number[place]) + 1
                into = self.memory(version) if version in formed else torch.empty_like(self.weights)
                if model is None or share == 1:
                    into.copy_(self.weights if model is None else model)
                else:
                    torch.lerp(self.weights, model, share, out=into)
                self.weights = into
        self.weights = self.weights.clone()  # the memory of versions is used again

    def factor(self, staleness: int) -> float:
        """s(staleness), in (0, 1]."""
        if self.discount == "constant":
            return 1.0
        if self.discount == "polynomial":
            return float((1 + staleness) ** -self.exponent)
        late = staleness - self.hinge_start
        return 1.0 if late <= 0 else 1 / (self.exponent * late + 1)
