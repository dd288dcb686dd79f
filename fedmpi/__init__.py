"""Federated learning experiments as MPI jobs: one job, one experiment, one HDF5 file.

Each folder is a package whose `__init__` describes it. Packages import only from packages below them: programs
(`__main__` and `doctor`) > experiment > algorithms > federation > policies, models > training > data, results, mpi >
the small files in this folder. `lint-imports` checks this, by the contracts in pyproject.toml.
"""

import os
from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = ["Experiment"]

if TYPE_CHECKING:
    from fedmpi.experiment.experiment import Experiment

# Otherwise Intel's matrix library chooses code by the alignment of its operands, so a client's last bits would depend
# on its place in memory. The variable is read at PyTorch's first computation, so it is set here.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def __getattr__(name: str) -> type:
    """Import `Experiment` on first use, because it needs NumPy and more, unlike other programs here."""
    if name == "Experiment":
        from fedmpi.experiment.experiment import Experiment

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
