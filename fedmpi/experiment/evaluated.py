"""Which rounds are evaluated: by their number, or by the virtual clock.

Importing this module is fast (no torch), because the settings use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.policies.clock import to_ticks


@dataclass(frozen=True)
class Evaluated:
    """The rounds that the settings select. The last round of a run is evaluated in addition.

    Attributes:
        every: rounds from one evaluation to the next; 0: none.
        seconds: virtual seconds from one evaluation to the next, instead of `every`; None: `every` counts.
    """

    every: int
    seconds: float | None = None

    def __bool__(self) -> bool:
        """Whether there are evaluations at all."""
        return bool(self.every) or self.seconds is not None

    def selects(self, round: int, before: int, after: int) -> bool:
        """Whether a round is selected.

        Args:
            before, after: ticks of the virtual clock at the beginning and at the end of the round.
        """
        if self.seconds is None:
            return bool(self.every) and round % self.every == 0
        step = max(int(to_ticks(self.seconds)), 1)
        return after // step > before // step

    def among(self, rounds: Mapping[str, NDArray]) -> NDArray[np.bool_]:
        """[n] whether each of the first n rounds of a run is selected, from columns of /rounds."""
        if self.seconds is None:
            return np.asarray(rounds["round"] % max(self.every, 1) == 0)
        ends = np.cumsum(to_ticks(rounds["virtual_seconds"]))
        step = max(int(to_ticks(self.seconds)), 1)
        return np.diff(ends // step, prepend=0) > 0
