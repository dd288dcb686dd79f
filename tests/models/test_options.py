"""What a user gives: values that are refused in one line, names that are found, and a model of one's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedmpi import models
from fedmpi.components import subclasses
from fedmpi.errors import BadInput
from fedmpi.models import (
    MLP,
    VGG11,
    Backbone,
    CifarCNN,
    DenseNet121,
    ExquisiteNetV1,
    LeNet,
    LeNet5,
    McMahanCNN,
    MobileNetV2,
    Model,
    ResNet18,
)
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeNet(norm="instance"), "norm = instance: must be one of batch, group, layer, none"),  # type: ignore[arg-type]
        (lambda: LeNet(groups=0), "groups = 0: must be at least 1"),
        (
            lambda: LeNet(norm="group", groups=3),
            "groups = 3: must be a divisor of every normalised width, here 16",
        ),
        (
            lambda: ResNet18(norm="group", groups=128),
            "groups = 128: must be a divisor of every normalised width, here 64",
        ),
        (
            lambda: MLP(hidden=(4, 5), norm="group"),
            "groups = 2: must be a divisor of every normalised width, here 5",
        ),
        (lambda: ResNet18(stem="cfar"), "stem = cfar: must be one of cifar, imagenet"),  # type: ignore[arg-type]
        (lambda: McMahanCNN(padding="full"), "padding = full: must be one of same, valid"),  # type: ignore[arg-type]
        (lambda: McMahanCNN(dropout=1.0), "dropout = 1.0: must be at least 0 and below 1"),
        (lambda: CifarCNN(dropout=-0.1), "dropout = -0.1: must be at least 0 and below 1"),
        (lambda: ExquisiteNetV1(dropout=1.0), "dropout = 1.0: must be at least 0 and below 1"),
        (lambda: DenseNet121(growth=0), "growth = 0: must be at least 1"),
        (
            lambda: DenseNet121(growth=3, norm="group"),
            "groups = 2: must be a divisor of every normalised width, here 9",
        ),
        (
            lambda: MobileNetV2("imagenet"),  # type: ignore[arg-type]
            "variant = imagenet: must be one of cifar, distribution_fusion",
        ),
        (lambda: VGG11(hidden=(512, 0)), "hidden = [512, 0]: must be widths of at least 1"),
        (lambda: MLP(hidden=()), "hidden = []: must be one or more widths of at least 1"),
        (lambda: MLP(hidden=(20, 0)), "hidden = [20, 0]: must be one or more widths of at least 1"),
    ],
)
def test_a_bad_option_is_named(make: Callable[[], Model], message: str) -> None:
    with pytest.raises(BadInput) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("model", "shape", "smallest"),
    [
        (LeNet(), (64,), 4),
        (LeNet(), (1, 3, 28), 4),
        (LeNet5(), (1, 8, 8), 12),
        (McMahanCNN(), (2, 3), 4),
        (McMahanCNN(padding="valid"), (1, 28, 15), 16),
        (CifarCNN(), (40,), 1),
        (ResNet18(), (1, 2, 3, 4), 1),
        (DenseNet121(), (3, 9, 7), 8),
        (MobileNetV2(), (3, 32), 1),
        (VGG11(), (3, 32, 28), 32),
        (ExquisiteNetV1(), (784,), 1),
    ],
)
def test_a_shape_that_does_not_fit_is_named(model: Model, shape: tuple[int, ...], smallest: int) -> None:
    with pytest.raises(BadInput) as error:
        model.build(shape, 10)
    assert str(error.value) == (
        f"{type(model).__name__} cannot take inputs of shape {shape}: "
        f"it needs images (channels, height, width) of at least {smallest}x{smallest}"
    )


def test_every_model_is_known_by_name() -> None:
    ours = [cls.__name__ for cls in subclasses(Model) if cls.__module__.startswith("fedmpi.")]
    assert ours == sorted(set(models.__all__) - {"Model", "Norm", "Backbone"})


def test_a_model_of_ones_own() -> None:
    """The example in Model's docstring."""

    @with_options
    class Small(Model):
        maps: PositiveInt = 16

        def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
            channels, height, width = self.image(shape)
            extractor = nn.Sequential(nn.Conv2d(channels, self.maps, 3, padding=1), nn.ReLU())
            classifier = nn.Sequential(nn.Flatten(), nn.Linear(self.maps * height * width, classes))
            return Backbone(extractor, classifier)

    assert Small(maps=4).build((1, 8, 8), 10)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_listing_models_and_their_options_imports_no_torch() -> None:
    program = """
import sys
from jsonargparse import ArgumentParser
from fedmpi.models import Model
parser = ArgumentParser()
parser.add_subclass_arguments(Model, "model")
for name in ("LeNet", "McMahanCNN", "MLP", "LogisticRegression", "ResNet34"):
    assert parser.parse_args(["--model", name]).model.class_path == f"fedmpi.models.{name}"
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
