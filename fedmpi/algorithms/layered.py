"""Base of the methods that extend another one."""

from __future__ import annotations

from typing import Any

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import BadInput
from fedmpi.typing import Federation


class _AsBase:
    """An attribute that is forwarded to the base method."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, method: Layered | None, owner: type) -> Any:
        return self if method is None else getattr(method.base, self.name)

    def __set__(self, method: Layered, value: Any) -> None:
        setattr(method.base, self.name, value)


def as_base() -> Any:
    """An attribute that is read from, and written to, the base method."""
    return _AsBase()


class Layered(Algorithm):
    """A method that adds something to another one, whose server only averages its clients' models.

    Everything else is as in the base method: what is sent, what clients keep, and the weights of clients.

    Attributes:
        base: the method that is extended; a subclass sets it before `__post_init__` of this class.
    """

    base: Algorithm

    server_state: tuple[str, ...] = ()
    averages_models = True

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
            raise BadInput(f"= {name}: must be a method whose server only averages its clients' models", "base")
        if base.needs_all_clients:
            raise BadInput(
                f"= {name}: must be a method whose clients do not need the plain mean of all models", "base"
            )

    @property
    def parts(self) -> tuple[Algorithm, ...]:
        return self.base, self

    def setup(self, fed: Federation) -> None:
        self.base.setup(fed)
