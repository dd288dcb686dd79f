"""Clients that do not do what they should, for tests of aggregation rules that are to withstand them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Attack(ABC):
    """Base of the attacks."""

    @abstractmethod
    def change(self, change: Tensor) -> Tensor:
        """What malicious clients send in place of their changes [K, d]."""


class NoAttack(Attack):
    """All clients are honest."""

    def change(self, change: Tensor) -> Tensor:
        return change
