"""What methods have in common in which, after the round of another, the clients' models teach the server's."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import BadInput
from fedmpi.typing import Cohort, Federation, Tensor


class _AsBase:
    """An attribute of a method that is the base method's."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, method: Distilled | None, owner: type) -> Any:
        return self if method is None else getattr(method.base, self.name)

    def __set__(self, method: Distilled, value: Any) -> None:
        setattr(method.base, self.name, value)


def as_base() -> Any:
    """An attribute that is the base method's: one cannot tell it from the base method's own."""
    return _AsBase()


class Distilled(Algorithm):
    """A method whose server trains its model on what the clients' models of the round say to some samples.

    All else is as with the base method: what is sent, what clients keep, who counts what. The clients' numbers of
    samples of each class travel once, before the first round, and are not among the bytes of the rounds.

    Attributes:
        base: the method whose rounds come first; a subclass has it before `__post_init__` of this class.
    """

    base: Algorithm

    server_state: tuple[str, ...] = ()
    averages_models = looks_at_models = True

    weights = as_base()
    server_optimizer = as_base()
    takes_server_optimizer = as_base()
    weighting = as_base()
    counts_clients_once = as_base()
    counts_clients_alike = as_base()
    accepts_partial_work = as_base()
    client_metrics = as_base()
    check = as_base()
    clients_to_ask = as_base()
    count_steps = as_base()
    count_work = as_base()
    received_beside = as_base()
    extend = as_base()
    predict = as_base()
    payload = as_base()
    evaluate = as_base()

    def __post_init__(self) -> None:
        base, name = self.base, type(self.base).__name__
        if not base.averages_models or base.looks_at_models or base.has_stages:
            raise BadInput(f"= {name}: must be a method that averages its clients' models, and looks at none", "base")

    @property
    def trains_at_server(self) -> bool:
        return True

    @property
    def parts(self) -> tuple[Algorithm, ...]:
        return self.base, self

    def setup(self, fed: Federation) -> None:
        self.base.setup(fed)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        fed.at_server.keep_models()
        self.base.round(fed, cohort)
        with fed.at_server.serving():
            self.base.weights = self.distill(fed, fed.undiverged(cohort), self.weights)

    @abstractmethod
    def distill(self, fed: Federation, cohort: Cohort, weights: Tensor) -> Tensor:
        """[P], what the server's model of `weights` [P] learns from those of the cohort; runs on every rank."""
