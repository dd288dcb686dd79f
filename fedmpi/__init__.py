"""Federated learning experiments as MPI jobs: one job, one experiment, one HDF5 file.

The `__init__` of each folder says what is in it. Folders import downwards only: programs (`__main__` and `doctor`) >
experiment > algorithms > federation > policies, models > training > data, results, mpi > the small files next to the
folders. `lint-imports` checks this, by the contracts in pyproject.toml.
"""

import os
from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = ["Experiment"]

if TYPE_CHECKING:
    from fedmpi.experiment.experiment import Experiment

# Intel's matrix library otherwise chooses code by the alignment of its operands, so that a client's last bits would
# depend on where in memory it was trained. Read when PyTorch computes for the first time, hence set here.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def __getattr__(name: str) -> type:
    """`Experiment` on first use: it needs NumPy and more, which the other programs of this package do without."""
    if name == "Experiment":
        from fedmpi.experiment.experiment import Experiment

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
