"""Per-FedAvg.

Fallah, Mokhtari, Ozdaglar: Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach. NeurIPS 2020. https://arxiv.org/abs/2002.07948
"""

from __future__ import annotations

from typing import Literal

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveFloat
from fedmpi.typing import Block, Federation, Tensor


@with_options
class PerFedAvg(FedAvg):
    """A model from which one step leads to a good personal model (Fallah et al., 2020).

    Clients minimise F_k(w - inner_lr grad F_k(w)). A step from w takes g, the gradient of its batch, and v, that of
    the next batch at w - inner_lr g. It follows v (FO), or v - inner_lr H v (HF). H v is the difference of the
    gradients of the batch after that at w + delta v and w - delta v, divided by 2 delta. `--local.lr` is the paper's
    beta.

    Every client is evaluated with its own personal model: w after one step of gradient descent on all its training
    samples. The column global_accuracy has the accuracy of w.

    Args:
        inner_lr: learning rate of the personal step, alpha in the paper.
        variant: FO leaves out second derivatives; HF estimates their effect by differences of gradients.
        delta: how far apart these gradients are.
    """

    inner_lr: NonNegativeFloat = 0.01
    variant: Literal["FO", "HF"] = "FO"
    delta: PositiveFloat = 1e-3

    direction_is_elementwise = False
    accepts_partial_work = True
    weighting = "uniform"

    @property
    def step_cost(self) -> float:
        return 2.0 if self.variant == "FO" else 4.0

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        v = block.gradient(weights - self.inner_lr * gradient, ahead=1)
        if self.variant == "FO":
            return v
        up, down = (block.gradient(weights + way * v, ahead=2) for way in (self.delta, -self.delta))
        return v - self.inner_lr / (2 * self.delta) * (up - down)

    def evaluate(self, fed: Federation) -> None:
        """Each client's personal model on its own test samples, and the global model on the whole test set."""

        def personal(block: Block, weights: Tensor) -> Tensor:
            models = weights.repeat(len(block), 1)
            step = fed.reports.gradients(block, weights, self)
            models[:, : fed.layout.parameters].sub_(step, alpha=self.inner_lr)
            return models

        fed.report_personal(fed.evaluate_clients(self.weights, personal))
        fed.log(**{f"global_{fed.task.main}": fed.evaluate(self.weights).main})
