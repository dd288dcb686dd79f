"""Networks that make samples, or features of samples, of given classes out of noise.

May import what models may, but no model.
"""

import sys

from fedmpi.components import import_all
from fedmpi.models.generators.base import Generator

import_all(sys.modules[__name__])

__all__ = ["Generator"]
