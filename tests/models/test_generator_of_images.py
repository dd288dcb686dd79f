"""The image generators are those of FedFTG's tables, and fit images of any size that can be halved often enough."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmpi.components import subclasses
from fedmpi.errors import BadInput
from fedmpi.models.generators import Generator
from fedmpi.models.generators.images import DeepImageGenerator, ImageGenerator


def made(generator: Generator, shape: tuple[int, ...], classes: int) -> tuple[nn.Module, torch.Tensor]:
    """The network, and samples of all classes."""
    torch.manual_seed(0)
    network = generator.build(shape, classes)
    return network, network(torch.randn(classes, generator.noise), torch.arange(classes))


@pytest.mark.parametrize(
    ("generator", "shape", "classes", "parameters"),
    [
        (ImageGenerator(), (3, 32, 32), 10, 682_499),
        (ImageGenerator(256), (3, 32, 32), 100, 1_690_115),
        (ImageGenerator(order="repo"), (3, 32, 32), 10, 682_499),
        (DeepImageGenerator(), (3, 112, 112), 11, 4_963_779),
        (DeepImageGenerator(), (3, 64, 64), 200, 3_465_411),
        (DeepImageGenerator(100), (3, 32, 32), 10, 1_704_131),
    ],
)
def test_the_tables_networks(generator: Generator, shape: tuple[int, ...], classes: int, parameters: int) -> None:
    """Oracle: the parameters of tables 1(a) and 2(a), counted by hand."""
    network = generator.build(shape, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    samples = network(torch.randn(2, generator.noise), torch.tensor([0, classes - 1]))
    assert samples.shape == (2, *shape)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (2, 4, 12)])
@pytest.mark.parametrize("order", ["paper", "repo"])
def test_other_images(shape: tuple[int, ...], order: str) -> None:
    """Oracle: the shape; and the size of the maps that each convolution sees."""
    generator = ImageGenerator(order=order)  # type: ignore[arg-type]
    seen: list[int] = []
    network = generator.build(shape, 10)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape[-1]))
    assert network(torch.randn(3, 100), torch.tensor([0, 5, 9])).shape == (3, *shape)
    width = shape[-1]
    assert seen == ([width // 4, width // 2, width] if order == "paper" else [width // 2, width, width])


@pytest.mark.parametrize("kind", [ImageGenerator, DeepImageGenerator])
def test_the_last_normalisation(kind: type[ImageGenerator] | type[DeepImageGenerator]) -> None:
    """Oracle: mean 0 and variance 1 of each channel over the batch; without, between -1 and 1 by tanh."""
    _, samples = made(kind(), (3, 16, 16), 10)
    torch.testing.assert_close(samples.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(samples.var((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)
    _, samples = made(kind(final_norm=False), (3, 16, 16), 10)
    assert samples.abs().max() <= 1
    assert samples.std() < 0.9


def test_noise_and_label_both_count() -> None:
    """Oracle: another sample for other noise, and for another label."""
    network = ImageGenerator().build((1, 8, 8), 10).eval()
    noise = torch.randn(2, 100)
    one, other_noise, other_label = network(noise[[0, 1, 0]], torch.tensor([3, 3, 4])).detach()
    assert not torch.equal(one, other_noise)
    assert not torch.equal(one, other_label)


@pytest.mark.parametrize(
    ("generator", "shape", "divisor"),
    [
        (ImageGenerator(), (1, 30, 28), 4),
        (ImageGenerator(), (64,), 4),
        (DeepImageGenerator(), (1, 28, 28), 16),
    ],
)
def test_a_shape_that_does_not_fit_is_named(generator: Generator, shape: tuple[int, ...], divisor: int) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput) as error:
        generator.build(shape, 10)
    assert str(error.value) == (
        f"generator = {type(generator).__name__}: cannot make samples of shape {shape}: it makes images (channels,"
        f" height, width) whose height and width are multiples of {divisor}"
    )


def test_every_generator_of_images_is_known_by_name() -> None:
    assert {"ImageGenerator", "DeepImageGenerator"} <= {cls.__name__ for cls in subclasses(Generator)}
