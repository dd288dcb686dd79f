"""Federated learning experiments as MPI jobs: one job, one experiment, one HDF5 file."""

import os

__version__ = "0.1.0"

# Intel's matrix library otherwise chooses code by the alignment of its operands, so that a client's last bits would
# depend on where in memory it was trained. Read when torch is imported, hence set here.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
