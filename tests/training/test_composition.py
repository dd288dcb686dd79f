"""Networks that read a parameter twice, run their layers in an order of their own, or are built only once."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from fedmpi.algorithms import (
    CCVR,
    MOON,
    Algorithm,
    FeatureFusion,
    FedAvg,
    FedDBE,
    FedGen,
    FedPer,
    FedProto,
    FedRoD,
    KNNPer,
)
from fedmpi.errors import BadInput
from fedmpi.models import Backbone, Model
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.tasks import Classification
from fedmpi.training.layout import Layout
from fedmpi.training.plain import LARGE
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import Cut, network, run
from tests.training.test_kinds import SHAPE, is_a_bare_loop, made_by


class Twice(nn.Module):
    """A second branch takes the last layer for a constant, as auxiliary losses do."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        logits: Tensor = self.head(features) + linear(features, self.head.weight.data)
        return logits


class Recomputed(nn.Module):
    """A recurrent layer that is computed again, row by row, in the backward pass."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, outputs)

    def one(self, state: Tensor, row: Tensor) -> Tensor:
        return torch.tanh(self.again(state) + self.first(row))

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), self.head.in_features).requires_grad_()
        for row in x[:, 0].unbind(1):
            state = checkpoint(self.one, state, row, use_reentrant=True)
        logits: Tensor = self.head(state)
        return logits


@with_options
class Made(Model):
    """One of the two.

    Args:
        kind: its name.
        width: of its layers.
    """

    kind: str = "twice"
    width: PositiveInt = 16

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return {"twice": Twice, "recomputed": Recomputed}[self.kind](self.width, outputs)


@pytest.mark.parametrize(("kind", "widths"), [("twice", (16, 1600)), ("recomputed", (16, 400))])
def test_parameters_that_are_read_twice(kind: str, widths: tuple[int, ...], tmp_path: Path) -> None:
    """Oracle: a bare loop, for a small network, and for a large one, which is updated tensor by tensor."""
    sizes = []
    for width in widths:
        made = Made(kind, width)
        is_a_bare_loop(tmp_path / f"{width}.h5", made)
        sizes.append(Layout.of(network(made, SHAPE, 10)).parameters)
    assert sizes[0] < LARGE <= sizes[1]


# The order of layers


class Late(Model):
    """Its classifier is defined before its body, and gives its output as a view."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        class Network(nn.Module):
            calls: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.classifier = nn.Linear(32, outputs)
                self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
                self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
                self.body.eval()

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                logits: Tensor = self.classifier(self.body(x)[:, None])[:, 0]
                return logits

        return Network()


def test_the_head_is_the_layer_that_runs_last(tmp_path: Path) -> None:
    """Oracle: its name; FedPer keeps its 330 numbers. The look at the order leaves no trace."""
    made = Late().make(SHAPE, 10)
    head = [entry.name for entry in Layout.of(made).entries if entry.segment == "head"]
    assert head == ["classifier.weight", "classifier.bias"]
    assert made.get_buffer("calls") == 0
    assert [layer.training for layer in made.children()] == [True, False]
    assert not any(layer._forward_hooks for layer in made.modules())
    assert [entry.segment for entry in Layout.of(copy.deepcopy(made)).entries[:2]] == ["head", "head"]
    whole, sent = (made_by(tmp_path / f"{each}.h5", Late(), each()) for each in (FedAvg, FedPer))
    assert whole.rounds["bytes_up"][0] - sent.rounds["bytes_up"][0] == 4 * 4 * 330


@with_options
class Own(Model):
    """A network of two parts, or a sequence, with a `forward` of its own or a hook on the whole.

    Args:
        kind: which one.
    """

    kind: str = "backbone"

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        class Scaled(Backbone):
            def forward(self, x: Tensor) -> Tensor:
                return 0.1 * super().forward(x)

        class Centred(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                centred: Tensor = super().forward(x - x.mean())
                return centred

        class TwoParts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.extractor, self.classifier = parts

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.classifier(nn.functional.normalize(self.extractor(x)))
                return logits

        parts = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, outputs)
        made = {"backbone": Scaled, "sequence": Centred}.get(self.kind, Backbone)(*parts)
        if self.kind == "hook":
            made.register_forward_hook(lambda layer, inputs, output: 0.1 * output)
        return TwoParts() if self.kind == "names" else made


@pytest.mark.parametrize("kind", ["backbone", "sequence", "hook", "names"])
def test_a_forward_of_ones_own_is_not_taken_apart(kind: str, tmp_path: Path) -> None:
    """The methods that would run the parts one by one refuse it; the others train it as it is (a bare loop)."""
    is_a_bare_loop(tmp_path / "made.h5", Own(kind))
    methods: list[Algorithm] = [MOON(), FeatureFusion(), KNNPer(), FedProto(), FedRoD(), FedDBE(), CCVR()]
    for method in methods:
        with pytest.raises(
            BadInput, match=rf"^--model: {type(method).__name__} needs .* without a forward of its own$"
        ):
            made_by(tmp_path / "refused.h5", Own(kind), method)
    if kind in ("sequence", "names"):
        with pytest.raises(BadInput, match="FedGen needs one that ends in a fully connected layer"):
            made_by(tmp_path / "refused.h5", Own(kind), FedGen())


# Normalisation


def test_normalisation_layers_of_all_kinds() -> None:
    layers = (
        nn.InstanceNorm1d(4, affine=True),
        nn.RMSNorm(4),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.BatchNorm1d(4),
    )
    segments = {entry.name: entry.segment for entry in Layout.of(nn.Sequential(*layers, nn.Linear(4, 2))).entries}
    assert [segments[f"{place}.weight"] for place in range(6)] == ["norm"] * 5 + ["head"]


# Networks that are not built anew


@with_options
class Kept(Model):
    """Gives the same network each time, or copies of it.

    Args:
        copies: whether it gives copies.
    """

    copies: bool = False

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        made = _made_once(outputs)
        return copy.deepcopy(made) if self.copies else made


@cache
def _made_once(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))


def test_a_network_must_be_built_anew(tmp_path: Path) -> None:
    """Otherwise training and evaluation would take its tensors away from each other."""
    assert made_by(tmp_path / "copies.h5", Kept(copies=True)).rounds["test_accuracy"][-1] > 0.2
    with pytest.raises(
        BadInput, match=r"^--model = Kept: parameter 1.weight belongs to an earlier network: build\(\)"
    ):
        made_by(tmp_path / "kept.h5", Kept())


# Weights of samples


@with_options
class Balanced(Classification):
    """Samples count by the inverse frequency of their class.

    Args:
        halvings: the weights' unit is 2 to the power of minus this.
    """

    halvings: int = 0

    def weights(self, y: NDArray) -> NDArray[np.float32]:
        return (2.0**-self.halvings / np.bincount(y, minlength=10)[y]).astype(np.float32)


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_the_unit_of_weights_does_not_matter(vectorize: int | str, tmp_path: Path) -> None:
    """Oracle: the run with weights that are larger by a power of two, bit for bit."""
    local = LocalTraining(epochs=2, batch_size=5, vectorize=vectorize)  # type: ignore[arg-type]
    made = [
        run(tmp_path / f"{halvings}.h5", task=Balanced(halvings), partition=Cut(20, 30, 20, 30), local=local)
        for halvings in (0, 10, -10)
    ]
    assert len({one.weights_sha256 for one in made}) == 1
    assert len({float(one.rounds["train_loss"][-1]) for one in made}) == 1
    assert made[0].rounds["train_loss"][-1] > 0.1
