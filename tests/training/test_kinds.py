"""Tensors of other shapes and kinds, sparse gradients, lazy layers, and weights that are made in every run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.feature_fusion import FeatureFusion
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedgen import FedGen
from fedmpi.algorithms.fedper import FedPer
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.algorithms.moon import MOON
from fedmpi.data import IID
from fedmpi.errors import BadInput
from fedmpi.models import Backbone
from fedmpi.results.check import problems
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.layout import Entry, Layout
from fedmpi.training.settings import LocalTraining
from tests.jobs.networks import Bag, Eager, Kinds, Lazy, Raw, Reparametrised, Shapes
from tests.jobs.words import Words
from tests.support.digits import DIGITS, Few
from tests.support.experiments import CPU, Cut, network, normalised, run

SHAPE = (1, 8, 8)
PLAIN = LocalTraining(epochs=1, vectorize="off")


def made_by(path: Path, model: Any, algorithm: Algorithm | None = None, **settings: Any) -> results.Run:
    chosen: dict[str, Any] = {"rounds": 2, "clients": 4, "partition": Cut(20, 30, 20, 30), "local": PLAIN}
    return run(path, algorithm, model=model, **{**chosen, **settings})


def trained_by_pytorch(model: Any, steps: int = 3) -> dict[str, Tensor]:
    """The state of a network after so many steps of a bare loop, at a rate of 0.1."""
    plain = network(model, SHAPE, 10)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    x, y = normalised(DIGITS.train_x[:64], Few(64)), torch.from_numpy(DIGITS.train_y[:64])
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(plain(x), y).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in plain.state_dict().items()}


def is_a_bare_loop(path: Path, model: Any) -> results.Run:
    """Oracle: a bare loop over the 64 samples of a single client."""
    local = LocalTraining(epochs=3, batch_size=64, lr=0.1, vectorize="off")
    made = made_by(path, model, clients=1, partition=Cut(64), rounds=1, local=local)
    found, expected = made.state_dict(), trained_by_pytorch(model)
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    return made


# Shapes


def test_scalars_nothing_and_assigned_buffers(tmp_path: Path) -> None:
    """0-dimensional tensors, one without elements, and buffers that `forward` assigns anew."""
    made = is_a_bare_loop(tmp_path / "made.h5", Shapes())
    assert made.state_dict()["temperature"].shape == ()
    assert made.state_dict()["nothing"].shape == (0, 3)
    assert made.state_dict()["mean"] != 0
    assert problems(made.path) == []


def test_counters_start_afresh_with_each_client() -> None:
    """Oracle: by hand; whichever tensor the network has put in their place."""
    model = FlatModel(network(Shapes(), SHAPE, 10), CPU)
    start, x = model.weights[0].clone(), torch.rand(3, *SHAPE)
    for _ in range(2):
        model.load(start)
        for _ in range(3):
            model.backward(cross_entropy(model.module.train()(x), torch.tensor([1, 2, 3]), reduction="none"))
        assert model.module.get_buffer("calls").item() == 3
        assert model.layout.views(model.weights[0])["mean"] == model.module.get_buffer("mean") != 0
    model.module(x)  # a pass that no step follows
    model.load(start)
    assert (model.module.get_buffer("calls").item(), model.module.get_buffer("mean").item()) == (0, 0)
    assert model.layout.views(model.weights[0])["mean"] == 0


def test_a_tensor_without_elements_in_a_large_network() -> None:
    """Whose updates are made tensor by tensor."""
    module = nn.Sequential(nn.Linear(64, 2000), nn.Linear(2000, 10))
    nothing = nn.Parameter(torch.zeros(0))
    module.register_parameter("nothing", nothing)
    model, seen = FlatModel(module, CPU), []

    def note(entry: Entry, parameter: Tensor, gradient: Tensor) -> None:
        seen.append(entry.name)

    model.backward_in_parts((module(torch.rand(5, 64)).sum(1) + nothing.sum(), torch.ones(5)), note)
    assert sorted(seen) == ["0.bias", "0.weight", "1.bias", "1.weight"]


# Kinds


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Kinds("float64"), r"--model = Kinds: parameter odd is float64: networks are float32 \(call .float\(\)\)"),
        (Kinds("bfloat16"), r"--model = Kinds: parameter odd is bfloat16: networks are float32"),
        (Kinds("float16"), r"--model = Kinds: parameter odd is float16: networks are float32"),
        (Kinds("complex64"), r"--model = Kinds: parameter odd is complex64: networks are float32$"),
        (Kinds("half buffer"), r"--model = Kinds: buffer table is float16: networks are float32"),
        (Kinds("float64", frozen=True), r"--model = Kinds: parameter odd is float64"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value.kind} {value.frozen}",
)
def test_what_is_not_float32_is_refused_by_name(model: Kinds, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        made_by(tmp_path / "made.h5", model)


def gradients_by_name(model: FlatModel, losses: Tensor) -> dict[str, Tensor]:
    """What `backward_in_parts` hands out."""
    found = {}

    def note(entry: Entry, parameter: Tensor, gradient: Tensor) -> None:
        found[entry.name] = gradient.clone()

    model.backward_in_parts((losses, torch.full_like(losses, 1 / len(losses))), note)
    return found


def test_gradients_of_what_the_losses_do_not_depend_on() -> None:
    """Oracle: zeros, for decay and momentum go on all the same."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 2))
    found = gradients_by_name(FlatModel(module, CPU), module[0](torch.rand(5, 3)).sum(1))
    assert {name: (gradient.shape, bool(gradient.any())) for name, gradient in found.items()} == {
        "0.weight": ((4, 3), True),
        "0.bias": ((4,), True),
        "1.weight": ((2, 3), False),
        "1.bias": ((2,), False),
    }


