"""Base of the methods in which every client has a model of its own, mixed with models of other clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fedmpi.algorithms.base import Algorithm
from fedmpi.lazy import torch
from fedmpi.typing import Block, Cohort, Federation, Stack, Tensor

# Number of elements of a model that stay in a core's cache while they are added to several mixtures.
CACHED = 1 << 16


class Mixing(Algorithm):
    """Every client trains a model of its own; at the end of a round it gets a mixture of the models of the round.

    There is no global model; in its place, the results file has the initial weights. All clients have equal weights.
    The column others of /clients has the share of the other clients' models in a client's mixture.

    Attributes:
        own: the model of each client. It is evaluated on the client's test samples.
    """

    looks_at_models = True
    counts_clients_once = True
    weighting = "uniform"
    client_metrics = ("others",)

    @property
    def counts_clients_alike(self) -> bool:
        return True

    @property
    def has_global_model(self) -> bool:
        return False

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.own = fed.client_state("own", self.weights)

    def mixtures(
        self,
        fed: Federation,
        cohort: Cohort,
        models: Stack,
        mine: Sequence[Block],
        received: int,
        weigh: Callable[[int, int, Tensor], float],
    ) -> Iterator[tuple[Block, Tensor]]:
        """The clients of this rank that get a mixture, and their mixtures [1, P]; a collective.

        A mixture is a weighted mean; a client gets one if it gives weight to some model. The models come one after
        the other in the order of the cohort, and sums are in float64. So the bits do not depend on the number of
        ranks.

        Args:
            mine: blocks of one client each.
            received: how many models all clients of all ranks receive.
            weigh: (number in `mine`, client of a model, the model [P]) -> at least 0.
        """
        sums = [torch.zeros(fed.layout.size, dtype=torch.float64) for _ in mine]
        totals, of_others = [0.0] * len(mine), [0.0] * len(mine)
        for position, model in models.everywhere(received * fed.layout.size):
            client, weights = int(cohort.clients[position]), {}
            for number, block in enumerate(mine):
                if weight := weigh(number, client, model):
                    weights[number] = weight
                    totals[number] += weight
                    of_others[number] += weight if client != block.clients[0] else 0.0
            for first in range(0, fed.layout.size, CACHED):  # in parts that stay in a core's cache
                some = slice(first, first + CACHED)
                exact = model[some].double()
                for number, weight in weights.items():
                    sums[number][some].add_(exact, alpha=weight)
        for block, mixed, total, others in zip(mine, sums, totals, of_others, strict=True):
            fed.record(block, others=torch.tensor([others / (total or 1.0)]))
            if total:
                yield block, mixed.div_(total).float()[None]

    def evaluate(self, fed: Federation) -> None:
        """Each client's own model on the client's test samples."""
        fed.report_personal(fed.evaluate_clients(self.weights, lambda block, weights: self.own[block]))
