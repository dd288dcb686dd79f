"""The networks are those of the papers: parameters, buffers, the split in two, weights at the start."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from fedmpi.models import (
    MLP,
    Backbone,
    CifarCNN,
    LeNet,
    LeNet5,
    LogisticRegression,
    McMahanCNN,
    Model,
    ResNet18,
    ResNet34,
)
from fedmpi.models._layers import ResidualBlock

MNIST, CIFAR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)


def build(model: Model, shape: tuple[int, ...], classes: int = 10) -> Backbone:
    torch.manual_seed(0)
    network = model.build(shape, classes)
    assert isinstance(network, Backbone)
    return network


def running_statistics(network: nn.Module) -> list[torch.Tensor]:
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]


@pytest.mark.parametrize(
    ("model", "shape", "classes", "parameters"),
    [
        (LeNet(), MNIST, 10, 108_094),
        (LeNet(norm="none"), MNIST, 10, 107_998),
        (LeNet5(), MNIST, 10, 61_706),
        (McMahanCNN(), MNIST, 10, 1_663_370),
        (McMahanCNN(padding="valid"), MNIST, 10, 582_026),
        (CifarCNN(), CIFAR, 10, 1_756_426),
        (MLP(), MNIST, 10, 199_210),
        (LogisticRegression(), MNIST, 10, 7_850),
        (ResNet18(), CIFAR, 10, 11_173_962),
        (ResNet18(), CIFAR, 100, 11_220_132),
        (ResNet18(stem="imagenet"), CIFAR, 10, 11_181_642),
        (ResNet18(stem="imagenet"), CIFAR, 100, 11_227_812),
        (ResNet34(), CIFAR, 10, 21_282_122),
        (ResNet34(), CIFAR, 100, 21_328_292),
        (ResNet34(stem="imagenet"), CIFAR, 10, 21_289_802),
        (ResNet34(stem="imagenet"), CIFAR, 100, 21_335_972),
    ],
)
def test_parameter_count(model: Model, shape: tuple[int, ...], classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = build(model, shape, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("model", "shape", "layers", "channels"),
    [
        (LeNet(), MNIST, 2, 48),
        (LeNet5(), MNIST, 0, 0),
        (McMahanCNN(), MNIST, 0, 0),
        (CifarCNN(), CIFAR, 0, 0),
        (MLP(), MNIST, 0, 0),
        (MLP(norm="batch"), MNIST, 2, 400),
        (ResNet18(), CIFAR, 20, 4_800),
        (ResNet18(stem="imagenet"), CIFAR, 20, 4_800),
        (ResNet34(), CIFAR, 36, 8_512),
    ],
)
def test_buffer_count(model: Model, shape: tuple[int, ...], layers: int, channels: int) -> None:
    with torch.device("meta"):
        statistics = running_statistics(build(model, shape))
    assert len(statistics) == 2 * layers
    assert sum(buffer.numel() for buffer in statistics) == 2 * channels


@pytest.mark.parametrize(
    ("model", "shape", "features"),
    [
        (LeNet(), MNIST, (32, 7, 7)),
        (LeNet(), DIGITS, (32, 2, 2)),
        (LeNet(), CIFAR, (32, 8, 8)),
        (LeNet(), (2, 9, 13), (32, 2, 3)),
        (LeNet5(), MNIST, (16, 5, 5)),
        (LeNet5(), (3, 12, 15), (16, 1, 1)),
        (McMahanCNN(dropout=0.5), MNIST, (64, 7, 7)),
        (McMahanCNN(padding="valid"), MNIST, (64, 4, 4)),
        (McMahanCNN(padding="valid"), (1, 16, 21), (64, 1, 2)),
        (CifarCNN(), CIFAR, (64, 8, 8)),
        (CifarCNN(), (3, 9, 6), (64, 3, 2)),
        (MLP(), DIGITS, (200,)),
        (MLP(hidden=(30,)), (64,), (30,)),
        (LogisticRegression(), DIGITS, (64,)),
        (ResNet18(), DIGITS, (512,)),
        (ResNet18(stem="imagenet"), DIGITS, (512,)),
        (ResNet34(), DIGITS, (512,)),
    ],
)
def test_extractor_and_classifier_make_the_network(
    model: Model, shape: tuple[int, ...], features: tuple[int, ...]
) -> None:
    network = build(model, shape).eval()
    x = torch.randn(2, *shape)
    z = network.extractor(x)
    assert z.shape == (2, *features)
    logits = network(x)
    assert logits.shape == (2, 10)
    assert torch.equal(network.classifier(z), logits)


@pytest.mark.parametrize(("stem", "first"), [("cifar", 32), ("imagenet", 8)])
def test_each_residual_stage_but_the_first_halves_the_image(stem: Literal["cifar", "imagenet"], first: int) -> None:
    x = torch.randn(1, *CIFAR)
    maps = []
    for layer in build(ResNet18(stem), CIFAR).eval().extractor.children():
        x = layer(x)
        if isinstance(layer, ResidualBlock):
            maps.append((x.shape[1], x.shape[2]))
    stages = [(64, first), (128, first // 2), (256, first // 4), (512, first // 8)]
    assert maps == [stage for stage in stages for _ in range(2)]


def test_resnet_equals_torchvision() -> None:
    """Same weights in the same order, same outputs; statistics of the batch are learnt alike too."""
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    ours = build(ResNet18(stem="imagenet"), (3, 64, 64))
    theirs = resnet18(num_classes=10)
    names = list(theirs.state_dict())
    theirs.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))
    x = torch.randn(4, 3, 64, 64)
    for mode in (True, False):  # training first, so that evaluation sees moved statistics
        torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x), rtol=1e-5, atol=1e-5)


def test_pooling_before_relu_changes_no_bit() -> None:
    """Where a paper has ReLU before max pooling, the networks have it after, on fewer elements."""
    convolution = nn.Conv2d(1, 8, 5, padding=2)
    x = torch.randn(6, 1, 11, 11)
    for pool in (nn.MaxPool2d(2), nn.MaxPool2d(3, stride=2, padding=1)):
        results = []
        for layers in (pool, nn.ReLU()), (nn.ReLU(), pool):
            y = nn.Sequential(convolution, *layers)(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), tuple(convolution.parameters()))))
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second)


def test_initial_weights() -> None:
    cnn = build(CifarCNN(), CIFAR)
    assert all(not p.any() for p in cnn.parameters() if p.dim() == 1)
    first = next(cnn.extractor.parameters())
    bound = (6 / (25 * 3 + 25 * 64)) ** 0.5
    assert 0.98 * bound < first.abs().max() <= bound

    convolution = next(build(ResNet18(), CIFAR).parameters())
    assert convolution.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


def test_the_seed_of_torch_decides_the_weights() -> None:
    one, same = build(LeNet(), MNIST), build(LeNet(), MNIST)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    other = LeNet().build(MNIST, 10)  # the generator has moved on
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
