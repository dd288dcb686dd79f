"""Clients trained side by side end where they would one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.models import (
    MLP,
    CifarCNN,
    DenseNet121,
    ExquisiteNetV1,
    LeNet,
    LogisticRegression,
    MobileNetV2,
    Model,
    NextToken,
    UNet,
)
from fedmpi.tasks import Classification, LanguageModel, Segmentation
from fedmpi.training.block import WHOLE, Block, Phase, Work
from fedmpi.training.flat import FlatModel
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import LocalWork
from tests.support.experiments import CPU, SEED, Reader, texts

# Of every kind that matters with batches of 4: less than one batch, one, one and a single sample more, several; a
# single sample; two of the same size.
SIZES = [21, 13, 9, 9, 5, 4, 3, 1]


class Writer(NextToken):
    """A model of texts of 30 different tokens, of whatever data set."""

    vocabulary = 30


MODELS: dict[str, Model] = {
    "logistic": LogisticRegression(),
    "mlp": MLP((17, 5)),
    "mlp batch": MLP((16, 8), norm="batch"),
    "lenet batch": LeNet(),
    "lenet group": LeNet("group"),
    "dropout": CifarCNN(),
    "bilstm": Reader(embedding=33, hidden=17, norm="none"),
    "bilstm batch": Reader(embedding=5, hidden=7),
    "unet batch": UNet(width=4),
    "unet group": UNet(width=4, depth=1, norm="group"),
    "next token": Writer(embedding=5, hidden=9, projection=3),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.5},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
    "adamw by step": {
        "optimizer": "adamw",
        "lr": 0.01,
        "weight_decay": 0.3,
        "schedule": "linear",
        "warmup": 2.5,
        "schedule_by": "step",
    },
    "sgd by step": {"schedule": "cosine", "schedule_by": "step"},
    "steps": {"steps": 7},
    "augmented": {"augmentation": "crop_flip"},
}
#: The class of a model -> a task for which it has an output per place, and the shape of a target.
TASKS: dict[type[Model], tuple[Any, tuple[int, ...]]] = {
    UNet: (Segmentation(), (8, 8)),
    Writer: (LanguageModel(), (7,)),
}


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64, in which the two ways must agree nearly to the last bit."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Both:
    """The same clients, data and first model for both trainers."""

    def __init__(self, model: Model, at_once: int = len(SIZES), permuted: bool = False, **settings: Any) -> None:
        rng = np.random.default_rng(5)
        x: NDArray = rng.integers(0, 256, (sum(SIZES), 3, 8, 8), dtype=np.uint8)
        if model.vocabulary:
            x = texts(rng, sum(SIZES), 7, model.vocabulary)
        self.task, places = TASKS.get(type(model), (Classification(), ()))
        y = rng.integers(0, 10, (sum(SIZES), *places))
        if places:
            y[rng.random(y.shape) < 0.3] = self.task.ignore
        samples = Samples(x, y, (0.5,) * 3, (0.25,) * 3, CPU, self.task.weights(y))
        shards = np.split(rng.permutation(sum(SIZES)), np.cumsum(SIZES)[:-1])
        orders = [torch.from_numpy(rng.permutation(64)) for _ in SIZES]
        local = LocalTraining(**{"epochs": 2, "batch_size": 4, "lr": 0.05, **settings})

        def pixels(client: int) -> Tensor | None:
            return orders[client] if permuted else None

        def network() -> FlatModel:
            torch.manual_seed(SEED)
            return FlatModel(model.build(x.shape[1:], 10), CPU)

        self.plain = PlainTrainer(LocalWork(self.task, network(), samples, shards, pixels, local, SEED))
        self.side = SideBySideTrainer(LocalWork(self.task, network(), samples, shards, pixels, local, SEED), at_once)
        self.start = self.plain.model.weights.clone()

    def one_by_one(
        self,
        algorithm: Algorithm,
        phase: Phase = WHOLE,
        completed: NDArray[np.float64] | None = None,
        **vectors: Tensor,
    ) -> tuple[Tensor, list[Work]]:
        algorithm.task = self.task
        works, weights = [], []
        everybody = block(list(range(len(SIZES))), vectors, completed)
        for client in range(len(SIZES)):
            works.append(self.plain.train(everybody.rows([client]), self.start, algorithm, 3, 10, phase))
            weights.append(works[-1].weights[0].clone())
        return torch.stack(weights), works

    def together(
        self,
        algorithm: Algorithm,
        clients: Sequence[int] = (),
        /,
        phase: Phase = WHOLE,
        completed: NDArray[np.float64] | None = None,
        **vectors: Tensor,
    ) -> Work:
        algorithm.task = self.task
        chosen = list(clients or range(len(SIZES)))
        start = self.start.expand(len(chosen), -1)
        return self.side.train(block(chosen, vectors, completed), start, algorithm, 3, 10, phase)


def block(clients: list[int], vectors: dict[str, Tensor], completed: NDArray[np.float64] | None = None) -> Block:
    sizes: NDArray[np.int64] = np.array(SIZES)[clients]
    return Block(np.array(clients), sizes, sizes, vectors, completed)


def compare(
    both: Both,
    algorithm: Algorithm,
    tolerance: float,
    phase: Phase = WHOLE,
    completed: NDArray[np.float64] | None = None,
    **vectors: Tensor,
) -> None:
    expected, works = both.one_by_one(algorithm, phase, completed, **vectors)
    work = both.together(algorithm, phase=phase, completed=completed, **vectors)
    moved = (expected - both.start).norm(dim=1)
    assert (moved > 0).all()
    assert ((work.weights - expected).norm(dim=1) <= tolerance * moved).all()
    assert work.steps.tolist() == [int(one.steps[0]) for one in works]
    np.testing.assert_allclose(work.loss, [one.loss[0] for one in works], rtol=max(tolerance, 1e-6))


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        *product(
            [name for name in MODELS if not MODELS[name].vocabulary and type(MODELS[name]) not in TASKS], SETTINGS
        ),
        ("bilstm batch", "momentum"),
        ("bilstm batch", "steps"),
    ],
)
@pytest.mark.usefixtures("double")
def test_a_round_in_double_precision(model: str, settings: str) -> None:
    """Oracle: training one by one; 1e-12 of the way.

    Adam divides rounding errors by their own size where gradients are nearly zero, and AdamW where they are zero: of
    biases before batch normalisation.
    """
    tolerance = {"adam": 1e-10, "adamw by step": 1e-8}.get(settings, 1e-12)
    compare(Both(MODELS[model], **SETTINGS[settings]), FedAvg(), tolerance)


@pytest.mark.parametrize("model", ["unet batch", "next token"])
@pytest.mark.parametrize("settings", ["momentum", "adamw by step"])
@pytest.mark.usefixtures("double")
def test_samples_of_different_weights(model: str, settings: str) -> None:
    """Oracle: training one by one; 1e-7 of the way (AdamW: 1e-5), because the weights of samples are float32."""
    compare(Both(MODELS[model], **SETTINGS[settings]), FedAvg(), 1e-5 if settings == "adamw by step" else 1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_a_step_in_single_precision(model: str) -> None:
    """Oracle: training one by one; 1e-5 of the way, with gradients of order one in float32."""
    compare(Both(MODELS[model], steps=1), FedAvg(), 1e-5)


@pytest.mark.parametrize("model", [DenseNet121(growth=2), MobileNetV2(), ExquisiteNetV1()])
@pytest.mark.usefixtures("double")
def test_deep_networks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: training one by one; 1e-9 of the way, with maps of one pixel, and last batches of one sample."""
    monkeypatch.setitem(globals(), "SIZES", [5, 3, 1])
    compare(Both(model, at_once=3, steps=1), FedAvg(), 1e-9)


