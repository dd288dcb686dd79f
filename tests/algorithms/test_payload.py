"""What methods say that they send is what is sent."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmpi.algorithms import Algorithm
from fedmpi.components import subclasses
from fedmpi.models import LeNet
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.small import CPU, Cut, network, run, shortened

METHODS = [
    cls
    for cls in subclasses(Algorithm)
    if cls.__module__.startswith("fedmpi.") and not (inspect.isabstract(cls) or cls.__name__.startswith("_"))
]


@pytest.mark.parametrize("method", METHODS)
def test_the_payload_is_what_is_measured(method: type[Algorithm], tmp_path: Path) -> None:
    """Oracle: the bytes of vectors that the federation counts, in every round, for 7 clients with BatchNorm."""
    algorithm = shortened(method)
    settings: dict[str, Any] = {"partition": Cut(20, 30, 20, 30, 20, 30, 20), "clients": 7, "evaluate_every": 0}
    made = run(tmp_path / "run.h5", algorithm, model=LeNet(), rounds=2, local=LocalTraining(epochs=1), **settings)
    trained = algorithm.extend(network(LeNet(), (1, 8, 8), 10), torch.zeros(2, 1, 8, 8))
    layout = FlatModel(trained, CPU).layout
    down, up = (sum(4 * layout.extent(columns)[0] for columns in vectors) for vectors in algorithm.payload(layout))
    taking_part = len(made.clients["client"]) // 2  # one in Centralized
    assert made.rounds["bytes_down"].tolist() == [taking_part * down] * 2
    assert made.rounds["bytes_up"].tolist() == [taking_part * up] * 2
