"""Federated learning experiments as MPI jobs: one job, one experiment, one HDF5 file."""

__version__ = "0.1.0"
