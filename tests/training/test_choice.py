"""Which way clients are trained, and PyTorch's recurrent layers, which go one way only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, CifarCNN, LogisticRegression, Model
from fedmpi.training.choice import clients_at_once
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.programs.methods import Recurrent
from tests.small import CPU, Client, Reader, network, normalised, plain_training, read, run

SHAPE = (1, 8, 8)


class Derived(Model):
    """A network whose layer adds nothing to PyTorch's."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        class Ours(nn.GRU):
            pass

        return Ours(shape[-1], classes)


@pytest.mark.parametrize(
    ("model", "cohort", "settings", "expected"),
    [
        (LogisticRegression(), 100, {}, 256),
        (LogisticRegression(), 100, {"precision": "bf16"}, 64),
        (LogisticRegression(), 10, {}, 1),
        (LogisticRegression(), 10, {"vectorize": 7}, 7),
        (LogisticRegression(), 100, {"vectorize": "off"}, 1),
        (MLP(hidden=(2000,)), 100, {}, 1),
        (CifarCNN(), 100, {}, 1),
        (Reader(hidden=8), 100, {}, 256),
        (Reader(hidden=128), 100, {}, 1),
        (Reader(hidden=128), 100, {"vectorize": 7}, 7),
        (Derived(), 100, {}, 1),
        (Recurrent(), 100, {}, 1),
        (Recurrent(), 100, {"vectorize": "off"}, 1),
        (Recurrent(), 100, {"vectorize": 1}, 1),
    ],
)
def test_how_many_at_once(model: Model, cohort: int, settings: dict[str, Any], expected: int) -> None:
    """Oracle: the rule as --help tells it."""
    flat = FlatModel(network(model, (40,) if model.vocabulary else SHAPE, 10), CPU)
    assert clients_at_once(flat, LocalTraining(**settings), cohort) == expected


def test_recurrent_networks_side_by_side_are_refused(tmp_path: Path) -> None:
    """Oracle: the line; vmap has no rule for their forward pass, and would go through clients one by one anyway."""
    with pytest.raises(BadInput) as error:
        run(tmp_path / "run.h5", model=Recurrent(), local=LocalTraining(vectorize=4))
    line = "--local.vectorize = 4: must be auto or off for a network with PyTorch's recurrent layers"
    assert str(error.value) == line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_a_recurrent_network_is_a_plain_loop(precision: Any) -> None:
    """Oracle: torch.optim.SGD on the module, under autocast for bf16; to 1e-5 of the way, and to its rounding."""
    digits = read(Digits())
    x, y = digits.train_x[:40], digits.train_y[:40]
    settings = LocalTraining(epochs=2, batch_size=10, lr=0.5, precision=precision)
    one = Client(network(Recurrent(), SHAPE, 10), x, y, settings, Digits())
    one.train()
    plain = network(Recurrent(), SHAPE, 10)

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return self.network(x).float()

    plain_training(Run(), normalised(x, Digits()), torch.from_numpy(y), settings)
    apart = (one.model.weights - FlatModel(plain, CPU).weights).norm() / one.moved.norm()
    assert one.moved.norm() > 0.1
    assert apart < (1e-5 if precision == "float32" else 1e-2)
