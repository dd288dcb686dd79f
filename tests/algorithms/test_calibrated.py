"""FedLC, BalancedSoftmax and FedRS: FedAvg where they agree, probabilities by hand, and plain PyTorch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedmpi.algorithms.calibrated import BalancedSoftmax, Calibrated, FedLC, FedRS
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import IID, ClassesPerClient, Digits, Dirichlet
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import LeNet
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE, Few
from tests.support.experiments import CPU, Cut, Spy, network, normalised, plain_training, run
from tests.training.test_sidebyside import MODELS, Both, compare, double

__all__ = ["double"]  # a fixture

ALL = [FedLC(0.7), BalancedSoftmax(), FedRS(), FedRS(0.3, "frequency")]
NAMES = ["FedLC", "BalancedSoftmax", "FedRS missing", "FedRS frequency"]


def terms(method: Calibrated, counts: NDArray[np.float64] | list[list[int]]) -> Tensor:
    """[K, C] float64"""
    with np.errstate(divide="ignore"):
        return torch.from_numpy(method.terms(np.array(counts, dtype=np.float64)))


def losses(method: Calibrated, logits: Tensor, labels: list[int], counts: list[int]) -> Tensor:
    """[B], of logits [B, C] that the network gives."""
    batch: Any = SimpleNamespace(x=logits, y=torch.tensor(labels))
    net: Any = lambda x: x  # noqa: E731
    return method.loss(net, batch, torch.empty(0), {"terms": terms(method, [counts])[0]})


# Limits


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("method", [FedLC(0.0), FedRS(1.0), FedRS(1.0, "frequency")])
def test_without_correction_it_is_fedavg(method: Calibrated, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, also where clients lack classes; and with a correction something else."""
    local = LocalTraining(epochs=2, momentum=0.9, weight_decay=1e-3, clip_norm=5.0, lr=0.02, vectorize=vectorize)
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(200), "partition": Dirichlet(0.1), "local": local}
    made, plain, some = (
        run(tmp_path / f"{number}.h5", algorithm, rounds=2, **settings)
        for number, algorithm in enumerate((method, FedAvg(), type(method)()))
    )
    assert made.weights_sha256 == plain.weights_sha256 != some.weights_sha256
    for column in ("train_loss", "test_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    assert some.rounds["bytes_up"].tolist() == plain.rounds["bytes_up"].tolist()


@pytest.mark.parametrize("scale", ["missing", "frequency"])
def test_fedrs_with_every_class(scale: Literal["missing", "frequency"], tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, for no class is missing; but their frequencies differ."""
    settings: dict[str, Any] = {"partition": IID(), "rounds": 2}
    made, plain = (run(tmp_path / f"{n}.h5", one, **settings) for n, one in enumerate((FedRS(0.5, scale), FedAvg())))
    assert plain.partition["label_counts"].min() > 0
    assert (made.weights_sha256 == plain.weights_sha256) == (scale == "missing")


@pytest.mark.parametrize("method", [FedLC(0.7), BalancedSoftmax()])
def test_classes_that_are_equally_frequent(method: Calibrated) -> None:
    """Oracle: the cross entropy and its gradient, which do not change with what is common to all logits."""
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 3, 1, 1]
    found = []
    for counts in ([9] * 4, [9, 9, 9, 10]):
        z = logits.clone().requires_grad_()
        value = losses(method, z, labels, counts)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        found.append((value.detach(), gradient))
    z = logits.clone().requires_grad_()
    plain = functional.cross_entropy(z, torch.tensor(labels), reduction="none")
    (gradient,) = torch.autograd.grad(plain.sum(), z)
    torch.testing.assert_close(found[0][0], plain.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0][1], gradient, rtol=1e-12, atol=1e-15)
    assert (found[1][1] - gradient).abs().max() > 1e-3


# The correction by hand


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (FedLC(0.0), 1 / 2),
        (FedLC(1.0), 1 / (1 + math.exp(-1 / 2))),
        (FedLC(3.0), 1 / (1 + math.exp(-3 / 2))),
        (BalancedSoftmax(), 16 / 17),
    ],
)
def test_two_classes(method: Calibrated, expected: float) -> None:
    """Oracle: by hand: logits of 0, and 1 and 16 samples, whose fourth roots are 1 and 2."""
    value = losses(method, torch.zeros(1, 2, dtype=torch.float64), [1], [1, 16])
    assert math.exp(-value.item()) == pytest.approx(expected, rel=1e-12)


def test_restricted_softmax() -> None:
    """Oracle: by hand: the factors, and the probability of a present class next to a missing one."""
    counts = [[1, 0, 8], [0, 0, 0]]
    torch.testing.assert_close(terms(FedRS(0.25), counts)[0], torch.tensor([1, 0.25, 1], dtype=torch.float64))
    torch.testing.assert_close(
        terms(FedRS(0.25, "frequency"), counts)[0], torch.tensor([0.25 + 0.75 / 8, 0.25, 1], dtype=torch.float64)
    )
    logits = torch.tensor([[1.0, 4.0, 0.0]], dtype=torch.float64)
    value = losses(FedRS(0.25), logits, [0], counts[0])
    assert math.exp(-value.item()) == pytest.approx(math.e / (2 * math.e + 1), rel=1e-12)


@pytest.mark.parametrize("method", [FedLC(0.7), BalancedSoftmax(), FedRS(), FedRS(0.3, "frequency")], ids=NAMES)
def test_missing_classes(method: Calibrated) -> None:
    """Oracle: the cross entropy over the other classes alone, with no gradient for the missing one; not so FedRS."""
    logits = torch.tensor([[0.3, 2.0, -1.0], [0.0, -5.0, 4.0]], dtype=torch.float64, requires_grad=True)
    value = losses(method, logits, [0, 2], [3, 0, 5])
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    kept = losses(method, logits[:, [0, 2]], [0, 1], [3, 5])
    is_masked = not isinstance(method, FedRS)
    assert torch.allclose(value, kept, rtol=1e-12) == is_masked
    assert bool((gradient[:, 1] == 0).all()) == is_masked


# Runs


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_rows_of_missing_classes(
    method: Calibrated, vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the received rows of the last layer, bit for bit, after local training; those of FedRS move."""
    spy = Spy(monkeypatch)
    local = LocalTraining(epochs=1, vectorize=vectorize)
    settings: dict[str, Any] = {"partition": ClassesPerClient(3), "clients": 6, "model": LeNet(), "local": local}
    made = run(tmp_path / "run.h5", method, **settings)
    start, missing = spy.measured[0][0].numpy(), made.partition["label_counts"] == 0
    layout = FlatModel(network(LeNet(), SHAPE, 10), CPU).layout
    width = (layout.segments["head"].stop - 10) // 10
    assert missing.any(1).all()
    for client, weights in spy.trained[1].items():
        moved = weights - start
        rows, bias = moved[: 10 * width].reshape(10, width), moved[10 * width : 10 * width + 10]
        assert (rows[~missing[client]] != 0).any(1).all()
        for part in (rows, bias[:, None]):
            assert (part[missing[client]] == 0).all() == (not isinstance(method, FedRS))


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_it_is_plain_training_on_corrected_logits(method: Calibrated, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: plain PyTorch with each client's counts by hand, and the mean weighted by 44, 25 and 13 samples."""
    local = LocalTraining(epochs=2, batch_size=10, lr=0.05, momentum=0.5, vectorize=vectorize)
    sizes = (44, 25, 13)
    made = run(
        tmp_path / "run.h5", method, dataset=Few(82), partition=Cut(*sizes), model=LeNet(), clients=3, local=local
    )
    x, y = normalised(DIGITS.train_x[:82], Digits()), torch.from_numpy(DIGITS.train_y[:82])
    start, mean, first = network(LeNet(), SHAPE, 10), None, 0
    for client, size in enumerate(sizes):
        mine = slice(first, first + size)
        first += size
        by = terms(method, [[int((y[mine] == label).sum()) for label in range(10)]])[0].float()
        module = copy.deepcopy(start)
        is_factor = isinstance(method, FedRS)

        def loss(z: Tensor, labels: Tensor, by: Tensor = by, is_factor: bool = is_factor) -> Tensor:
            return functional.cross_entropy(z * by if is_factor else z + by, labels)

        plain_training(module, x[mine], y[mine], local, client, loss=loss)
        vector = FlatModel(module, CPU).weights[0].double() * (size / 82)
        mean = vector if mean is None else mean + vector
    flat = FlatModel(start, CPU)
    assert mean is not None
    expected, before = (flat.layout.canonical(vector).numpy() for vector in (mean.float(), flat.weights[0]))
    assert np.linalg.norm(made.weights - expected) < 1e-5 * np.linalg.norm(expected - before)


@pytest.mark.parametrize("model", ["mlp", "mlp batch", "lenet batch"])
@pytest.mark.parametrize("method", ALL, ids=NAMES)
@pytest.mark.usefixtures("double")
def test_side_by_side(method: Calibrated, model: str) -> None:
    """Oracle: clients one by one, each with its own counts; 1e-12 of the way. One client has a single sample."""
    both = Both(MODELS[model], weight_decay=0.01)
    labels, shards = both.plain.samples.y.numpy(), both.plain._shards
    counts = np.array([np.bincount(labels[shard], minlength=10) for shard in shards], dtype=np.float64)
    assert (counts == 0).any(1).all()
    compare(both, method, 1e-12, terms=terms(method, counts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("FedLC --algorithm.tau -1", "--algorithm.tau = -1.0: must be at least 0"),
        ("FedRS --algorithm.alpha 1.1", "--algorithm.alpha = 1.1: must be between 0 and 1"),
        ("FedRS --algorithm.scale none", "--algorithm.scale = none: must be one of missing, frequency"),
        (
            "FedLC --dataset tests.support.task_data.Diabetes --partition IID",
            "--algorithm = FedLC: needs samples with classes, which Regression does not have",
        ),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", *arguments.split()])
    assert str(error.value) == message