def test_sparse_gradients() -> None:
    """Oracle: the dense embedding, in a flat gradient and part by part."""
    found = []
    for is_sparse in (False, True):
        torch.manual_seed(0)
        model = FlatModel(nn.Sequential(nn.Embedding(60, 2000, sparse=is_sparse), nn.Linear(2000, 3)), CPU)
        tokens = torch.tensor([[1, 2], [2, 5]])
        parts = gradients_by_name(model, model.module(tokens).sum((1, 2)))
        model.backward(model.module(tokens).sum((1, 2)))
        found.append((parts, model.gradient.clone()))
    (dense, whole), (sparse, other) = found
    assert all(torch.equal(sparse[name], gradient) for name, gradient in dense.items())
    assert torch.equal(whole, other)


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"optimizer": "adam", "lr": 0.01}, {"vectorize": 2}])
@pytest.mark.parametrize("width", [4, 6000])
def test_sparse_embeddings_train_as_dense_ones(settings: dict[str, Any], width: int, tmp_path: Path) -> None:
    """Oracle: the weights of the dense one, bit for bit; small, and with more than 100,000 parameters."""
    local = LocalTraining(**{"steps": 2, "vectorize": "off", **settings})
    made = [
        made_by(tmp_path / f"{is_sparse}.h5", Bag(width, is_sparse), dataset=Words(), partition=IID(), local=local)
        for is_sparse in (False, True)
    ]
    assert made[0].weights_sha256 == made[1].weights_sha256


