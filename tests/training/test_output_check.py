"""What a network gives is looked at once: logits [B, classes] pass, all else is one line that says what to change."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.feature_fusion import FeatureFusion
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Digits, Sentiment140
from fedmpi.errors import BadInput
from fedmpi.experiment import assembly
from fedmpi.models import MLP, CifarCNN, LeNet, Projected
from fedmpi.tasks import Classification
from fedmpi.training.flat import FlatModel
from fedmpi.training.output_check import check_outputs
from fedmpi.training.samples import Samples
from tests.jobs import unlike
from tests.support.experiments import CPU, Reader, network, read, run, texts

WANTED = "must be logits, floating-point [2, 10]"
#: kind -> what is given, and what is to be changed.
ODD = {
    "tuple": rf"gives a tuple \(float32 \[2, 10\], float32 \[2, 2\]\) for 2 samples: {re.escape(WANTED)}; let forward"
    r" return output\[0\]",
    "second": r"gives a list .*; let forward return output\[1\]",
    "twice": r"gives a list .*; let forward return output\[0\]",
    "dict": r"gives a dict \(loss: float32 \[\], logits: float32 \[2, 10\]\) .*; let forward return"
    r" output\[\"logits\"\]",
    "object": r"gives a Output for 2 samples: .*; let forward return output\.logits",
    "text": rf"gives a str for 2 samples: {re.escape(WANTED)}$",
    "nothing": rf"gives nothing for 2 samples: {re.escape(WANTED)}$",
    "map": r"gives float32 \[2, 10, 1, 1\] for 2 samples: .*; flatten\(1\) it",
    "flat": r"gives float32 \[20\] .*; the first dimension must be the samples",
    "transposed": r"gives float32 \[10, 2\] .*; the first dimension must be the samples",
    "squeezed": r"gives float32 \[10\] for 1 samples: .*; the first dimension must be the samples",
    "wide": r"gives float32 \[2, 1000\] .*; the last layer must have an output for each of 10 classes",
    "narrow": r"gives float32 \[2, 9\] .*; the last layer must have an output for each of 10 classes",
    "single": r"gives float32 \[2, 1\] .*; the last layer must have an output for each of 10 classes",
    "integer": r"gives int64 \[2, 10\] .*, not the classes themselves",
    "nan": r"gives NaN for finite inputs of 2 samples",
    "detached": r"gives an output without gradient in training mode",
    "training only": r"gives int64 \[3\] for 3 samples: must be logits, floating-point \[3, 10\]",
    "fails": r"forward fails on inputs float32 \[2, 1, 8, 8\] in training mode: RuntimeError: shape '\[10, -1\]' is"
    r" invalid .* \(.*tests/jobs/unlike\.py, line \d+, in reshaped\)$",
    "fails in evaluation": r"forward fails on inputs float32 \[3, 1, 8, 8\] in evaluation mode: RuntimeError: ",
    "fails below": r"forward fails on inputs .*: JSONDecodeError: .* \(.*/unlike\.py, line \d+, in forward\)$",
}


def check(
    model: unlike.Model,
    algorithm: Algorithm | None = None,
    dataset: Digits | None = None,
    shape: tuple[int, ...] = (),
) -> None:
    data = dataset or Digits()
    arrays = read(data)
    made = network(model, arrays.train_x.shape[1:], data.classes)
    method = algorithm or FedAvg()
    extended = method.extend(made, torch.ones(2, *arrays.train_x.shape[1:]))
    samples = Samples(arrays.train_x, arrays.train_y, data.mean, data.std, CPU)
    task, names = Classification(), ("mine.Net", "mine.Method")
    check_outputs(FlatModel(extended, CPU), samples, task, data.classes, method, *names)


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_logits_is_refused(kind: str) -> None:
    with pytest.raises(BadInput, match=rf"^--model = mine\.Net: {ODD[kind]}") as refused:
        check(unlike.Odd(kind))
    assert refused.value.option == "--model"


def run_of(forward: Callable[[Any, Tensor], Tensor]) -> unlike.Model:
    """A model that is logistic regression of what `forward` (network, [B, 64] inputs) gives."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.calls, self.seen = nn.Linear(64, 10), 0, torch.zeros(64)
            self.register_buffer("mean", torch.zeros(64))
            self.own = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(forward(self, x.flatten(1)))
            return logits

    class Made(unlike.Model):
        def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
            return Network()

    return Made()


