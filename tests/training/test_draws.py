"""Random functions of a network draw each client's own numbers, whichever way clients are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.models import Model
from fedmpi.training.clientwise import ClientWise
from tests.training import test_sidebyside
from tests.training.test_sidebyside import Both, Function, compare, double

__all__ = ["double"]


class Within(Model):
    """A layer between two of 16 units; or, of images, after a convolution of 4 channels."""

    def __init__(self, layer: nn.Module | Callable[[Tensor], Tensor], images: bool = False) -> None:
        self.layer = layer if isinstance(layer, nn.Module) else Function(layer)
        self.images = images

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        if self.images:
            return nn.Sequential(nn.Conv2d(3, 4, 3), self.layer, nn.Flatten(), nn.Linear(144, classes))
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), self.layer, nn.Linear(16, classes))


class Attending(nn.Module):
    """Attention over the rows of an image, with dropout of its weights and after it."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.encoder(x.flatten(1, 2))
        logits: Tensor = self.head(rows[:, 0])
        return logits


class Encoder(Model):
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Attending()


def row_depth(x: Tensor) -> Tensor:
    """Stochastic depth as torchvision has it."""
    noise = torch.empty([x.shape[0], 1], dtype=x.dtype, device=x.device)
    noise = noise.bernoulli_(0.6)
    noise.div_(0.6)
    return x * noise


RANDOM: dict[str, Model] = {
    "dropout in place": Within(lambda x: functional.dropout(2 * x, 0.4, inplace=True)),
    "dropout1d": Within(lambda x: functional.dropout1d(x[:, :, None], 0.4)[..., 0]),
    "dropout2d": Within(nn.Dropout2d(0.4), images=True),
    "dropout3d": Within(lambda x: functional.dropout3d(x[:, :, None], 0.4)[:, :, 0], images=True),
    "alpha": Within(nn.AlphaDropout(0.3)),
    "feature alpha": Within(nn.FeatureAlphaDropout(0.3), images=True),
    "core dropout": Within(lambda x: torch.dropout(x, 0.3, True) + torch.alpha_dropout(x, 0.3, True)),
    "core features": Within(lambda x: torch.feature_dropout(x, 0.3, True), images=True),
    "core feature alpha": Within(lambda x: torch.feature_alpha_dropout(x, 0.3, True), images=True),
    "rrelu": Within(nn.RReLU()),
    "attention": Encoder(),
    "gumbel": Within(functional.gumbel_softmax),
    "depth": Within(row_depth),
    "rand": Within(lambda x: x + torch.rand(x.shape) + torch.rand(x.size(0), 1) + torch.rand_like(x)),
    "randn": Within(lambda x: x + torch.randn(size=x.shape) + torch.randn_like(x) + torch.normal(0.0, 1.0, x.shape)),
    "normal": Within(lambda x: x + torch.normal(x.detach(), 0.1) + torch.empty_like(x).normal_(0, 0.1)),
    "few normal": Within(lambda x: x + torch.randn(x.size(0), 1) + torch.empty(x.size(0), 1).exponential_()),
    "uniform": Within(lambda x: x + torch.empty(x.shape).uniform_(-1, 2)),
    "bernoulli": Within(lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)) + x.detach().sigmoid().bernoulli()),
    "randint": Within(lambda x: x + torch.randint(3, (x.size(0), 16)) - torch.randint(low=-1, high=2, size=(16,))),
    "randint_like": Within(lambda x: x + torch.randint_like(x, 3) - torch.randint_like(x, -1, 2)),
    "randperm": Within(lambda x: x[:, torch.randperm(16)]),
    "multinomial": Within(lambda x: x.gather(1, torch.multinomial(x.detach().exp(), 16))),
    "method": Within(lambda x: x.gather(1, x.detach().exp().multinomial(16))),
    "replaced": Within(lambda x: x.gather(1, torch.multinomial(x.detach().exp(), 16, replacement=True))),
}


@pytest.mark.parametrize("model", RANDOM)
@pytest.mark.usefixtures("double")
def test_clients_draw_the_same_numbers_alone_and_side_by_side(model: str) -> None:
    """Oracle: training one by one; 1e-10 of the way, where other numbers would be as far apart as the way is long."""
    compare(Both(RANDOM[model], steps=3), FedAvg(), 1e-10)