class OwnEmbedding(nn.Module):
    """One that asks for sparse gradients where nobody can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(60, 2000))

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.embedding(tokens, self.table, sparse=True)


def test_sparse_gradients_of_a_function() -> None:
    """Oracle: the gradient by hand: how often each token comes."""
    model = FlatModel(OwnEmbedding(), CPU)
    found = gradients_by_name(model, model.module(torch.tensor([1, 2, 2])).sum(1))
    torch.testing.assert_close(found["table"].sum(1)[:4], torch.tensor([0, 2000, 4000, 0]) / 3)


# Lazy layers


def test_lazy_layers_are_those_that_know_their_shapes(tmp_path: Path) -> None:
    """Oracle: the names and shapes of the plain network; other seeds give other weights, as with all."""
    made, other = (made_by(tmp_path / f"{seed}.h5", Lazy(), seed=seed) for seed in (3, 4))
    plain = made_by(tmp_path / "plain.h5", Eager())
    assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert made.initial["test_loss"] != other.initial["test_loss"]
    assert made.rounds["test_loss"][-1] < made.initial["test_loss"]


class Broken(Lazy):
    """Lazy layers that the inputs do not fit."""

    def build(self, shape: tuple[int, ...], classes: int) -> Any:
        return Backbone(nn.Sequential(nn.LazyConv2d(4, 30), nn.Flatten()), nn.LazyLinear(classes))


@pytest.mark.parametrize("method", [FedAvg, FeatureFusion])
def test_lazy_layers_that_cannot_be_run(method: type[Algorithm], tmp_path: Path) -> None:
    """Whether or not the method looks at the network first."""
    with pytest.raises(
        BadInput, match="--model = Broken: has lazy layers, whose shapes cannot be found by running it"
    ):
        made_by(tmp_path / "made.h5", Broken(), method())


# Weights that are made in every run


KINDS = ["weight", "spectral", "new weight", "new spectral"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_reparametrised_weights_train_as_in_pytorch(kind: Any, tmp_path: Path) -> None:
    is_a_bare_loop(tmp_path / "made.h5", Reparametrised(kind))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [MOON, FedProx, FedGen], ids=lambda method: method.__name__)
def test_reparametrised_weights_under_methods_that_copy(kind: Any, method: type[Algorithm], tmp_path: Path) -> None:
    """One by one: a copy of the network is made before it has run."""
    made = made_by(tmp_path / "made.h5", Reparametrised(kind), method())
    assert made.rounds["test_loss"][-1] < made.initial["test_loss"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_of_reparametrised_networks(kind: Any) -> None:
    """Oracle: another network in evaluation mode; and its weights stay out of the one that is trained."""
    module = network(Reparametrised(kind), SHAPE, 10)
    x = torch.rand(3, *SHAPE)
    module(x).sum().backward()  # as a user's own check may do, after which deepcopy refuses
    module.zero_grad()
    model = FlatModel(module, CPU)
    other = FlatModel(network(Reparametrised(kind), SHAPE, 10, number=1), CPU)
    before, at_home = model.weights.clone(), model.module.eval()(x)
    torch.testing.assert_close(Net(model).at(other.weights[0])(x), other.module.eval()(x))
    assert torch.equal(model.weights, before)
    torch.testing.assert_close(model.module(x), at_home)


def test_a_network_that_cannot_be_copied_trains_all_the_same() -> None:
    """Until a method needs the copy."""

    class Holding(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.library = np  # which cannot be copied

    model = FlatModel(Holding(), CPU)
    model.backward(model.module(torch.rand(4, 3)).sum(1))
    assert model.gradient.any()
    with pytest.raises(RuntimeError, match="the network cannot be copied"):
        Net(model).at(model.weights[0])
    with pytest.raises(TypeError):
        copy.deepcopy(model.module)


def test_the_head_of_a_parametrised_network() -> None:
    """Oracle: by hand: what the weight of the last layer is made of belongs to the head."""
    module = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    layout = Layout.of(module)
    assert layout.segments["head"] == slice(0, 2 + 2 + 8)
    assert FedPer().split(layout) == (slice(0, 12), slice(12, 28))
    assert {entry.name for entry in layout.entries if entry.segment == "body"} == {"0.weight", "0.bias"}


# Large numbers


@pytest.mark.parametrize("vectorize", ["off", 2])
def test_a_large_running_variance_is_no_divergence(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: the bare loop's variance, far above 2^22."""
    local = LocalTraining(epochs=20, batch_size=64, lr=0.1, vectorize=vectorize)
    made = made_by(tmp_path / "made.h5", Raw(), local=local, partition=Cut(64, 64, 64, 64), rounds=1)
    assert made.rounds["diverged_clients"].tolist() == [0]
    assert made.state_dict()["extractor.3.running_var"].max() > 1e16
    assert np.isfinite(made.rounds["test_loss"]).all()
