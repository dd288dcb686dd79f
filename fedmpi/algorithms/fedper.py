"""A shared body with one head per client.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers. 2019.
https://arxiv.org/abs/1912.00818
Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated Learning. ICML
2021. https://arxiv.org/abs/2102.07078
"""

from __future__ import annotations

from fedmpi.algorithms.partly_shared import PartlyShared
from fedmpi.errors import BadInput
from fedmpi.options import with_options
from fedmpi.ranges import PositiveFloat, PositiveInt
from fedmpi.training.block import Phase
from fedmpi.typing import Block, Federation, Layout, Tensor, Trained


class FedPer(PartlyShared):
    """FedAvg on all but the last fully connected layer, which stays with each client (Arivazhagan et al., 2019)."""

    own: slice
    shared: slice

    def split(self, layout: Layout) -> tuple[slice, slice]:
        return head_and_body(layout, type(self).__name__)


@with_options
class FedRep(FedPer):
    """FedPer whose clients first train the head with a frozen body, and then the body alone (Collins et al., 2021).

    The body is trained as `--local` says.

    Args:
        head_epochs: local epochs in which the head is trained.
        head_lr: learning rate of the head in the first round, which follows --local.schedule; null: that of the body.
    """

    head_epochs: PositiveInt = 10
    head_lr: PositiveFloat | None = None

    @property
    def trainings(self) -> tuple[Phase, ...]:
        head = Phase("head", self.head_epochs, (self.own,), lr=self.head_lr)
        return head, Phase("body", columns=(self.shared,))

    def train_parts(self, fed: Federation, block: Block, start: Tensor, **of_body: Tensor) -> Trained:
        """Local training of a block's clients from `start` [K, P].

        Args:
            of_body: vectors for the loss while the body is trained.
        """
        first, then = self.trainings
        head = fed.train(block, start, self, first)
        return fed.train(block, head.weights.clone(), self, then, **of_body)


def head_and_body(layout: Layout, method: str) -> tuple[slice, slice]:
    """The columns of the last fully connected layer, and all others.

    Args:
        method: its name, for the message.

    Raises:
        BadInput: one of them has no parameters.
    """
    head = layout.segments["head"]
    if not 0 < head.stop < layout.parameters:
        needed = f"{method} needs a fully connected layer that is trained, and other trained layers"
        raise BadInput(f"--model: {needed}; unfreeze some, or use another method")
    return head, slice(head.stop, layout.size)
