"""How clients compress what they send.

Compressed is the change of the trained parameters, the difference between what a client sends and what it received;
running statistics of normalisation layers are sent as they are. The ranks of a job exchange full vectors whatever is
chosen here: the numbers that arrive are those of the compressed form, and so are the bytes in the results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Compression(ABC):
    """Base of the ways to compress."""

    @abstractmethod
    def bytes(self, count: int) -> int:
        """What `count` numbers take when they are sent."""

    @abstractmethod
    def compress(self, change: Tensor) -> Tensor:
        """What the server makes of changes [K, d] of K clients."""


class Dense(Compression):
    """Nothing is compressed: four bytes a number."""

    def bytes(self, count: int) -> int:
        return 4 * count

    def compress(self, change: Tensor) -> Tensor:
        return change
