"""The networks are those of the papers: parameters, buffers, the split in two, weights at the start."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from fedmpi.models import (
    MLP,
    VGG11,
    Backbone,
    CifarCNN,
    DenseNet121,
    ExquisiteNetV1,
    LeNet,
    LeNet5,
    LogisticRegression,
    McMahanCNN,
    MobileNetV2,
    Model,
    Norm,
    ResNet18,
    ResNet34,
)
from fedmpi.models._layers import Residual, ResidualBlock, SqueezeExcitation

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
        (DenseNet121(), CIFAR, 10, 6_956_298),
        (DenseNet121(growth=12), CIFAR, 10, 1_000_618),
        (MobileNetV2(), CIFAR, 10, 2_296_922),
        (MobileNetV2("distribution_fusion"), CIFAR, 10, 2_276_810),
        (VGG11(), CIFAR, 10, 9_750_922),
        (VGG11(hidden=()), CIFAR, 10, 9_225_610),
        (VGG11(norm="batch"), CIFAR, 10, 9_756_426),
        (VGG11(hidden=(), norm="batch"), CIFAR, 10, 9_231_114),
        (ExquisiteNetV1(), MNIST, 10, 927_254),
        (ExquisiteNetV1(), CIFAR, 10, 927_278),
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
        (DenseNet121(), CIFAR, 120, 41_760),
        (DenseNet121(growth=12), CIFAR, 120, 15_660),
        (MobileNetV2(), CIFAR, 57, 17_544),
        (VGG11(), CIFAR, 0, 0),
        (VGG11(norm="batch"), CIFAR, 8, 2_752),
        (ExquisiteNetV1(), MNIST, 15, 2_136),
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
        (DenseNet121(growth=12), CIFAR, (384,)),
        (DenseNet121(growth=3, groups=1), (3, 8, 17), (96,)),
        (MobileNetV2(), CIFAR, (1280,)),
        (MobileNetV2("distribution_fusion"), (1, 1, 1), (960,)),
        (VGG11(), CIFAR, (512, 1, 1)),
        (VGG11(hidden=(), norm="group"), (1, 32, 70), (512, 1, 2)),
        (ExquisiteNetV1(), MNIST, (640,)),
        (ExquisiteNetV1(), (3, 1, 5), (640,)),
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


@pytest.mark.parametrize(
    "model",
    [
        *(LeNet(), LeNet5(), McMahanCNN(), CifarCNN(), MLP(), LogisticRegression(), ResNet18(), ResNet34()),
        *(DenseNet121(growth=4), MobileNetV2(), VGG11(), ExquisiteNetV1()),
    ],
)
def test_one_output_for_regression(model: Model) -> None:
    assert build(model, CIFAR, 1)(torch.randn(2, *CIFAR)).shape == (2, 1)


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


def equal(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Same weights in the same order, same outputs; statistics of the batch are learnt alike too."""
    values, expected = ours.state_dict().values(), theirs.state_dict()
    theirs.load_state_dict({k: v.view_as(expected[k]) for k, v in zip(expected, values, strict=True)})
    for mode in (True, False):  # training first, so that evaluation sees moved statistics
        torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x), rtol=1e-5, atol=1e-5)


def test_resnet_equals_torchvision() -> None:
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    equal(build(ResNet18(stem="imagenet"), (3, 64, 64)), resnet18(num_classes=10), torch.randn(4, 3, 64, 64))


def test_densenet_equals_torchvision() -> None:
    """All but the stem, which is for large images there."""
    theirs = pytest.importorskip("torchvision.models").DenseNet(4, (6, 12, 24, 16), 8, num_classes=10)
    theirs.features.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
    equal(build(DenseNet121(growth=4), CIFAR), theirs, torch.randn(8, *CIFAR))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_vgg_equals_torchvision(norm: Norm) -> None:
    """The features; the head there is for large images."""
    vgg = pytest.importorskip("torchvision.models.vgg")
    theirs = vgg.make_layers(vgg.cfgs["A"], batch_norm=norm == "batch")
    equal(build(VGG11(norm=norm), CIFAR).extractor, theirs, torch.randn(4, 3, 32, 64))


