"""Base of the methods that extend another one by distillation from the clients' models to the server's."""

from __future__ import annotations

from abc import abstractmethod

from fedmpi.algorithms.layered import Layered
from fedmpi.typing import Cohort, Federation, Tensor


class Distilled(Layered):
    """A method whose server trains its model on the predictions of the round's client models for some samples.

    The clients send their numbers of samples per class once, before the first round. These bytes are not counted in
    the rounds.
    """

    looks_at_models = True

    @property
    def trains_at_server(self) -> bool:
        return True

    def round(self, fed: Federation, cohort: Cohort) -> None:
        fed.at_server.keep_models()
        self.base.round(fed, cohort)
        with fed.at_server.serving():
            self.base.weights = self.distill(fed, fed.undiverged(cohort), self.weights)

    @abstractmethod
    def distill(self, fed: Federation, cohort: Cohort, weights: Tensor) -> Tensor:
        """[P], the server's model `weights` [P] after learning from the cohort's models; runs on every rank."""
