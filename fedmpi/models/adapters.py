"""Options of adapters, small trained parts of a frozen network."""

from __future__ import annotations

from fedmpi.options import Configured, with_options
from fedmpi.ranges import BelowOne, PositiveFloat, PositiveInt


@with_options
class LoRA(metaclass=Configured):
    """Low-rank adapters (Hu et al., 2022).

    A layer W x becomes W x + (alpha / rank) B A x, and only A and B are trained. B starts as 0.

    Args:
        rank: rank of B A; null: no adapters.
        alpha: scale of the adapters.
        targets: ends of the names of the layers that get adapters; null: the library's choice for this kind of
            network, such as query and value.
        dropout: dropout probability of the adapters' inputs.
    """

    rank: PositiveInt | None = None
    alpha: PositiveFloat = 16.0
    targets: tuple[str, ...] | None = None
    dropout: BelowOne = 0.0
