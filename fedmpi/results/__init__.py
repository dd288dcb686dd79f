"""Results files, one HDF5 file per run: write them, read them, and make tables and pictures of them.

This folder may import only from the single-file modules of the package. All other folders may import from it.
"""

from fedmpi.results.reader import Run, open
from fedmpi.results.writer import Results

__all__ = ["Results", "Run", "open"]