def counting(network: Any, x: Tensor) -> Tensor:
    network.calls += 1
    return x / network.calls


def remembering(network: Any, x: Tensor) -> Tensor:
    network.seen = 0.9 * network.seen + 0.1 * x.detach().mean(0)
    return x - network.seen


def drawing(network: Any, x: Tensor) -> Tensor:
    return x + torch.rand(x.shape, generator=network.own)


def caching(network: Any, x: Tensor) -> Tensor:
    network.seen = x
    network.calls += 1
    return x + torch.rand(x.shape) + random.random()


def moving(network: Any, x: Tensor) -> Tensor:
    """Moves the mean in evaluation mode."""
    if not network.training:
        network.mean += 0.1 * x.detach().mean(0)
    return x - network.mean


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (
            counting,
            "gives other outputs .* the second time: forward changes its attribute calls, which",
        ),
        (
            remembering,
            "gives other outputs .* the second time: forward changes its attribute seen, which",
        ),
        (drawing, "gives other outputs .* the second time: .* must come from the global generators$"),
        (moving, "writes to buffer mean in evaluation mode: results would depend on earlier samples$"),
    ],
)
def test_what_a_network_remembers_elsewhere_is_refused(forward: Callable[[Any, Tensor], Tensor], said: str) -> None:
    """It would pass from client to client, so that results depended on the number of ranks."""
    with pytest.raises(BadInput, match=said):
        check(run_of(forward))


def test_what_a_network_only_writes_is_allowed() -> None:
    """So are the global generators."""
    check(run_of(caching))


@pytest.mark.parametrize("kind", ["column", "single"])
def test_one_number_for_two_classes(kind: str) -> None:
    with pytest.raises(BadInput, match=r"; two classes need two logits each$"):
        check(unlike.Odd(kind), dataset=unlike.TwoClasses())


def test_two_classes_the_wrong_way_round() -> None:
    """Oracle: of two samples the shape alone would not tell."""
    with pytest.raises(BadInput, match=r"gives float32 \[2, 3\] for 3 samples"):
        check(unlike.Odd("transposed"), dataset=unlike.TwoClasses())


def test_a_methods_own_logits() -> None:
    with pytest.raises(BadInput, match=r"^--algorithm = mine\.Method: predict gives float32 \[2, 3\] for 2 samples"):
        check(unlike.Odd("right"), unlike.Predicts())


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (LeNet(), FedAvg()),
        (LeNet(), FeatureFusion()),
        (LeNet(), FeatureFusion(operator="conv")),
        (Projected(over=MLP(norm="batch")), FedAvg()),
        (unlike.Odd("normalised"), FedAvg()),
        (unlike.Odd("normalised by deviation"), FedAvg()),
    ],
)
def test_logits_pass(model: unlike.Model, method: Algorithm) -> None:
    check(model, method)


def test_no_variance_in_one_sample_is_no_fault() -> None:
    """Oracle: batch normalisation without running statistics cannot take a sample alone; blocks seldom are one."""

    class Unaware(unlike.Odd):
        def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
            return torch.nn.Sequential(
                super().build(shape, classes), torch.nn.BatchNorm1d(10, track_running_stats=False)
            )

    check(Unaware("right"))


def test_texts_pass() -> None:
    tokens = texts(np.random.default_rng(0), 4, 6, Reader.vocabulary)
    samples = Samples(tokens, np.arange(4) % 2, None, None, CPU)
    made = FlatModel(network(Reader(embedding=3, hidden=4), (6,), Sentiment140.classes), CPU)
    check_outputs(made, samples, Classification(), 2, FedAvg(), "Reader", "FedAvg")


def test_looking_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the same run, of a network with running statistics and dropout, without the look."""
    looked = run(tmp_path / "looked.h5", model=CifarCNN())
    monkeypatch.setattr(assembly, "check_outputs", lambda *arguments: None)
    without = run(tmp_path / "without.h5", model=CifarCNN())
    assert looked.weights_sha256 == without.weights_sha256
    assert looked.initial == without.initial