@pytest.mark.parametrize("model", RANDOM)
def test_bits_do_not_depend_on_the_company(model: str) -> None:
    """Oracle: the same client beside all others."""
    both = Both(RANDOM[model])
    everybody = both.together(FedAvg()).weights.clone()
    for company in ([0], [0, 7], [1, 2, 3, 4]):
        assert torch.equal(both.together(FedAvg(), company).weights, everybody[company]), company


def test_clients_and_steps_draw_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a network that is given noise twice in each step never sees the same noise twice."""
    seen: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        seen.extend([torch.rand(5, 5), torch.rand(5, 5)])
        return x

    monkeypatch.setattr(test_sidebyside, "SIZES", [8, 8])
    Both(Within(note), epochs=2).one_by_one(FedAvg())
    assert len(seen) == 2 * (2 * 2 * 2)
    assert len({tuple(noise.flatten().tolist()) for noise in seen}) == len(seen)


def drawn(function: Callable[..., Tensor], *arguments: Any, **options: Any) -> np.ndarray:
    with ClientWise(7):
        return function(*arguments, **options).double().numpy()


@pytest.mark.parametrize(
    ("name", "values", "mean", "deviation"),
    [
        ("rand", drawn(torch.rand, 40_000), 0.5, 12**-0.5),
        ("randn", drawn(torch.randn, 40_000), 0, 1),
        ("normal", drawn(torch.normal, torch.full((40_000,), 3.0), 2.0), 3, 2),
        ("uniform_", drawn(torch.empty(40_000).uniform_, -1, 3), 1, 4 * 12**-0.5),
        ("exponential_", drawn(torch.empty(40_000).exponential_, 2.0), 0.5, 0.5),
        ("bernoulli_", drawn(torch.empty(40_000).bernoulli_, 0.2), 0.2, 0.4),
        ("bernoulli", drawn(torch.bernoulli, torch.full((40_000,), 5.0), 0.2), 0.2, 0.4),
        ("between", drawn(torch.empty(40_000).uniform_, **{"from": 3, "to": 5}), 4, 2 * 12**-0.5),
        ("deviations", drawn(torch.normal, 3.0, torch.full((40_000,), 2.0)), 3, 2),
        ("deviation", drawn(torch.normal, 3.0, 2.0, (40_000,)), 3, 2),
        ("randint_like", drawn(torch.randint_like, torch.empty(40_000), 2, 6), 3.5, (15 / 12) ** 0.5),
        ("below", drawn(torch.randint_like, torch.empty(40_000), 4), 1.5, (15 / 12) ** 0.5),
        ("randint", drawn(torch.randint, 2, 6, (40_000,)), 3.5, (15 / 12) ** 0.5),
        ("multinomial", drawn(torch.multinomial, torch.tensor([[1.0, 3.0]]).repeat(40_000, 1), 1), 0.75, 0.1875**0.5),
        ("replaced", drawn(torch.multinomial, torch.tensor([1.0, 3.0]), 40_000, replacement=True), 0.75, 0.1875**0.5),
        ("alpha_dropout", drawn(functional.alpha_dropout, torch.randn(40_000), 0.4, True), 0, 1),
        ("rrelu", drawn(functional.rrelu, -torch.ones(40_000), 0.2, 0.6, True), -0.4, 0.4 * 12**-0.5),
    ],
)
def test_distributions(name: str, values: np.ndarray, mean: float, deviation: float) -> None:
    """Oracle: the moments, to five standard errors (of the deviation: of a distribution no wider than the normal)."""
    error = 5 * deviation / values.size**0.5
    assert abs(values.mean() - mean) < error
    assert abs(values.std() - deviation) < 1.5 * error


def test_permutations() -> None:
    """Oracle: each number once."""
    assert sorted(drawn(torch.randperm, 50)) == list(range(50))


def test_broadcast_noise_is_not_repeated() -> None:
    assert len(np.unique(drawn(torch.normal, torch.zeros(4), torch.ones(3, 1)))) == 12


def test_dropped_channels() -> None:
    """Oracle: the share, and that a channel is dropped whole."""
    kept = drawn(functional.dropout2d, torch.ones(40, 30, 3, 3), 0.25)
    assert set(kept.reshape(1200, 9).mean(1).round(5)) == {0, round(4 / 3, 5)}
    assert abs((kept > 0).mean() - 0.75) < 5 * (0.1875 / 1200) ** 0.5


#: Functions of inputs with and without a batch that drop all of what has one place in the first dimensions.
FEATURES = [
    (functional.dropout1d, (2, 3)),
    (functional.dropout2d, (3, 4)),
    (functional.dropout3d, (4, 5)),
    (functional.feature_alpha_dropout, (3, 4, 5)),
]


@pytest.mark.filterwarnings("ignore:dropout2d. Received a 3D input")
@pytest.mark.parametrize(("function", "dimensions"), [(f, d) for f, sizes in FEATURES for d in sizes])
def test_what_is_dropped_together(function: Callable[..., Tensor], dimensions: int) -> None:
    """Oracle: PyTorch: along which dimensions all are alike."""

    def alike(dropped: np.ndarray) -> list[bool]:
        return [bool((dropped == dropped.take([0], axis=axis)).all()) for axis in range(dimensions)]

    ones = torch.ones(11, 12, *[2, 3, 4][: dimensions - 2])
    ours, theirs = drawn(function, ones, 0.5, True), function(ones, 0.5, True).numpy()
    assert alike(ours) == alike(theirs)
    np.testing.assert_allclose(np.unique(ours.round(5)), np.unique(theirs.round(5)))


def test_arguments_are_those_of_pytorch() -> None:
    """Oracle: PyTorch: types, shapes, whether gradients flow, and results where nothing is random."""
    x, whole = torch.linspace(-2, 2, 12).view(3, 4), torch.arange(6)
    double, rows = x.double(), torch.arange(1.0, 4)[:, None]
    calls: list[Callable[[], Tensor]] = [
        lambda: torch.rand_like(double),
        lambda: torch.randn_like(x, dtype=torch.float64),
        lambda: torch.rand(2, 3, dtype=torch.float64, requires_grad=True),
        lambda: torch.randn([2, 3]),
        lambda: torch.randint(7, (5,)),
        lambda: torch.randint(2, 7, (5,), dtype=torch.int32),
        lambda: torch.randint_like(whole, 7),
        lambda: torch.randperm(5),
        lambda: torch.normal(torch.zeros(4), rows),
        lambda: torch.bernoulli(double.sigmoid()),
        lambda: torch.multinomial(rows[:, 0], 2),
        lambda: torch.empty(2, 3, dtype=torch.float64).uniform_(),
    ]
    for number, call in enumerate(calls):
        with ClientWise(7):
            ours = call()
        theirs = call()
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), number
        assert ours.requires_grad == theirs.requires_grad, number
    certain: list[Callable[[], Tensor]] = [
        *(lambda f=f: f(x, 1.0, True) for f in (functional.dropout, functional.alpha_dropout, torch.dropout)),
        lambda: functional.alpha_dropout(x, 0.3),
        lambda: functional.feature_alpha_dropout(x, 0.3),
        lambda: functional.rrelu(x, 0.1, 0.5),
        lambda: functional.dropout2d(x[None, None], 0.5, False),
        lambda: torch.dropout(x, 0.5, False),
        lambda: torch.rand(5, generator=torch.Generator().manual_seed(3)),
    ]
    for number, call in enumerate(certain):
        with ClientWise(7):
            ours = call()
        assert torch.equal(ours, call()), number
    for function in (
        functional.dropout,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
        functional.rrelu,
    ):
        given = torch.ones(3, 4)
        with ClientWise(7):
            assert function(given, training=True, inplace=True) is given


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"scale": 0.7},
        {"attn_mask": torch.linspace(-3, 3, 25).view(5, 5)},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu()},
        {"enable_gqa": True},
    ],
)
def test_attention_that_drops_nothing(options: dict[str, Any]) -> None:
    """Oracle: PyTorch's without dropout."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 5, 4), *torch.randn(2, 2, 3 if "enable_gqa" in options else 6, 5, 4)
    ours = drawn(functional.scaled_dot_product_attention, q, k, v, dropout_p=1e-9, **options)
    np.testing.assert_allclose(ours, functional.scaled_dot_product_attention(q, k, v, **options), atol=1e-6)
