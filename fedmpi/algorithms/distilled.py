"""What methods have in common in which, after the round of another, the clients' models teach the server's."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from fedmpi.algorithms.base import Vectors
    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort
    from fedmpi.policies.server_optimizers import ServerOptimizer
    from fedmpi.training.flat import Net
    from fedmpi.training.layout import Layout
    from fedmpi.training.samples import Batch


class Distilled(Algorithm):
    """A method whose server trains its model on what the clients' models of the round say to some samples.

    All else is as with the base method: what is sent, what clients keep, who counts what. The clients' numbers of
    samples of each class travel once, before the first round, and are not among the bytes of the rounds.

    Attributes:
        base: the method whose rounds come first.
    """

    server_state: tuple[str, ...] = ()
    averages_models = True
    looks_at_models = trains_at_server = True

    def __init__(self, base: Algorithm) -> None:
        name = type(base).__name__
        if not base.averages_models or base.looks_at_models or base.has_stages:
            raise BadInput(f"= {name}: must be a method that averages its clients' models, and looks at none", "base")
        self.base = base
        self.takes_server_optimizer = base.takes_server_optimizer
        self.weighting = base.weighting
        self.counts_clients_once = base.counts_clients_once
        self.counts_clients_alike = base.counts_clients_alike
        self.accepts_partial_work = base.accepts_partial_work
        self.client_metrics = base.client_metrics

    @property
    def parts(self) -> tuple[Algorithm, ...]:
        return self.base, self

    @property
    def weights(self) -> "Tensor":  # type: ignore[override]
        """[P], the global model: the base method's."""
        return self.base.weights

    @property
    def server_optimizer(self) -> "ServerOptimizer":
        """The base method's."""
        return self.base.server_optimizer

    @server_optimizer.setter
    def server_optimizer(self, rule: "ServerOptimizer") -> None:
        self.base.server_optimizer = rule

    def check(self, cohort: int) -> None:
        self.base.check(cohort)

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        return self.base.clients_to_ask(round, cohort, clients)

    def count_steps(self, fed: "Federation", cohort: "Cohort") -> "NDArray[np.int64]":
        return self.base.count_steps(fed, cohort)

    def count_work(self, fed: "Federation", cohort: "Cohort") -> "NDArray[np.float64]":
        return self.base.count_work(fed, cohort)

    def received_beside(self, fed: "Federation", cohort: "Cohort") -> "NDArray[np.int64]":
        return self.base.received_beside(fed, cohort)

    def extend(self, network: "nn.Module", example: "Tensor") -> "nn.Module":
        return self.base.extend(network, example)

    def predict(self, net: "Net", batch: "Batch", client: "Mapping[str, Tensor]") -> "Tensor":
        return self.base.predict(net, batch, client)

    def setup(self, fed: "Federation") -> None:
        self.base.setup(fed)

    def payload(self, layout: "Layout") -> "tuple[Vectors, Vectors]":
        return self.base.payload(layout)

    def evaluate(self, fed: "Federation") -> None:
        self.base.evaluate(fed)

    def round(self, fed: "Federation", cohort: "Cohort") -> None:
        fed.at_server.keep_models()
        self.base.round(fed, cohort)
        with fed.at_server.serving():
            self.base.weights = self.distill(fed, fed.undiverged(cohort), self.weights)

    @abstractmethod
    def distill(self, fed: "Federation", cohort: "Cohort", weights: "Tensor") -> "Tensor":
        """[P], what the server's model of `weights` [P] learns from those of the cohort; runs on every rank."""
