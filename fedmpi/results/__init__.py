"""One HDF5 file a run: writing it, reading it, and what people do with it next.

May import from the ground alone; every room above may import from here.
"""

from fedmpi.results.reader import Run, open
from fedmpi.results.writer import Results

__all__ = ["Results", "Run", "open"]
