"""The virtual clock in whole ticks, so that times can be added and compared without rounding."""

import numpy as np
from numpy.typing import NDArray

#: Ticks per virtual second.
TICKS = 1 << 20
#: Longest time, in virtual seconds: 35,000 years. Sums of such times fit into 64 bits.
LONGEST = 2.0**40


def to_ticks(seconds: NDArray[np.float64] | float) -> NDArray[np.int64]:
    """Virtual seconds in ticks, to the nearest; times above `LONGEST` are shortened to it."""
    return np.rint(np.minimum(seconds, LONGEST) * TICKS).astype(np.int64)
