"""FedNTD.

Lee, Jeong, Shin, Bae, Yun: Preservation of the Global Knowledge by Not-True Distillation in Federated Learning.
NeurIPS 2022. https://arxiv.org/abs/2106.03097
"""

from __future__ import annotations

from collections.abc import Mapping

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import require
from fedmpi.lazy import functional, torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveFloat
from fedmpi.typing import Batch, Federation, Net, Tensor


@with_options
class FedNTD(FedAvg):
    """FedAvg with distillation from the received model over the classes that are not true (Lee et al., 2022).

    The loss of each sample gets an additional term beta tau^2 KL(q || p). Here q and p are the softmax of the
    received model's logits and of the trained model's logits, both divided by tau and both over the C - 1 classes
    other than the sample's own. The received model runs in evaluation mode and gets no gradient. On the virtual
    clock, a step costs 4/3 because of the additional forward pass.

    Args:
        beta: weight of the distillation; 0 is FedAvg.
        tau: temperature.
    """

    beta: NonNegativeFloat = 1.0
    tau: PositiveFloat = 1.0

    needs_classes = True

    @property
    def step_cost(self) -> float:
        return 4 / 3 if self.beta else 1.0

    def setup(self, fed: Federation) -> None:
        allowed = f"0 with {fed.classes} classes, because the term is 0 with fewer than 3"
        require(fed.classes >= 3 or not self.beta, "beta", self.beta, allowed)
        super().setup(fed)

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        if not self.beta:
            return super().loss(net, batch, start, client)

        logits = self.predict(net, batch, client)
        q, p = (self.not_true(each, batch.y) for each in (self.predict(net.at(start), batch, client), logits))
        return self.task.loss(logits, batch.y) + self.beta * self.tau**2 * (q.exp() * (q - p)).sum(1)

    def not_true(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[B, C - 1] logarithms of the softmax at temperature tau over the classes other than the labels [B]."""
        others = torch.arange(logits.shape[1] - 1, device=logits.device)
        # Indices under torch.vmap must have a fixed shape, so that a mask cannot be used.
        others = others + (others >= labels[:, None])
        return functional.log_softmax(logits.gather(1, others) / self.tau, 1)