@pytest.mark.parametrize("model", ["mlp", "lenet batch", "bilstm batch"])
@pytest.mark.usefixtures("double")
def test_hooks(model: str) -> None:
    """Oracle: training one by one, with a correction, per-client vectors, other weights in the loss, own pixels."""

    class Pulled(FedProx):
        def loss(self, net: Any, batch: Any, start: Tensor, client: Any) -> Tensor:
            old = net.at(client["old"])
            apart = (net.features(batch.x).flatten(1) - old.features(batch.x).flatten(1)).square().mean(1)
            return super().loss(net, batch, start, client) + 0.1 * apart + 1e-3 * client["shift"].mean()

        def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
            return super().direction(gradient, weights, start, block) + block["shift"]

    both = Both(MODELS[model], permuted=MODELS[model].vocabulary is None)
    rng = torch.Generator().manual_seed(1)
    old = both.start + 0.1 * torch.randn(len(SIZES), both.start.shape[1], generator=rng)
    old[:, both.plain.model.layout.segments["statistics"]].abs_()
    shift = 0.1 * torch.randn(len(SIZES), both.plain.model.layout.parameters, generator=rng)
    compare(both, Pulled(0.3), 1e-12, old=old, shift=shift)


@pytest.mark.parametrize("settings", ["momentum", "adam"])
def test_optimizers_start_afresh(settings: str) -> None:
    """Oracle: the same training again."""
    both = Both(MODELS["mlp"], **SETTINGS[settings])
    first = both.together(FedAvg()).weights.clone()
    assert torch.equal(both.together(FedAvg()).weights, first)


