"""A module bound to a flat vector, and what a loss sees of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi.models import MLP, LeNet, Model, ResNet18
from fedmpi.training.flat import FlatModel, Net
from tests.support.experiments import CPU, network, state
from tests.support.mpi import mpirun, succeed

MODELS = [(LeNet(), (1, 8, 8)), (ResNet18(), (3, 8, 8)), (MLP(hidden=(7, 5), norm="batch"), (13,))]


class Tied(nn.Module):
    """Two layers that share their weight, a constant, and a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(4, 4, bias=False)
        self.up = nn.Linear(4, 4, bias=False)
        self.up.weight = self.down.weight
        self.shift: Tensor
        self.calls: Tensor
        self.register_buffer("shift", torch.arange(4.0), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.up(torch.relu(self.down(x + self.shift)))
        return y


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 1, 8, 8), torch.randint(10, (6,))


@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_binding_changes_nothing_that_shows(model: Model, shape: tuple[int, ...]) -> None:
    """Oracle: the network before it was bound: its tensors bit for bit, its output to rounding."""
    module = network(model, shape, 10)
    before = copy.deepcopy(module)
    bound = FlatModel(module, CPU)
    assert bound.module is module
    assert bound.weights.shape == (1, bound.layout.size)
    after = state(module)
    assert after.keys() == state(before).keys()
    for name, tensor in state(before).items():
        assert torch.equal(after[name], tensor), name
        assert torch.equal(bound.layout.views(bound.weights[0])[name], tensor), name
    x = torch.randn(4, *shape)
    torch.testing.assert_close(module.eval()(x), before.eval()(x), rtol=1e-4, atol=1e-5)


def test_vector_and_network_are_one(batch: tuple[Tensor, Tensor]) -> None:
    """Oracle: writing the vector changes the network; an optimizer of PyTorch's own changes the vector."""
    bound = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU)
    x, y = batch
    bound.weights[:, bound.layout.segments["head"]] = 0
    assert torch.equal(bound.module(x), torch.zeros(6, 10))
    before = bound.weights.clone()
    optimizer = torch.optim.SGD(bound.module.parameters(), lr=0.1)
    bound.backward(cross_entropy(bound.module(x), y))
    optimizer.step()
    head = bound.layout.segments["head"]
    torch.testing.assert_close(bound.weights[:, head], before[:, head] - 0.1 * bound.gradient[:, head])
    assert not torch.equal(bound.weights[:, head], before[:, head])


def test_rows_start_on_64_bytes() -> None:
    """Oracle: the addresses, of a network of odd size."""
    bound = FlatModel(network(MLP(hidden=(7, 5)), (13,), 10), CPU)
    assert bound.layout.size % 16
    assert bound.weights.data_ptr() % 64 == 0
    assert bound.gradient.data_ptr() % 64 == 0


@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_gradient_is_autograds(model: Model, shape: tuple[int, ...]) -> None:
    """Oracle: autograd on a copy that is not bound; a second call starts from zero."""
    module = network(model, shape, 10)
    plain = copy.deepcopy(module)
    bound = FlatModel(module, CPU)
    for seed in (1, 2):
        torch.manual_seed(seed)
        x, y = torch.randn(8, *shape), torch.randint(10, (8,))
        plain.zero_grad()
        cross_entropy(plain(x), y).backward()
        bound.backward(cross_entropy(bound.module(x), y))
        assert bound.gradient.shape == (1, bound.layout.parameters)
        views = {e.name: e.view(bound.gradient[0]) for e in bound.layout.entries if e.segment != "statistics"}
        for name, parameter in plain.named_parameters():
            assert parameter.grad is not None
            # A bias before a normalisation has no gradient but rounding errors.
            assert (views[name] - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-6, name
    for name, tensor in state(plain).items():
        torch.testing.assert_close(bound.layout.views(bound.weights[0])[name], tensor, rtol=1e-5, atol=1e-6)


def test_loading_restores_counters(batch: tuple[Tensor, Tensor]) -> None:
    """Oracle: BatchNorm's counter of batches, which is no part of the vector, starts afresh with every client."""
    bound = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU)
    start = bound.weights[0].clone()
    counter = bound.module.get_buffer("extractor.1.num_batches_tracked")
    bound.module(batch[0])
    bound.module(batch[0])
    assert counter.item() == 2
    assert not torch.equal(bound.weights[0], start), "statistics are part of the vector"
    bound.load(start)
    assert counter.item() == 0
    assert torch.equal(bound.weights[0], start)


def test_shared_parameters_stay_shared() -> None:
    """Oracle: autograd on a copy: both uses count; constants and counters stay out of the vector."""
    plain = Tied()
    bound = FlatModel(copy.deepcopy(plain), CPU)
    assert bound.layout.size == 16
    x = torch.randn(5, 4)
    for module in (plain, bound.module):
        assert torch.equal(module.get_buffer("shift"), torch.arange(4.0))
    plain(x).square().sum().backward()
    bound.backward(bound.module(x).square().sum())
    assert plain.down.weight.grad is not None
    torch.testing.assert_close(bound.gradient.view(4, 4), plain.down.weight.grad)
    bound.weights.zero_()
    assert not bound.module(x).any()
    assert bound.module.get_buffer("calls").item() == 2
    bound.load(torch.ones(16))
    assert bound.module.get_buffer("calls").item() == 0
    torch.testing.assert_close(bound.module(x), 4 * (x + torch.arange(4.0)).sum(1, keepdim=True).relu().expand(5, 4))


