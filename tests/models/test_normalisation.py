"""Fed-GN's promises (Hsieh et al., 2020): group norm keeps no statistics and looks at each sample alone."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.components import subclasses
from fedmpi.models import VGG11, BiLSTM, LeNet, LeNet5, Model, Norm, ResNet18
from fedmpi.models._layers import norm_layer
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import run

SHAPE = (1, 8, 8)
AT_LEAST = {LeNet5: (1, 12, 12), VGG11: (1, 32, 32)}
WITHOUT_BATCH: list[Norm] = ["group", "layer"]


def models(norm: Norm) -> list[tuple[Model, tuple[int, ...]]]:
    """Every model of images that has the option, without dropout, and a small shape for it."""
    made: list[Model] = []
    for cls in subclasses(Model):
        options = inspect.signature(cls).parameters
        if cls.__module__.startswith("fedmpi.") and "norm" in options and cls is not BiLSTM:
            made.append(cls(norm=norm, **({"dropout": 0.0} if "dropout" in options else {})))
    made.append(ResNet18(stem="imagenet", norm=norm))
    return [(model, AT_LEAST.get(type(model), SHAPE)) for model in made]


@pytest.mark.parametrize("norm", WITHOUT_BATCH)
def test_no_buffers_and_as_many_parameters_as_with_batch_norm(norm: Norm) -> None:
    """Oracle: the shapes of the same network with batch normalisation."""
    with torch.device("meta"):
        for (model, shape), (batch, _) in zip(models(norm), models("batch"), strict=True):
            network = model.build(shape, 10)
            assert not list(network.buffers())
            shapes = [p.shape for p in network.parameters()]
            assert shapes == [p.shape for p in batch.build(shape, 10).parameters()]


@pytest.mark.parametrize("norm", WITHOUT_BATCH)
def test_a_sample_gives_the_same_alone_in_any_batch_and_in_either_mode(norm: Norm) -> None:
    """Oracle: the network on one sample at a time."""
    torch.manual_seed(0)
    for model, shape in models(norm):
        network = model.build(shape, 10)
        x = torch.randn(3, *shape)
        together = network.train()(x)
        for mode in (True, False):
            alone = torch.cat([network.train(mode)(sample[None]) for sample in x])
            torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
            shuffled = network.train(mode)(x.flip(0)).flip(0)
            torch.testing.assert_close(shuffled, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [norm_layer("group", 6, groups=1), norm_layer("layer", 6, groups=2)])
def test_one_group_is_layer_norm_with_an_affine_map_a_channel(layer: nn.GroupNorm) -> None:
    """Oracle: PyTorch's layer_norm, with a weight per channel."""
    x = torch.randn(3, 6, 4, 5)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    normalised = nn.functional.layer_norm(x, x.shape[1:])
    expected = normalised * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_groups_option_reaches_every_layer() -> None:
    network = ResNet18(norm="group", groups=32).build(SHAPE, 10)
    groups = [layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    assert groups == [32] * 20


def test_none_leaves_normalisation_out() -> None:
    for model, shape in models("none"):
        network = model.build(shape, 10)
        assert not any(isinstance(layer, nn.GroupNorm | nn.BatchNorm2d) for layer in network.modules())
        assert network(torch.randn(2, *shape)).isfinite().all()


def test_in_a_federation_there_are_only_parameters(tmp_path: Path) -> None:
    """Fed-GN. Oracle: FedAvg with batch norm has the same tensors, its statistics apart, and sends them as well."""
    settings: dict[str, Any] = {"rounds": 2, "local": LocalTraining(epochs=1, batch_size=50)}
    group, batch = (run(tmp_path / f"{n}.h5", model=LeNet(norm=n), **settings) for n in ("group", "batch"))
    names = [name for name in batch.state_dict() if "running" not in name]
    assert list(group.state_dict()) == names
    assert len(batch.weights) - len(group.weights) == 96
    np.testing.assert_array_equal(group.rounds["bytes_up"], [4 * 4 * len(group.weights)] * 2)
    np.testing.assert_array_equal(batch.rounds["bytes_up"], [4 * 4 * len(batch.weights)] * 2)
