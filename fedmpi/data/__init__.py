"""Data sets, and how they are split among clients: each class has a name on the command line.

May import only from the small files of the package; every folder above may import from here.
"""

from __future__ import annotations

import sys

from fedmpi.components import import_all
from fedmpi.data.base import Arrays, Dataset, Progress, as_seen, as_stored
from fedmpi.data.bundled import BreastCancer, Diabetes, Wine
from fedmpi.data.digits import Digits
from fedmpi.data.folders import ImageFolder, TinyImageNet
from fedmpi.data.images import CIFAR10, CIFAR100, MNIST, FashionMNIST, MNISTMasks
from fedmpi.data.leaf import FEMNIST, Shakespeare
from fedmpi.data.partitions import (
    IID,
    ClassesPerClient,
    Dirichlet,
    DirichletPrior,
    LogNormal,
    Partition,
    Permuted,
    Rotated,
    Shards,
    SwappedLabels,
    Users,
)
from fedmpi.data.repeated import Repeated
from fedmpi.data.sentiment140 import Sentiment140, TweetCharacters
from fedmpi.data.split import Split, make_split
from fedmpi.data.table import Table
from fedmpi.data.text_table import TextTable

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "FEMNIST",
    "IID",
    "MNIST",
    "Arrays",
    "BreastCancer",
    "ClassesPerClient",
    "Dataset",
    "Diabetes",
    "Digits",
    "Dirichlet",
    "DirichletPrior",
    "FashionMNIST",
    "ImageFolder",
    "LogNormal",
    "MNISTMasks",
    "Partition",
    "Permuted",
    "Progress",
    "Repeated",
    "Rotated",
    "Sentiment140",
    "Shakespeare",
    "Shards",
    "Split",
    "SwappedLabels",
    "Table",
    "TextTable",
    "TinyImageNet",
    "TweetCharacters",
    "Users",
    "Wine",
    "as_seen",
    "as_stored",
    "make_split",
]

import_all(sys.modules[__name__])  # a new file in this folder needs no line above to be known by name
