"""Networks that generate samples, or features, of given classes from noise.

May import the same as models, but no model.
"""

import sys

from fedmpi.components import import_all
from fedmpi.models.generators.base import Generator

import_all(sys.modules[__name__])

__all__ = ["Generator"]
