"""Which way clients are trained, and PyTorch's recurrent layers, which go one way only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, CifarCNN, LogisticRegression, Model
from fedmpi.mpi.devices import computes_bf16
from fedmpi.results.summary import summarize
from fedmpi.tasks import Classification
from fedmpi.training.choice import choose, rule
from fedmpi.training.flat import FlatModel
from fedmpi.training.samples import Samples
from fedmpi.training.settings import Choice, LocalTraining
from fedmpi.training.trainer import LocalWork
from tests.jobs.methods import Recurrent
from tests.support.experiments import CPU, Alone, Client, Reader, network, normalised, plain_training, read, run

SHAPE = (1, 8, 8)
IN_BF16 = pytest.mark.skipif(not computes_bf16(), reason="this processor has no code for bfloat16")


@pytest.mark.parametrize(
    ("model", "cohort", "settings", "expected"),
    [
        (LogisticRegression(), 100, {}, 256),
        (LogisticRegression(), 100, {"precision": "bf16"}, 100),
        (LogisticRegression(), 1000, {"precision": "bf16"}, 128),
        (LogisticRegression(), 10, {}, 1),
        (LogisticRegression(), 10, {"vectorize": 7}, 7),
        (LogisticRegression(), 100, {"vectorize": "off"}, 1),
        (MLP(hidden=(2000,)), 100, {}, 1),
        (CifarCNN(), 100, {}, 1),
        (Reader(hidden=8), 100, {}, 256),
        (Reader(hidden=128), 100, {}, 1),
        (Reader(hidden=128), 100, {"vectorize": 7}, 7),
        (LogisticRegression(), 1, {}, 1),
    ],
)
def test_how_many_at_once(model: Model, cohort: int, settings: dict[str, Any], expected: int) -> None:
    """Oracle: the rule as --help tells it."""
    flat = FlatModel(network(model, (40,) if model.vocabulary else SHAPE, 10), CPU)
    assert rule(flat, LocalTraining(**settings), cohort).at_once == expected


def test_on_a_gpu() -> None:
    """Oracle: the rule as --help tells it; a round of one client has nobody to go beside."""
    flat = FlatModel(network(CifarCNN(), SHAPE, 10), CPU)
    flat.device = torch.device("cuda")
    assert [rule(flat, LocalTraining(), cohort).at_once for cohort in (1, 2, 100)] == [1, 32, 32]


@pytest.mark.parametrize("vectorize", ["auto", 2])
def test_ranks_agree_though_only_one_has_something_against_it(vectorize: Any) -> None:
    """Oracle: the other rank's reason. This one would train side by side."""

    class Two(Alone):
        def gather_text(self, text: str) -> list[str]:
            return [text, "it is odd"]

    digits = read(Digits())
    samples = Samples(digits.train_x, digits.train_y, None, None, CPU)
    settings = LocalTraining(vectorize=vectorize)
    flat = FlatModel(network(LogisticRegression(), SHAPE, 10), CPU)
    task = LocalWork(Classification(), flat, samples, [np.arange(10)] * 100, lambda client: None, settings, 0)
    assert choose(Alone(), task, 100, 5, FedAvg()).at_once > 1
    if vectorize == "auto":
        assert choose(Two(), task, 100, 5, FedAvg()) == Choice(1, "it is odd")
        return
    with pytest.raises(BadInput, match="must be auto or off, because it is odd") as refused:
        choose(Two(), task, 100, 5, FedAvg())
    assert refused.value.agreed


def test_what_cannot_run_side_by_side_falls_back_or_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the lines; one by one with auto, with the bits of off, and nothing at all where the user insists."""
    cohort: dict[str, Any] = {"clients": 32, "cohort": 32, "model": Recurrent()}
    reason = (
        "the network cannot run for several clients in one batched call: PyTorch cannot run aten::lstm for several"
    )
    with pytest.raises(BadInput) as error:
        run(tmp_path / "four.h5", **cohort, local=LocalTraining(vectorize=4))
    assert str(error.value).startswith(f"--local.vectorize = 4: must be auto or off, because {reason}")
    assert not list(tmp_path.iterdir())
    auto = run(tmp_path / "auto.h5", **cohort, local=LocalTraining(epochs=1))
    assert f"one client after another on each rank ({reason}" in capsys.readouterr().out
    assert auto.environment["clients_at_once"] == 1
    assert auto.environment["clients_at_once_reason"].startswith(reason)
    assert "one client after another on each rank (the network cannot run" in " ".join(summarize(auto).split())
    off = run(tmp_path / "off.h5", **cohort, local=LocalTraining(epochs=1, vectorize="off"))
    assert auto.weights_sha256 == off.weights_sha256


def test_the_choice_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the start line, the attributes and the summary of a run whose clients are trained side by side."""
    one = run(tmp_path / "many.h5", clients=32, cohort=32)
    reason = "the network is small and runs on a CPU"
    line = f"up to 256 clients in one batched call on each rank ({reason})"
    assert f", {line}\n" in capsys.readouterr().out
    assert (one.environment["clients_at_once"], one.environment["clients_at_once_reason"]) == (256, reason)
    assert line in " ".join(summarize(one).split())


@pytest.mark.skipif(computes_bf16(), reason="this processor has code for bfloat16")
def test_recurrent_layers_in_bfloat16_are_refused_where_there_is_no_code(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^--local\.precision = bf16: must be float32: PyTorch has no bfloat16 code"):
        run(tmp_path / "run.h5", model=Recurrent(), local=LocalTraining(precision="bf16"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=IN_BF16)])
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
