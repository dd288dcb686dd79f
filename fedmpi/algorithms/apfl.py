"""APFL: a mixture of a local and the global model at each client.

Deng, Kamani, Mahdavi: Adaptive Personalized Federated Learning. 2020. https://arxiv.org/abs/2003.13461
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedmpi.algorithms.partly_shared import PartlyShared
from fedmpi.lazy import nn
from fedmpi.options import with_options
from fedmpi.ranges import Probability
from fedmpi.training.block import GRADIENT, Phase
from fedmpi.typing import Batch, Block, Columns, Federation, Layout, Net, Tensor, Trained

#: Factor of alpha that is added to its gradient, as in the authors' code.
DECAY = 0.02


@with_options
class APFL(PartlyShared):
    """FedAvg plus a local model v per client, mixed with the global model w (Deng, Kamani and Mahdavi, 2020).

    A client predicts by alpha v(x) + (1 - alpha) w(x), where v(x) and w(x) are the outputs of both models. In each
    local step, w follows the gradient of its own loss, as in FedAvg, and v that of the mixture's loss, with w(x) as a
    constant. Only w is sent. Each client's mixture of its v and the current global model is evaluated on the
    client's test samples; the column global_accuracy has the accuracy of the global model on the whole test set.

    A client begins a round by a gradient step for its alpha: the derivative of the mixture's loss over its training
    samples plus 0.02 alpha, at the received w and its v, times the learning rate of the round. alpha stays in [0, 1].
    The column alpha of /clients has it.

    Args:
        alpha: share of the local model; 1 is LocalOnly, and 0 evaluates the global model.
        adaptive: whether each client adapts alpha. If not, it stays the same.
    """

    alpha: Probability = 0.5
    adaptive: bool = True

    client_metrics = ("alpha",)
    takes_clip_norm = False
    takes_rate_per_step = False

    @property
    def step_cost(self) -> float:
        return 2.0

    @property
    def trainings(self) -> tuple[Phase, ...]:
        before, behind = slice(0, self.place.start), slice(self.place.stop, self.size)
        train = Phase(columns=(before, behind))
        return (GRADIENT, train) if self.adaptive else (train,)

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        from fedmpi.models._personal import Mixed

        return Mixed(network)

    def split(self, layout: Layout) -> tuple[Columns, Columns]:
        is_shared = np.zeros(layout.size, dtype=bool)
        for entry in layout.entries:
            is_shared[entry.columns] = entry.name.startswith("shared.")
        return np.flatnonzero(~is_shared), np.flatnonzero(is_shared)

    def setup(self, fed: Federation) -> None:
        self.size = fed.layout.size
        (self.place,) = [entry.columns for entry in fed.layout.entries if entry.name == "mix.alpha"]
        super().setup(fed)

    def kept_at_first(self) -> Tensor:
        first = self.weights.clone()  # alpha is zero in the server's model, which so is the global one
        first[self.place] = self.alpha
        return first

    def train_parts(self, fed: Federation, block: Block, start: Tensor) -> Trained:
        alpha = start[:, self.place]
        if self.adaptive:
            slope = fed.at_clients.gradients(block, start, self)[:, self.place]
            alpha.sub_(fed.lr * (slope + DECAY * alpha)).clamp_(0, 1)
        fed.record(block, alpha=alpha[:, 0])
        return fed.train(block, start, self, self.trainings[-1])

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        shared = net.run("shared", batch.x)
        mixed = net.run("mix", net.run("own", batch.x), shared.detach())
        return self.task.loss(shared, batch.y) + self.task.loss(mixed, batch.y)

    def evaluate(self, fed: Federation) -> None:
        """Each client's mixture on the client's test samples, and the global model on the whole test set."""
        super().evaluate(fed)
        fed.log(**{f"global_{fed.task.main}": fed.evaluate(self.weights).main})
