"""LG-FedAvg: a shared head with one body per client.

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency: Think Locally, Act Globally: Federated Learning
with Local and Global Representations. 2020. https://arxiv.org/abs/2001.01523
"""

from __future__ import annotations

from fedmpi.algorithms.fedper import FedPer
from fedmpi.typing import Layout


class LGFedAvg(FedPer):
    """FedAvg on the last fully connected layer; all other layers stay with each client (Liang et al., 2020).

    LG-FedAvg is the mirror image of FedPer: each client has its own body, with its running statistics, and only the
    head is sent and averaged. The paper starts from a model that FedAvg has trained: `--init FILE`.
    """

    def split(self, layout: Layout) -> tuple[slice, slice]:
        head, body = super().split(layout)
        return body, head
