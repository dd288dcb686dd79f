"""Tasks: what is learned, by which loss, and how a model is measured. Each class has a name on the command line.

May import only from the small files of the package; every folder above may import from here.
"""

from __future__ import annotations

import sys

from fedmpi.components import import_all
from fedmpi.tasks.base import Described, Metric, Ratio, Rows, Strata, Task, metric
from fedmpi.tasks.classification import Classification
from fedmpi.tasks.language_model import LanguageModel
from fedmpi.tasks.measures import Measures
from fedmpi.tasks.multilabel import MultiLabel
from fedmpi.tasks.regression import Regression
from fedmpi.tasks.segmentation import Segmentation

__all__ = [
    "Classification",
    "Described",
    "LanguageModel",
    "Measures",
    "Metric",
    "MultiLabel",
    "Ratio",
    "Regression",
    "Rows",
    "Segmentation",
    "Strata",
    "Task",
    "metric",
]

import_all(sys.modules[__name__])  # a new file in this folder needs no line above to be known by name
