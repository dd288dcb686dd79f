"""Methods that ask for what would make results wrong, and are refused; used by import path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedmpi.algorithms.ditto import Ditto
from fedmpi.algorithms.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedmpi.algorithms import Algorithm
    from fedmpi.federation.federation import Federation


class Personal(Ditto):
    """Gives its state the name of Ditto's."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.mine = fed.client_state("personal", torch.zeros(3))


class Reserved(FedAvg):
    """Gives its state the name of one of fedmpi's."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.mine = fed.client_state("fedmpi: last model", torch.zeros(3))


class Staged(FedAvg):
    """Has stages of these names, without rounds."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def stages(self, fed: Federation) -> Iterator[tuple[str, Federation, Algorithm]]:
        for name in self.names:
            yield name, fed.sibling(lambda: torch.nn.Linear(64, 10), fed.local, 0, name), FedAvg()
