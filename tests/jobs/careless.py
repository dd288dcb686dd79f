"""Methods that ask for what would make results wrong, and are refused; used by import path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedmpi.algorithms.ditto import Ditto
from fedmpi.algorithms.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedmpi.algorithms import Algorithm
    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort


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


class Declared(FedAvg):
    """Names a state of its server that a checkpoint could not hold.

    Args:
        kind: of the state.
    """

    server_state = ("weights", "n")
    n: Any

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        if self.kind == "number":
            self.n = 0
        elif self.kind == "array":
            self.n = np.zeros(3)
        elif self.kind == "list":
            self.n = [torch.zeros(3)]
        elif self.kind == "parameter":
            self.n = torch.nn.Parameter(torch.zeros(3))
        elif self.kind == "bfloat16":
            self.n = torch.zeros(3, dtype=torch.bfloat16)


class Telling(FedAvg):
    """Tells the server of single clients, in one of several ways, and averages their models.

    Args:
        what: the way.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start, size = fed.broadcast(self.weights), fed.layout.size
        if self.what == "stack":
            fed.stack(cohort, start)
        if self.what == "keep_models":
            fed.at_server.keep_models()
        if self.what == "losses":
            fed.at_clients.losses_of_all(cohort.clients, start[None])
        mean = fed.weighted_mean(cohort, start, groups=2 if self.what == "groups" else None)
        if self.what == "second mean":
            fed.weighted_mean(cohort, start)
        sent: dict[int, torch.Tensor] = {}
        for block in fed.my_clients(cohort):
            trained = fed.train(block, start, self).weights
            sent |= {client: row.clone() for client, row in zip(block.clients.tolist(), trained, strict=True)}
            mean.add(trained, block)
            if self.what == "twice":
                mean.add(trained, block)
        if self.what == "gather":
            fed.gather(cohort, sent, size)
        if self.what == "records":
            fed.gather_records()
        if self.what == "total":
            fed.at_clients.total([[row] for row in sent.values()], [(size,)])
        self.server_step(fed, mean.reduce(empty=self.weights))


class Everywhere(FedAvg):
    """Adds the only client of a round to a mean, or to a stack, on one rank after another.

    Args:
        to: a mean, or a stack.
    """

    def __init__(self, to: str) -> None:
        self.to = to

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        for number in range(2):
            for block in fed.my_clients(cohort):
                fed.train(block, start, self)
            if number == 0:
                mean, stack = fed.weighted_mean(cohort, start), fed.stack(cohort, start)
            if fed.context.world.rank == number + 1:
                one = cohort.block(np.array([0]))
                (mean if self.to == "mean" else stack).add(start[None], one)
        mean.reduce()
        stack.close()


class Halving(FedAvg):
    """Goes half of the way to the mean of the clients' models, from a given round on."""

    def __init__(self, after: int = 0) -> None:
        self.after = after

    def server_step(self, fed: Federation, mean: torch.Tensor) -> None:
        if fed.round > self.after:
            self.weights = (self.weights + mean) / 2


class Keeping(FedAvg):
    """Stores an array under this name.

    Args:
        group: name of the group.
        array: name of the array.
        texts: whether it has texts in place of numbers.
    """

    def __init__(self, group: str = "mine", array: str = "numbers", texts: bool = False) -> None:
        self.group, self.array, self.texts = group, array, texts

    def evaluate(self, fed: Federation) -> None:
        super().evaluate(fed)
        fed.keep(self.group, {self.array: np.array(["a", "b"]) if self.texts else np.arange(fed.round + 2)})