@pytest.mark.parametrize(
    ("model", "normalises"), [(LeNet(), True), (LeNet(norm="group"), False), (LeNet(norm="none"), False)]
)
def test_who_normalises_batches(model: Model, normalises: bool) -> None:
    """Oracle: batch normalisation does, group normalisation and none do not."""
    assert FlatModel(network(model, (1, 8, 8), 10), CPU).normalises_batches is normalises


# What a loss sees


@pytest.fixture
def bound() -> FlatModel:
    return FlatModel(network(LeNet(), (1, 8, 8), 10), CPU)


def test_net_runs_the_weights_being_trained(bound: FlatModel, batch: tuple[Tensor, Tensor]) -> None:
    """Oracle: the module; features and classify are its two parts."""
    net, x = Net(bound), batch[0]
    logits = net(x)
    assert net.features(x).shape == (6, 32, 2, 2)
    torch.testing.assert_close(net.classify(net.features(x)), logits)
    torch.testing.assert_close(logits, bound.module(x))
    bound.weights[:, bound.layout.segments["head"]] = 0
    assert torch.equal(net(x), torch.zeros(6, 10))


def test_net_at_other_weights(bound: FlatModel, batch: tuple[Tensor, Tensor]) -> None:
    """Oracle: another network in evaluation mode that holds those weights."""
    x = batch[0]
    other = network(LeNet(), (1, 8, 8), 10, number=1)
    other(x)  # so that its running statistics are not the initial ones
    other.eval()
    weights = FlatModel(copy.deepcopy(other), CPU).weights[0].clone()
    net = Net(bound).at(weights)
    torch.testing.assert_close(net(x), other(x), rtol=1e-4, atol=1e-5)
    features = other.get_submodule("extractor")(x)
    torch.testing.assert_close(net.features(x), features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.classify(features), other(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.at(bound.weights[0].clone())(x), Net(bound).at(bound.weights[0].clone())(x))


def test_net_at_other_weights_leaves_the_trained_ones_alone(bound: FlatModel, batch: tuple[Tensor, Tensor]) -> None:
    """Oracle: bits before and after: no gradient flows, no statistics move, and training mode stays on."""
    x, y = batch
    before, fixed = bound.weights.clone(), torch.randn(bound.layout.size).abs() * 0.05
    kept = fixed.clone()
    bound.module.train()
    logits = Net(bound).at(fixed)(x)
    assert not logits.requires_grad
    assert torch.equal(bound.weights, before)
    assert torch.equal(fixed, kept)
    assert bound.module.training
    assert bound.module.get_buffer("extractor.1.num_batches_tracked").item() == 0

    bound.backward(cross_entropy(Net(bound)(x), y))
    alone = bound.gradient.clone()
    bound.load(before[0])
    bound.backward(cross_entropy(Net(bound)(x), y) + Net(bound).at(fixed)(x).square().sum())
    assert torch.equal(bound.gradient, alone), "a constant beside the loss"


def test_gradient_flows_through_other_weights_into_the_features(
    bound: FlatModel, batch: tuple[Tensor, Tensor]
) -> None:
    """Oracle: autograd on copies: a fixed classifier after the trained extractor moves the extractor alone."""
    x, y = batch
    plain, fixed = copy.deepcopy(bound.module), copy.deepcopy(bound.module)
    weights = bound.weights[0].clone()
    cross_entropy(fixed.get_submodule("classifier")(plain.get_submodule("extractor")(x)), y).backward()
    net = Net(bound)
    bound.backward(cross_entropy(net.at(weights).classify(net.features(x)), y))
    assert not bound.gradient[:, bound.layout.segments["head"]].any()
    views = {e.name: e.view(bound.gradient[0]) for e in bound.layout.entries if e.segment != "statistics"}
    for name, parameter in plain.get_submodule("extractor").named_parameters():
        torch.testing.assert_close(views[f"extractor.{name}"], parameter.grad, rtol=1e-4, atol=1e-5)


def test_strided_convolutions_of_few_channels_do_not_write_beyond_their_gradients() -> None:
    """In a process of its own, which the C library ends where memory between allocations was written to."""
    program = """if True:
        import torch
        from torch import nn
        from fedmpi.training.flat import FlatModel
        for channels in (1, 2, 3):
            network = nn.Sequential(nn.Conv2d(channels, 8, 1, stride=2), nn.Flatten(), nn.Linear(128, 3))
            model = FlatModel(network, torch.device("cpu"))
            x = torch.rand(10, 8, 8, channels).movedim(-1, 1)
            for _ in range(100):
                model.backward(model.module(x).square().sum(1))
                others = [torch.empty(size) for size in (3, 17, 100, 1000)]
    """
    succeed(mpirun(0, "-c", program))
