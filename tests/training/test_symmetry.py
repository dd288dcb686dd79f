"""Units that change places as their groups say leave a network's outputs as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi.errors import BadInput
from fedmpi.models import (
    MLP,
    VGG11,
    CifarCNN,
    DenseNet121,
    ExquisiteNetV1,
    LeNet,
    LeNet5,
    LogisticRegression,
    McMahanCNN,
    MobileNetV2,
    Model,
    Projected,
    ResNet18,
)
from fedmpi.models._layers import Backbone
from fedmpi.training.flat import FlatModel
from fedmpi.training.matching import Matching
from fedmpi.training.symmetry import Group, find_groups
from tests.support.experiments import CPU, Reader, network, texts
from tests.training.test_sidebyside import double

__all__ = ["double"]  # a fixture

IMAGE = (1, 8, 8)


def _dense(growth: int) -> list[int]:
    """The stem, each layer's two convolutions, and transitions that halve all that there is."""
    sizes = [2 * growth]
    for layers in (6, 12, 24, 16):
        sizes += [4 * growth, growth] * layers
        if layers != 16:
            sizes.append((sizes[0] if layers == 6 else sizes[-1 - 2 * layers]) // 2 + growth * layers // 2)
    return sizes


def _mobile(streams: list[int], last: int = 1280) -> list[int]:
    """The stem, and of each block what it widens to; of its output, which a plain shortcut ties to its input."""
    sizes, inputs = [32], 32
    stages = (1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)
    for (expansion, width, blocks), outputs in zip(stages, streams, strict=True):
        for block in range(blocks):
            sizes += [expansion * inputs] + [width] * (block < outputs)
            inputs = width
    return [*sizes, last]


def _exquisite() -> list[int]:
    """Of each stage the channels, which residual sums tie to those of all convolutions, and two squeezed layers."""
    return [size for width in (12, 50, 100, 200, 350) for size in (width, width // 3, width // 3)] + [640]


#: Networks, their inputs, and the sizes of their groups, those of group norm apart by the groups of the norm.
MODELS: dict[str, tuple[Model, tuple[int, ...], list[int]]] = {
    "mlp": (MLP((9, 6)), IMAGE, [9, 6]),
    "mlp batch": (MLP((9, 6), norm="batch"), IMAGE, [9, 6]),
    "mlp group": (MLP((9, 6), norm="group", groups=3), IMAGE, [3] * 3 + [2] * 3),
    "lenet": (LeNet(), IMAGE, [16, 32, 60]),
    "lenet layer": (LeNet(norm="layer"), IMAGE, [16, 32, 60]),
    "lenet group": (LeNet(norm="group"), IMAGE, [8, 8, 16, 16, 60]),
    "lenet5": (LeNet5(), (1, 12, 12), [6, 16, 120, 84]),
    "mcmahan": (McMahanCNN(dropout=0.5), IMAGE, [32, 64, 512]),
    "cifar": (CifarCNN(), (3, 8, 8), [64, 64, 384, 192]),
    "projected": (Projected(size=7), IMAGE, [16, 32, 60, 60, 7]),
    "bilstm": (Reader(embedding=5, hidden=6), (8,), [5, 6, 6]),
    "densenet": (DenseNet121(growth=2), IMAGE, _dense(2)),
    "mobilenet": (MobileNetV2(), IMAGE, _mobile([1, 1, 1, 1, 1, 1, 1])),
    "mobilenet fusion": (MobileNetV2("distribution_fusion"), IMAGE, _mobile([1, 2, 3, 4, 3, 3, 1], 960)),
    "exquisitenet": (ExquisiteNetV1(), IMAGE, _exquisite()),
    "vgg": (VGG11((20,), norm="batch"), (1, 32, 32), [64, 128, 256, 256, 512, 512, 512, 512, 20]),
    "resnet": (ResNet18(), IMAGE, [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3),
    "resnet group": (ResNet18(norm="group"), IMAGE, [32] * 6 + [64] * 6 + [128] * 6 + [256] * 6),
}


def inputs(shape: tuple[int, ...], count: int = 6) -> Tensor:
    """Images, or texts."""
    if len(shape) == 1:
        return torch.from_numpy(texts(np.random.default_rng(1), count, *shape, Reader.vocabulary))
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def flat(model: Model, shape: tuple[int, ...], seed: int = 3) -> tuple[FlatModel, list[Group]]:
    """A network whose tensors are all different from their usual beginnings, so that no permutation goes unseen."""
    made = FlatModel(network(model, shape, 10, seed), CPU)
    generator = torch.Generator().manual_seed(seed)
    for entry in made.layout.entries:
        view = entry.view(made.weights[0])
        if view.dim() == 1:
            view += torch.rand(view.shape, generator=generator)
    return made, find_groups(made.module, inputs(shape))


def cycle(size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random permutation that leaves nothing in its place."""
    places = rng.permutation(size)
    order = np.empty(size, dtype=np.int64)
    order[places] = np.roll(places, 1)
    return order


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", MODELS)
def test_permuted_units_change_no_output(name: str) -> None:
    """Oracle: the outputs before, in evaluation and in training mode; and the weights do change."""
    model, shape, sizes = MODELS[name]
    made, groups = flat(model, shape)
    assert [group.size for group in groups] == sizes
    for layer in made.module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    matching, rng, x = Matching(made.layout, groups, True), np.random.default_rng(0), inputs(shape)
    start = made.weights[0].clone()
    made.module.requires_grad_(False)
    before = [made.module.train(mode)(x) for mode in (False, True)]
    made.load(start)  # for its statistics have moved
    for group in groups:
        was = made.weights[0].clone()
        matching.permute(made.weights[0], group, cycle(group.size, rng))
        assert not torch.equal(made.weights[0], was)
    after = [made.module.train(mode)(x) for mode in (False, True)]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


@pytest.mark.parametrize("name", ["mlp", "lenet group", "resnet"])
def test_every_hidden_axis_is_in_a_group(name: str) -> None:
    """Oracle: all tensors but those of the inputs' features and of the outputs, by their shapes."""
    model, shape, _ = MODELS[name]
    made, groups = flat(model, shape)
    found = {(axis.tensor, axis.dim): 0 for group in groups for axis in group.axes}
    for group in groups:
        for axis in group.axes:
            found[axis.tensor, axis.dim] += axis.positions.size
    parameters = [entry for entry in made.layout.entries if entry.is_parameter]
    first = min(parameters, key=lambda entry: (entry.segment != "body", entry.offset))
    for entry in parameters:
        is_output = entry.segment == "head"
        for dim in range(min(len(entry.shape), 2)):
            fixed = (entry == first and dim == 1) or (is_output and dim == 0)
            assert found.get((entry.name, dim), 0) == (0 if fixed else entry.shape[dim]), (entry.name, dim)


def test_a_network_without_hidden_units_has_no_groups() -> None:
    assert flat(LogisticRegression(), IMAGE)[1] == []


class Odd(nn.Module):
    """What no unit can be followed through."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(4, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "flip":
                return x.flip(1)
            case "grouped":
                return self.conv(x)
            case "transposed":
                return x.transpose(1, 2)
            case "scaled":
                return x * self.conv.weight[:, :1].reshape(4, 1, 1)
            case _:
                return torch.cat([x, x], dim=2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("flip", "the network uses flip"),
        ("grouped", "a convolution in groups that is not depthwise"),
        ("transposed", "the network uses transpose"),
        ("along", "concatenates along dimension 2"),
        ("scaled", "the network uses mul with a constant tensor"),
    ],
)
def test_what_cannot_be_followed_is_named(kind: str, message: str) -> None:
    module = Backbone(nn.Sequential(nn.Conv2d(1, 4, 1), Odd(kind), nn.Flatten()), nn.LazyLinear(10))
    module(inputs(IMAGE))
    with pytest.raises(BadInput, match=f"--model: .*{message}"):
        find_groups(module, inputs(IMAGE))


def test_a_layer_used_twice_ties_its_units() -> None:
    """Oracle: outputs after a permutation; by hand, inner units and outer ones must move together."""
    shared = nn.Linear(5, 5)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), shared, nn.ReLU(), shared, nn.Linear(5, 3))
    made = FlatModel(module, CPU)
    groups = find_groups(module, inputs(IMAGE))
    assert [group.size for group in groups] == [5]
    before = module(inputs(IMAGE))
    Matching(made.layout, groups, True).permute(made.weights[0], groups[0], np.array([3, 0, 4, 1, 2]))
    torch.testing.assert_close(module(inputs(IMAGE)), before)


def test_layer_norm_of_all_features() -> None:
    """Oracle: outputs after permutations; of a part of the features it is refused."""
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.LayerNorm([4, 8, 8]), nn.Flatten(), nn.Linear(256, 6), nn.LayerNorm(6)
    module = nn.Sequential(*layers, nn.Linear(6, 3))
    made = FlatModel(module, CPU)
    made.weights += torch.rand(made.weights.shape, generator=torch.Generator().manual_seed(0))
    groups = find_groups(module, inputs(IMAGE))
    assert [group.size for group in groups] == [4, 6]
    before, matching, rng = module(inputs(IMAGE)), Matching(made.layout, groups, True), np.random.default_rng(0)
    for group in groups:
        matching.permute(made.weights[0], group, cycle(group.size, rng))
    torch.testing.assert_close(module(inputs(IMAGE)), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="a layer norm over a part"):
        find_groups(nn.Sequential(nn.Conv2d(1, 4, 1), nn.LayerNorm(8)), inputs(IMAGE))
