"""The projection below a network's last layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmpi.errors import BadInput
from fedmpi.models import MLP, Backbone, LeNet, LogisticRegression, Model, Projected, ResNet18
from fedmpi.training.layout import Layout
from tests.support.experiments import network, state

MNIST, DIGITS = (1, 28, 28), (1, 8, 8)


@pytest.mark.parametrize(
    ("over", "shape", "width"),
    [
        (LeNet(), MNIST, 60),
        (MLP((33, 17)), DIGITS, 17),
        (LogisticRegression(), DIGITS, 64),
        (ResNet18(), DIGITS, 512),
    ],
)
def test_two_layers_below_a_new_last_one(over: Model, shape: tuple[int, ...], width: int) -> None:
    """Oracle: MOON's network: what the other has below its last layer, f -> f -> size, and size -> classes."""
    plain, made = network(over, shape, 10), network(Projected(over, 7), shape, 10)
    assert isinstance(plain, Backbone)
    assert isinstance(made, Backbone)
    plain.eval()
    made.eval()
    kept, added = list(state(plain).items())[:-2], list(state(made).items())
    for (_, one), (_, other) in zip(kept, added, strict=False):
        assert torch.equal(one, other), "drawn before the projection"
    shapes = [tuple(tensor.shape) for _, tensor in added[len(kept) :]]
    assert shapes == [(width, width), (width,), (7, width), (7,), (10, 7), (10,)]
    x = torch.randn(3, *shape)
    features = made.extractor(x)
    assert features.shape == (3, 7)
    assert torch.equal(made(x), made.classifier(features))
    below = plain.extractor(x)
    if isinstance(plain.classifier, nn.Sequential):
        below = plain.classifier[:-1](below)
    (w1, b1), (w2, b2) = ((added[len(kept) + i][1], added[len(kept) + i + 1][1]) for i in (0, 2))
    torch.testing.assert_close(features, torch.relu(below @ w1.T + b1) @ w2.T + b2)


def test_the_head_is_the_new_last_layer() -> None:
    """Oracle: names of its tensors."""
    layout = Layout.of(network(Projected(LeNet(), 7), DIGITS, 10))
    assert [entry.name for entry in layout.entries if entry.segment == "head"] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_parameter_count() -> None:
    """Oracle: LeNet's without its last layer's 610, with 3,660 and 15,616 of the projection, 2,570 of the new one."""
    with torch.device("meta"):
        made = Projected().build(MNIST, 10)
    assert sum(parameter.numel() for parameter in made.parameters()) == 108_094 - 610 + 3_660 + 15_616 + 2_570


class Bare(Model):
    """A network in one piece."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Linear(shape[0], classes)


class EndsOtherwise(Model):
    """A network whose last layer is none that a projection could go below."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Backbone(nn.Identity(), nn.Sequential(nn.Linear(shape[0], classes), nn.ReLU()))


@pytest.mark.parametrize("over", [Bare(), EndsOtherwise()])
def test_a_network_that_does_not_fit(over: Model) -> None:
    """Oracle: the message."""
    name = type(over).__name__
    with pytest.raises(BadInput, match=f"over = {name}: must be a Backbone that ends in a linear layer"):
        Projected(over).build((5,), 3)


def test_no_values() -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match="size = 0: must be at least 1"):
        Projected(size=0)
