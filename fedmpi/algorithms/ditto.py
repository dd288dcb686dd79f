"""Ditto: a personal model per client in addition to the global model.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization. ICML 2021.
https://arxiv.org/abs/2012.04221
"""

from __future__ import annotations

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from fedmpi.training.block import WHOLE, Phase
from fedmpi.typing import Block, Cohort, Federation, Tensor


@with_options
class Ditto(FedAvg):
    """FedAvg plus a personal model per client that is pulled towards the global model (Li et al., 2021).

    In addition to plain FedAvg, a client of the round trains its personal model v on F_k(v) + pull/2 |v - w|^2. Here
    w is the global model that it received, and the second term covers the trained parameters only. Personal models
    start as the initial model. The personal models are evaluated; the column global_accuracy has the accuracy of the
    global model.

    Args:
        pull: strength of the pull, lambda in the paper; with 0 the personal models are trained without a pull.
        epochs: local epochs of the personal model; null: as many as for the global model.
        lr: learning rate of the personal model in the first round, which follows --local.schedule; null: that of the
            global model.
    """

    pull: NonNegativeFloat = 1.0
    epochs: PositiveInt | None = None
    lr: PositiveFloat | None = None

    @property
    def trainings(self) -> tuple[Phase, ...]:
        return WHOLE, Phase("personal", self.epochs, lr=self.lr)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.personal = fed.client_state("personal", self.weights)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        hooks, (_, personal) = Pulled(self), self.trainings
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            trained = fed.train(block, start, self).weights.clone()
            received = start[: fed.layout.parameters]
            own = fed.train(block, self.personal[block], hooks, personal, received=received)
            # Now it is known whose trainings have both gone well: of the others nothing is used.
            mean.add(trained, block)
            self.personal[block] = own.weights
        self.server_step(fed, mean.reduce(empty=self.weights))

    def evaluate(self, fed: Federation) -> None:
        """Each client's personal model on the client's test samples, and the global model on the whole test set."""
        fed.report_personal(fed.evaluate_clients(self.weights, lambda block, weights: self.personal[block]))
        fed.log(**{f"global_{fed.task.main}": fed.evaluate(self.weights).main})


class Pulled:
    """The hooks for personal models: the method's loss, with the pull."""

    direction_is_elementwise = True

    def __init__(self, method: Ditto) -> None:
        self.changes_loss, self.loss = method.changes_loss, method.loss
        self.changes_direction, self.pull = method.pull > 0, method.pull

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient.add_(weights - block["received"], alpha=self.pull)
