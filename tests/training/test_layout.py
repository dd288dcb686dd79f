"""Where tensors lie in the flat vector, and the canonical order of files."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from fedmpi.models import MLP, CifarCNN, LeNet, Model, ResNet18
from fedmpi.training.layout import SEGMENTS, Layout, aligned_rows
from tests.support.experiments import CPU, network, state

MODELS = [
    (LeNet(), (1, 8, 8)),
    (LeNet(norm="group"), (1, 8, 8)),
    (CifarCNN(), (3, 8, 8)),
    (ResNet18(), (3, 8, 8)),
    (MLP(hidden=(7, 5), norm="batch"), (13,)),
]


class Awkward(nn.Module):
    """Whatever a user's network may hold: tied, frozen and scalar parameters, odd buffers, layers out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(5)
        self.second = nn.Linear(5, 5, bias=False)
        self.tied = nn.Linear(5, 5)
        self.tied.weight = self.second.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.table: Tensor
        self.register_buffer("table", torch.randn(3, 3), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scale * self.tied(self.second(self.norm(self.first(x @ self.table))))
        return y


def names(layout: Layout, segment: str) -> list[str]:
    return [entry.name for entry in layout.entries if entry.segment == segment]


def flattened(layout: Layout, tensors: dict[str, Tensor]) -> Tensor:
    """Every tensor row-major, in the layout's order."""
    return torch.cat([tensors[entry.name].reshape(-1) for entry in layout.entries])


def flat(layout: Layout, tensors: dict[str, Tensor]) -> Tensor:
    """The vector whose views are these tensors."""
    vector = torch.empty(layout.size)
    for name, view in layout.views(vector).items():
        view.copy_(tensors[name])
    return vector


@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_segments_follow_one_another(model: Model, shape: tuple[int, ...]) -> None:
    """Oracle: head, body, norm, statistics without gaps; every tensor of the state_dict once; trained ones first."""
    module = network(model, shape, 10)
    layout = Layout.of(module)
    assert tuple(layout.segments) == SEGMENTS == ("head", "body", "norm", "statistics")
    assert [entry.offset for entry in layout.entries] == [
        0,
        *itertools.accumulate(entry.size for entry in layout.entries),
    ][:-1]
    order = [SEGMENTS.index(entry.segment) for entry in layout.entries]
    assert order == sorted(order)
    for segment in SEGMENTS:
        inside = [entry for entry in layout.entries if entry.segment == segment]
        assert sum(entry.size for entry in inside) == layout.segments[segment].stop - layout.segments[segment].start
        assert all(layout.segments[segment].start <= entry.offset for entry in inside)
    assert {entry.name: entry.shape for entry in layout.entries} == {
        k: tuple(v.shape) for k, v in state(module).items()
    }
    assert layout.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert layout.size == sum(tensor.numel() for tensor in state(module).values())


def test_lenet() -> None:
    """Oracle: the network's tensors, sorted by hand."""
    layout = Layout.of(network(LeNet(), (1, 28, 28), 10))
    assert names(layout, "head") == ["classifier.3.weight", "classifier.3.bias"]
    assert names(layout, "body") == [
        *("extractor.0.weight", "extractor.0.bias", "extractor.4.weight", "extractor.4.bias"),
        *("classifier.1.weight", "classifier.1.bias"),
    ]
    assert names(layout, "norm") == [f"extractor.{i}.{kind}" for i in (1, 5) for kind in ("weight", "bias")]
    assert names(layout, "statistics") == [
        f"extractor.{i}.running_{kind}" for i in (1, 5) for kind in ("mean", "var")
    ]
    assert (layout.parameters, layout.size) == (108_094, 108_190)
    assert layout.segments["head"] == slice(0, 610)
    assert layout.segments["statistics"] == slice(108_094, 108_190)


def test_normalisation_is_known_by_type() -> None:
    """Oracle: a ResNet-18 has 4,800 normalised channels, those of its three shortcuts included."""
    module = network(ResNet18(), (3, 8, 8), 10)
    layout = Layout.of(module)
    sizes = {name: part.stop - part.start for name, part in layout.segments.items()}
    assert sizes == {"head": 5130, "body": 11_173_962 - 5130 - 9600, "norm": 9600, "statistics": 9600}
    shortcuts = [name for name in names(layout, "norm") if "shortcut" in name]
    assert len(shortcuts) == 6
    owners = {name.rpartition(".")[0] for name in names(layout, "norm") + names(layout, "statistics")}
    assert len(owners) == 20
    assert all(isinstance(module.get_submodule(owner), nn.BatchNorm2d) for owner in owners)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_normalisation_without_statistics(norm: str) -> None:
    """Oracle: two times 16 and 32 channels are scaled and shifted; nothing is kept of a batch."""
    layout = Layout.of(network(LeNet(norm=norm), (1, 8, 8), 10))  # type: ignore[arg-type]  # parametrised
    assert layout.segments["norm"].stop - layout.segments["norm"].start == 96
    assert names(layout, "statistics") == []
    assert layout.size == layout.parameters


def test_what_else_a_network_may_hold() -> None:
    """Oracle: a tied weight counts once; constants (not persistent) and whole numbers are not in the vector."""
    module = Awkward()
    layout = Layout.of(module)
    assert names(layout, "head") == [], "its weight belongs to the layer that has it first"
    assert sorted(names(layout, "body")) == ["first.bias", "first.weight", "scale", "second.weight", "tied.bias"]
    assert names(layout, "norm") == ["norm.weight", "norm.bias"]
    assert names(layout, "statistics") == ["average"]
    assert layout.parameters == 5 + (5 + 15 + 1 + 25) + 10
    assert layout.size == layout.parameters + 4


def test_network_without_fully_connected_layer() -> None:
    """Oracle: then there is no head."""
    layout = Layout.of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert layout.segments["head"] == slice(0, 0)
    assert layout.segments["body"] == slice(0, 3 * 4 * 9 + 4)


@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_canonical_order(model: Model, shape: tuple[int, ...]) -> None:
    """Oracle: the state_dict's tensors, each row-major, one after another; offsets and shapes say where."""
    module = network(model, shape, 10)
    layout = Layout.of(module)
    vector = flat(layout, state(module))
    canonical = layout.canonical(vector)
    assert torch.equal(canonical, flattened(layout, state(module)))
    for entry in layout.entries:
        part = canonical[entry.offset : entry.offset + entry.size]
        assert torch.equal(part.reshape(entry.shape), state(module)[entry.name])
    convolutional = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    assert torch.equal(canonical, vector) == (not convolutional)


@pytest.mark.parametrize(("model", "shape"), MODELS)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_canonical_order_round_trip(model: Model, shape: tuple[int, ...], lead: tuple[int, ...]) -> None:
    """Oracle: the vector itself, both ways, and row by row for several; the argument stays as it was."""
    layout = Layout.of(network(model, shape, 10))
    vector = torch.randn(*lead, layout.size)
    before = vector.clone()
    assert torch.equal(layout.from_canonical(layout.canonical(vector)), vector)
    assert torch.equal(layout.canonical(layout.from_canonical(vector)), vector)
    assert torch.equal(vector, before)
    if lead:
        assert torch.equal(layout.canonical(vector), torch.stack([layout.canonical(row) for row in vector]))
        assert torch.equal(layout.from_canonical(vector), torch.stack([layout.from_canonical(row) for row in vector]))


@pytest.mark.parametrize("lead", [(), (3,)])
def test_views_are_the_vector(lead: tuple[int, ...]) -> None:
    """Oracle: a number written by one way and read by the other."""
    layout = Layout.of(network(LeNet(), (1, 8, 8), 10))
    vector = torch.zeros(*lead, layout.size)
    for entry in layout.entries:
        view = layout.views(vector)[entry.name]
        assert view.shape == (*lead, *entry.shape)
        view.fill_(entry.offset + 1)
    assert (vector > 0).all(), "every element belongs to a tensor"
    vector.neg_()
    assert all((view < 0).all() for view in layout.views(vector).values())


def test_convolution_weights_are_channels_last() -> None:
    """Oracle: PyTorch's own word on the memory format."""
    layout = Layout.of(network(ResNet18(), (3, 8, 8), 10))
    views = layout.views(torch.zeros(layout.size))
    convolutions = [view for view in views.values() if view.dim() == 4]
    assert len(convolutions) == 20
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in convolutions)
    assert all(view.is_contiguous() for view in views.values() if view.dim() != 4)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1001])
def test_rows_are_aligned(size: int) -> None:
    """Oracle: the addresses; rows are contiguous and do not overlap."""
    rows = aligned_rows(5, size, CPU)
    assert rows.shape == (5, size)
    assert rows.dtype == torch.float32
    assert all(row.data_ptr() % 64 == 0 and row.is_contiguous() for row in rows)
    for number, row in enumerate(rows):
        row.fill_(number)
    assert rows.sum().item() == 10 * size
