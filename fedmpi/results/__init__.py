"""One HDF5 file a run: writing it, reading it, and what people do with it next."""

from fedmpi.results.reader import Run, open
from fedmpi.results.writer import Results

__all__ = ["Results", "Run", "open"]
