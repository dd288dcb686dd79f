"""FedBN.

Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch Normalization. ICLR 2021.
https://arxiv.org/abs/2102.07623
"""

from __future__ import annotations

from fedmpi.algorithms.partly_shared import PartlyShared
from fedmpi.typing import Layout


class FedBN(PartlyShared):
    """FedAvg on all but the normalisation layers, which stay with each client (Li et al., 2021).

    Each client keeps its own scales, shifts and running statistics of all normalisation layers, of whatever kind. For
    a network without normalisation layers it is FedAvg.
    """

    def split(self, layout: Layout) -> tuple[slice, slice]:
        first = layout.segments["norm"].start
        return slice(first, layout.size), slice(0, first)
