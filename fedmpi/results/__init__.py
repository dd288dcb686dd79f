"""One HDF5 file a run: writing it, reading it, and what people do with it next.

May import only from the small files of the package; every folder above may import from here.
"""

from fedmpi.results.reader import Run, open
from fedmpi.results.writer import Results

__all__ = ["Results", "Run", "open"]
