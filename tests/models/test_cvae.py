"""The conditional autoencoder: the paper's network and loss, noise that belongs to its client, images of 0 and 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from fedmpi.algorithms.genfl import GenFL, _Learning
from fedmpi.errors import BadInput
from fedmpi.models import Model
from fedmpi.models.generators.cvae import CVAE, divergence
from fedmpi.training.clientwise import ClientWise
from fedmpi.training.flat import FlatModel, Net
from tests.support.experiments import CPU
from tests.training.test_sidebyside import Both, compare, double

__all__ = ["double"]  # a fixture


class Coder(Model):
    """A small autoencoder where tests of training want a model."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return SMALL.build(shape, classes)


SMALL = CVAE(noise=3, hidden=(17, 9))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_papers_network() -> None:
    """Oracle: the numbers of METHODS: 784-512-256-6 and 13-256-512-784; images within (0, 1)."""
    torch.manual_seed(0)
    network = CVAE().build((1, 28, 28), 10)
    encoder, decoder = (network.get_submodule(name) for name in ("encoder", "decoder"))
    assert (parameters(network), parameters(encoder), parameters(decoder)) == (1_072_150, 534_790, 537_360)
    widths = [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert widths == [(784, 512), (512, 256), (256, 6), (13, 256), (256, 512), (512, 784)]
    made = network(torch.randn(5, 3), torch.arange(5))
    assert made.shape == (5, 1, 28, 28)
    assert made.min() > 0
    assert made.max() < 1
    noise = torch.zeros(2, 3)
    assert not torch.equal(*network(noise, torch.tensor([0, 1])))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 5, 7)])
def test_images_of_any_size(shape: tuple[int, ...]) -> None:
    assert SMALL.build(shape, 4)(torch.randn(2, 3), torch.tensor([0, 3])).shape == (2, *shape)


def test_divergence() -> None:
    """Oracle: that of torch.distributions; none from itself."""
    mean, std = torch.randn(6, 3), torch.rand(6, 3) + 0.1
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, std), expected)
    assert divergence(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0


def flat(generator: CVAE, shape: tuple[int, ...] = (1, 28, 28)) -> FlatModel:
    torch.manual_seed(0)
    return FlatModel(generator.build(shape, 10), CPU)


def test_the_loss_of_grey() -> None:
    """Oracle: of an image of 0.5 throughout and a target of 0 and 1, 784 / 4 = 196; nothing for N(0, 1)."""
    model = flat(CVAE())
    model.weights.zero_()
    encoder = model.module.get_submodule("encoder.5")
    assert isinstance(encoder, nn.Linear)
    encoder.bias.data[3:] = math.log(math.expm1(1 - 1e-6))
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(CVAE().loss(Net(model), x, torch.zeros(4, dtype=torch.int64)), torch.full((4,), 196.0))


def test_the_loss() -> None:
    """Oracle: the formula with torch.distributions, image by image, on rounded images; and its sum is not a mean."""
    generator = CVAE(noise=2, hidden=(8,))
    model = flat(generator, (1, 4, 4))
    x, y = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 9, 3, 3])
    torch.manual_seed(3)
    losses = generator.loss(Net(model), x, y)
    torch.manual_seed(3)
    noise, target = torch.randn(5, 2), (x >= 0.5).float()
    for k in range(5):
        mean, raw = model.module.get_submodule("encoder")(target[k : k + 1])[0].split(2)
        std = torch.log1p(raw.exp()) + 1e-6
        made = model.module((mean + std * noise[k])[None], y[k : k + 1])[0]
        expected = ((made - target[k]) ** 2).sum() + kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum()
        torch.testing.assert_close(losses[k], expected)


@pytest.mark.parametrize("binary", [True, False])
def test_images(binary: bool) -> None:
    """Oracle: half of an image's own maximum; grey images otherwise."""
    made = torch.rand(20, 1, 6, 6) * torch.linspace(0.01, 1, 20).view(-1, 1, 1, 1)
    images = CVAE(binary=binary).images(made)
    if not binary:
        assert torch.equal(images, made)
        return
    assert set(images.unique().tolist()) == {0.0, 1.0}
    for image, drawn in zip(images, made, strict=True):
        assert torch.equal(image.bool(), drawn > drawn.max() / 2)


def drawn(key: int | Tensor, rows: int, calls: int = 1) -> list[Tensor]:
    with ClientWise(key):
        return [torch.randn_like(torch.empty(rows, 3)) for _ in range(calls)]


def test_noise() -> None:
    """Oracle: the normal distribution, by Kolmogorov and Smirnov; all else differs with the key and the call."""
    (many,) = drawn(12345, 100_000)
    assert stats.kstest(many.numpy().ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(many.numpy().T)[0, 1]) < 0.02
    first, second = drawn(12345, 50, calls=2)
    assert torch.equal(first, many[:50])
    assert not torch.equal(first, second)
    assert not torch.equal(first, drawn(12346, 50)[0])
    torch.testing.assert_close(drawn(torch.tensor(12345), 50)[0], first, rtol=0, atol=0)


@pytest.mark.usefixtures("double")
def test_side_by_side() -> None:
    """Oracle: training one by one, with the same noise; 1e-12 of the way."""
    compare(Both(Coder(), optimizer="adam", lr=0.01), _Learning(GenFL(SMALL)), 1e-12)


@pytest.mark.parametrize("company", [(0,), (7, 0), (1, 2, 3, 4)])
def test_bits_do_not_depend_on_the_company(company: tuple[int, ...]) -> None:
    """Oracle: the same client beside all others."""
    both = Both(Coder(), optimizer="adam", lr=0.01)
    everybody = both.together(_Learning(GenFL(SMALL))).weights.clone()
    assert torch.equal(both.together(_Learning(GenFL(SMALL)), company).weights, everybody[list(company)])


def test_what_cannot_be() -> None:
    with pytest.raises(BadInput, match=r"makes images, not samples of shape \(30,\)"):
        CVAE().build((30,), 2)
    with pytest.raises(BadInput, match="at least 1"):
        CVAE(hidden=(0,))
