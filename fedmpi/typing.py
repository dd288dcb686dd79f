"""Names for annotations, without importing their modules.

A type checker sees the classes. At run time the names are placeholders: the command line imports every method, model
and policy to know their options, and `--help` should not wait for PyTorch or MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor as Tensor

    from fedmpi.algorithms.toolbox.distillation import Order as Order
    from fedmpi.algorithms.toolbox.distillation import Student as Student
    from fedmpi.data import Dataset as Dataset
    from fedmpi.data._frames import Frame as Frame
    from fedmpi.federation.federation import Federation as Federation
    from fedmpi.federation.local import Trained as Trained
    from fedmpi.federation.stack import Stack as Stack
    from fedmpi.models._layers import Backbone as Backbone
    from fedmpi.models.generators._convolutional import ConvolutionalGenerator as ConvolutionalGenerator
    from fedmpi.policies import Cohort as Cohort
    from fedmpi.policies import Sampler as Sampler
    from fedmpi.policies import Weighting as Weighting
    from fedmpi.policies.server_optimizers import ServerOptimizer as ServerOptimizer
    from fedmpi.training.block import Block as Block
    from fedmpi.training.flat import FlatModel as FlatModel
    from fedmpi.training.flat import Net as Net
    from fedmpi.training.layout import Columns as Columns
    from fedmpi.training.layout import Entry as Entry
    from fedmpi.training.layout import Layout as Layout
    from fedmpi.training.samples import Batch as Batch

    #: Of several vectors, which columns of the model each of them is; the length of one that is no part of the model.
    Vectors = Sequence[Columns | int]
else:

    def __getattr__(name: str) -> Any:
        """A placeholder for a class."""
        if name.startswith("__"):
            raise AttributeError(name)
        return Any
