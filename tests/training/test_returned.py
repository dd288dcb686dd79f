"""What a method's `loss` and `direction` return is checked, alike one by one and side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fedmpi.algorithms import FedAvg
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import run


class Directed(FedAvg):
    """Args:
    change: makes what `direction` returns of the gradient.
    elementwise: whether the method says so.
    """

    def __init__(self, change: Callable[[Tensor], Any], elementwise: bool) -> None:
        self.change = change
        self.direction_is_elementwise = elementwise

    def direction(self, gradient: Tensor, *others: Any) -> Any:
        return self.change(gradient)


class Lost(FedAvg):
    """Forgets to return its loss."""

    def loss(self, *arguments: Any) -> Any:
        super().loss(*arguments)


def nothing(gradient: Tensor) -> None:
    gradient.mul_(2)


def listed(gradient: Tensor) -> list[Tensor]:
    return [gradient]


def averaged(gradient: Tensor) -> Tensor:
    """Would be broadcast to all clients of a block."""
    return gradient.mean(0)


@pytest.mark.parametrize("at_once", [False, 4])
@pytest.mark.parametrize("elementwise", [True, False])
@pytest.mark.parametrize(("change", "said"), [(nothing, "nothing"), (listed, "a list"), (averaged, r"\[\d+\]")])
def test_direction(
    change: Callable[[Tensor], Any], said: str, elementwise: bool, at_once: int, tmp_path: Path
) -> None:
    message = rf"^direction returned {said}, not a tensor \[\d, \d+\] like the gradient$"
    with pytest.raises(ValueError, match=message):
        run(
            tmp_path / "run.h5",
            Directed(change, elementwise),
            local=LocalTraining(epochs=1, vectorize=at_once),
            rounds=1,
        )


@pytest.mark.parametrize("at_once", [False, 4])
def test_loss(at_once: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^loss returned nothing, not a loss for each of "):
        run(tmp_path / "run.h5", Lost(), local=LocalTraining(epochs=1, vectorize=at_once), rounds=1)