def test_mobilenet_blocks_equal_torchvision() -> None:
    """Those without a convolution in the shortcut, which there is none of there; the others have it added."""
    block = pytest.importorskip("torchvision.models.mobilenetv2").InvertedResidual
    ours = list(build(MobileNetV2(), CIFAR).extractor.children())[3:20]
    equal(ours[2], block(24, 24, 1, 6), torch.randn(4, 24, 6, 6))
    equal(ours[3], block(24, 32, 2, 6), torch.randn(4, 24, 7, 6))
    widening = ours[10]
    assert isinstance(widening, Residual)
    equal(widening.residual, block(64, 96, 1, 6), torch.randn(4, 64, 6, 6))
    x = torch.randn(4, 64, 3, 3)
    convolution, norm = widening.eval().shortcut.children()
    torch.testing.assert_close(widening(x), widening.residual(x) + norm(convolution(x)))
    # All shortcuts of the other variant are a convolution, with ReLU.
    block_of_both = list(build(MobileNetV2("distribution_fusion"), CIFAR).extractor.children())[5]
    assert isinstance(block_of_both, Residual)
    x = torch.randn(4, 24, 3, 3)
    convolution, norm, _ = block_of_both.eval().shortcut.children()
    torch.testing.assert_close(block_of_both(x) - block_of_both.residual(x), norm(convolution(x)).relu())


def test_each_stage_of_mobilenet() -> None:
    """Oracle: channels and sides of the paper's table from its 32x32 on, with three halvings."""
    x, maps = torch.randn(1, *CIFAR), []
    for layer in build(MobileNetV2(), CIFAR).eval().extractor.children():
        x = layer(x)
        maps.append(tuple(x.shape[1:3]))
    stages = (
        [(16, 32)] + [(24, 32)] * 2 + [(32, 16)] * 3 + [(64, 8)] * 4 + [(96, 8)] * 3 + [(160, 4)] * 3 + [(320, 4)]
    )
    assert maps[3:20] == stages


def test_squeeze_and_excitation_equals_torchvision() -> None:
    """There it has biases, here zero."""
    theirs = pytest.importorskip("torchvision.ops").SqueezeExcitation(12, 4)
    ours = SqueezeExcitation(12, 4)
    for layer, weight in zip((theirs.fc1, theirs.fc2), ours.parameters(), strict=True):
        layer.weight.data = weight.data[:, :, None, None]
        nn.init.zeros_(layer.bias)
    x = torch.randn(3, 12, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_stage_of_exquisitenet() -> None:
    """Oracle: pooling rounded up, and the block written out: either half adds the same y."""
    pool, convolution, norm, block = list(build(ExquisiteNetV1(), CIFAR).eval().extractor.children())[4:8]
    x = torch.randn(2, 12, 7, 5)
    y = norm(convolution(nn.functional.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 2)))
    tensors = iter(block.state_dict().values())
    z = y
    for _ in range(2):
        narrow, weight, bias, mean, var, _, each, its_bias, squeeze, excite = (next(tensors) for _ in range(10))
        z = nn.functional.conv2d(z, narrow)
        z = nn.functional.batch_norm(z, mean, var, weight, bias).relu()
        z = nn.functional.conv2d(z, each, its_bias, padding=1, groups=50)
        z = z * (z + 3).clamp(0, 6) / 6
        scale = ((z.mean((2, 3)) @ squeeze.T).relu() @ excite.T).sigmoid()
        z = z * scale[:, :, None, None] + y
    torch.testing.assert_close(block(norm(convolution(pool(x)))), z)


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

    normalised = build(CifarCNN(norm="group"), CIFAR).extractor.get_parameter("1.weight")
    assert normalised.eq(1).all()

    for model in (ResNet18(), VGG11()):
        convolution = next(build(model, CIFAR).parameters())
        assert convolution.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert all(not p.any() for p in build(VGG11(), CIFAR).extractor.parameters() if p.dim() == 1)


def test_the_seed_of_torch_decides_the_weights() -> None:
    one, same = build(LeNet(), MNIST), build(LeNet(), MNIST)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    other = LeNet().build(MNIST, 10)  # the generator has moved on
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