@pytest.mark.parametrize("model", MODELS)
def test_bits_do_not_depend_on_the_company(model: str) -> None:
    """Oracle: the same client beside all others; also in another row, and where the others are done before it."""
    by_step = SETTINGS["adamw by step"] if model in ("mlp batch", "next token") else {}
    both = Both(MODELS[model], batch_size=1 if model in ("mlp", "logistic", "bilstm") else 4, **by_step)
    everybody = both.together(FedAvg()).weights.clone()
    for company in ([0], [0, 7], [0, 1, 2], [1, 2, 3, 4]):
        assert torch.equal(both.together(FedAvg(), company).weights, everybody[company]), company


class Activated(Model):
    """Hidden units with the same activation twice, in numbers that fill no vector register."""

    def __init__(self, activation: nn.Module) -> None:
        self.activation = activation

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        activation = copy.deepcopy(self.activation).to(torch.get_default_dtype())
        layers = nn.Flatten(), nn.Linear(192, 11), activation, nn.Linear(11, 7), activation
        return nn.Sequential(*layers, nn.Linear(7, classes))


class Function(nn.Module):
    """A layer of one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Powers(nn.Module):
    """Powers whose base or exponent is trained: a number, or one for each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.each = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.linspace(0.7, 1.7, 77))

    def forward(self, x: Tensor) -> Tensor:
        x, each = torch.tanh(x), self.each[: x.size(1)]
        base = 1.1 + x
        return torch.pow(base, exponent=each) + base**self.one - each**x + torch.atan2(other=each[None], input=x)


def squashed(x: Tensor) -> Tensor:
    made = 2 * x
    made.sigmoid_()
    return made + torch.sigmoid_(3 * x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "power": lambda x: (x.abs() + 0.1) ** 1.3 + 1.3**x,
    "power in place": lambda x: (x.abs() + 0.1).pow_(1.3).__ipow__(0.7),
    "sigmoid in place": squashed,
    "expit": torch.special.expit,
    "atanh": lambda x: torch.atanh(0.9 * torch.tanh(x)),
    "exp2": lambda x: torch.exp2(torch.tanh(x)) + torch.special.exp2(torch.tanh(2 * x)),
    "logaddexp": lambda x: torch.logaddexp(x, 1 - x) + x.logaddexp2(1 + x),
    "core": lambda x: torch.celu(x) + torch.selu(x) + torch.celu_(2 * x) + torch.selu_(2 * x),
    "elu in place": lambda x: functional.elu_(2 * x),
}
ACTIVATIONS: list[nn.Module] = [
    *(nn.Sigmoid(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.CELU(), nn.SELU(), nn.Softplus(), nn.GELU(approximate="tanh")),
    *(nn.LogSigmoid(), nn.Tanh(), nn.Hardswish(), nn.ReLU6()),
    *(*map(Function, FUNCTIONS.values()), Powers()),
]


@pytest.mark.parametrize("activation", ACTIVATIONS[-1 - len(FUNCTIONS) :], ids=[*FUNCTIONS, "powers"])
@pytest.mark.usefixtures("double")
def test_functions_in_double_precision(activation: nn.Module) -> None:
    """Oracle: training one by one; 1e-12 of the way."""
    compare(Both(Activated(activation), steps=3), FedAvg(), 1e-12)


@pytest.mark.parametrize("model", [ExquisiteNetV1(), *map(Activated, ACTIVATIONS)])
def test_bits_do_not_depend_on_the_row(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the same clients in another order; whoever comes last ends in what fills no vector register."""
    monkeypatch.setitem(globals(), "SIZES", [5, 5, 5])
    both = Both(model, at_once=3)
    assert torch.equal(both.together(FedAvg()).weights.clone(), both.together(FedAvg(), [2, 1, 0]).weights.flip(0))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.poisson(torch.ones_like(x))


def test_random_functions_that_are_not_known_are_refused_rather_than_shared() -> None:
    class Noisy(Model):
        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(192, classes), Noise())

    with pytest.raises(RuntimeError, match="random"):
        Both(Noisy()).together(FedAvg())


@pytest.mark.parametrize("model", ["mlp", "lenet batch"])
def test_clients_without_samples(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: training one by one; they return what they received, and nothing is seen of their company."""
    monkeypatch.setitem(globals(), "SIZES", [21, 13, 0, 4, 0, 3, 1, 0])
    both = Both(MODELS[model], steps=1)
    expected, _ = both.one_by_one(FedAvg())
    work = both.together(FedAvg())
    empty = [2, 4, 7]
    assert work.steps.tolist() == [1, 1, 0, 1, 0, 1, 1, 0]
    assert np.flatnonzero(np.isnan(work.loss)).tolist() == empty
    assert torch.equal(work.weights[empty], both.start.expand(3, -1))
    assert ((work.weights - expected).norm(dim=1) <= 1e-5 * (expected - both.start).norm(dim=1)).all()
    assert torch.equal(both.together(FedAvg(), [2, 7]).weights, both.start.expand(2, -1))
