"""Networks to train (`--model`).

May import from training, data, results and mpi; federation, algorithms and experiment may import from here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fedmpi.components import import_all
from fedmpi.models.base import Model, Norm
from fedmpi.models.bilstm import BiLSTM
from fedmpi.models.cnn import CifarCNN, McMahanCNN
from fedmpi.models.densenet import DenseNet121
from fedmpi.models.exquisitenet import ExquisiteNetV1
from fedmpi.models.hugging_face import HuggingFace
from fedmpi.models.lenet import LeNet, LeNet5
from fedmpi.models.mlp import MLP, LogisticRegression
from fedmpi.models.mobilenet import MobileNetV2
from fedmpi.models.next_token import NextToken
from fedmpi.models.projected import Projected
from fedmpi.models.resnet import ResNet18, ResNet34
from fedmpi.models.unet import UNet
from fedmpi.models.vgg import VGG11

# The files of models write `models.Backbone` and have no TYPE_CHECKING block, because jsonargparse runs such blocks
# in every file with options, and --help would import torch.
if TYPE_CHECKING:
    from fedmpi.models._layers import Backbone

__all__ = [
    "MLP",
    "VGG11",
    "Backbone",
    "BiLSTM",
    "CifarCNN",
    "DenseNet121",
    "ExquisiteNetV1",
    "HuggingFace",
    "LeNet",
    "LeNet5",
    "LogisticRegression",
    "McMahanCNN",
    "MobileNetV2",
    "Model",
    "NextToken",
    "Norm",
    "Projected",
    "ResNet18",
    "ResNet34",
    "UNet",
]

import_all(sys.modules[__name__])  # a new file in this folder can be named without a line above


def __getattr__(name: str) -> type:
    """Import `Backbone` on first use, because it needs torch, which --help should not wait for."""
    if name == "Backbone":
        from fedmpi.models._layers import Backbone

        return Backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
