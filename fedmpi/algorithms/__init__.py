"""One file a method. A class in this folder that derives from `Algorithm` is known by its name at once."""

import sys

from fedmpi.algorithms.base import Algorithm
from fedmpi.components import import_all

import_all(sys.modules[__name__])

__all__ = ["Algorithm"]
