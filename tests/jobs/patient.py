"""A method that takes its time while a file is there; used by import path."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedmpi.algorithms.fedavg import FedAvg

if TYPE_CHECKING:
    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort


class Patient(FedAvg):
    """Federated averaging that waits in every round.

    Args:
        hold: the file.
    """

    def __init__(self, hold: Path) -> None:
        self.hold = hold

    def round(self, fed: Federation, cohort: Cohort) -> None:
        if self.hold.exists():
            time.sleep(0.3)
        super().round(fed, cohort)
