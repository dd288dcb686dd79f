"""What methods say that they send is what is sent, and what they say that they train is what is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.apfl import APFL
from fedmpi.algorithms.centralized import Centralized
from fedmpi.algorithms.clustered import ClusteredOnce
from fedmpi.algorithms.ditto import Ditto
from fedmpi.algorithms.feature_fusion import FeatureFusion
from fedmpi.algorithms.fedala import FedALA
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddbe import FedDBE
from fedmpi.algorithms.feddf import FedDF
from fedmpi.algorithms.fedfomo import FedFomo
from fedmpi.algorithms.fedftg import FedFTG
from fedmpi.algorithms.fedgroup import FedGroup
from fedmpi.algorithms.fedma import FedMA
from fedmpi.algorithms.fedntd import FedNTD
from fedmpi.algorithms.fedpac import FedPAC
from fedmpi.algorithms.fedper import FedRep
from fedmpi.algorithms.fedproto import FedProto
from fedmpi.algorithms.fedsam import FedSAM
from fedmpi.algorithms.fesem import FeSEM
from fedmpi.algorithms.flhc import FLHC
from fedmpi.algorithms.genfl import GenFL
from fedmpi.algorithms.ifca import IFCA
from fedmpi.algorithms.mofedsam import MoFedSAM
from fedmpi.algorithms.moon import MOON
from fedmpi.algorithms.perfedavg import PerFedAvg
from fedmpi.algorithms.pfedme import pFedMe
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.components import subclasses
from fedmpi.models import LeNet
from fedmpi.policies import FixedList, Heterogeneous, Ideal
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import CPU, Cut, network, run, shortened

METHODS = [
    cls
    for cls in subclasses(Algorithm)
    if cls.__module__.startswith("fedmpi.") and not (inspect.isabstract(cls) or cls.__name__.startswith("_"))
    if issubclass(cls, Algorithm) and not cls.is_asynchronous  # these have a schedule in place of cohorts
    if cls.__name__ not in ("FFALoRA", "FedExLoRA")  # which need a network with adapters, see test_lora
]
SIZES = (20, 30, 20, 30, 20, 30, 20)
#: On this clock a step takes a second, and the bytes both ways are those times the bandwidth that are left.
BANDWIDTH = 1e4
SPEEDS: dict[str, float] = {"seconds_per_step": 1.0, "speed_spread": 0.0, "bandwidth_spread": 0.0}
CLOCK = Heterogeneous(**SPEEDS, download=BANDWIDTH, upload=BANDWIDTH)

# MOON and FedNTD run other networks forward in every step, and APFL trains two; the others compute further gradients.
COSTS: dict[type[Algorithm], float] = {
    MOON: 5 / 3,
    FedNTD: 4 / 3,
    APFL: 2.0,
    FedSAM: 2.0,
    MoFedSAM: 2.0,
    PerFedAvg: 2.0,
    pFedMe: 6.0,
}


def two_rounds(path: Path, algorithm: Algorithm, **settings: Any) -> results.Run:
    """7 clients of two and three batches of 10, with BatchNorm."""
    chosen = {"local": LocalTraining(epochs=1), "conditions": CLOCK, **settings}
    shape: dict[str, Any] = {"partition": Cut(*SIZES), "clients": 7, "evaluate_every": 0}
    return run(path, algorithm, model=LeNet(), rounds=2, **shape, **chosen)


def traffic(made: results.Run, step_cost: float = 1.0, forward_passes: int = 0) -> NDArray[np.float64]:
    """What the clock counts of each row of /clients as bytes: all but the steps that the row says were done.

    Args:
        step_cost: of a step.
        forward_passes: a third of the batches of a pass each.
    """
    clients, batches = made.clients, np.ceil(made.clients["samples"] / 10)
    work = step_cost * clients["steps"] + forward_passes * batches / 3
    return np.asarray(BANDWIDTH * (clients["virtual_seconds"] - work))


@pytest.mark.parametrize("method", [method for method in METHODS if method not in (FedFomo, FedDBE)])
def test_payload_and_clock(method: type[Algorithm], tmp_path: Path) -> None:
    """Oracle: the bytes of vectors that the federation counts, in every round, and the steps that were done.

    How much FedFomo's clients receive depends on who takes part; see its own tests.
    """
    algorithm = shortened(method)
    made = two_rounds(tmp_path / "run.h5", algorithm, conditions=Ideal() if method is Centralized else CLOCK)
    trained = algorithm.extend(network(LeNet(), (1, 8, 8), 10), torch.zeros(2, 1, 8, 8))
    layout = FlatModel(trained, CPU).layout
    down, up = (sum(4 * layout.extent(columns)[0] for columns in vectors) for vectors in algorithm.payload(layout))
    taking_part = len(made.clients["client"]) // 2  # one in Centralized
    assert made.rounds["bytes_down"].tolist() == [taking_part * down] * 2
    assert made.rounds["bytes_up"].tolist() == [taking_part * up] * 2
    if method is not Centralized:
        # IFCA, FeatureFusion and FedPAC pass over the samples before, FedProto and FedPAC afterwards.
        passes = {IFCA: 3, FeatureFusion: 1, FedProto: 1, FedPAC: 2}.get(method, 0)
        cost = COSTS.get(method, 1.0)
        np.testing.assert_allclose(traffic(made, cost, passes), down + up, rtol=1e-9, atol=1e-6)
        for round, seconds in enumerate(made.rounds["virtual_seconds"].tolist(), 1):
            assert seconds == made.clients["virtual_seconds"][made.clients["round"] == round].max()


def test_mean_features_are_sent_once(tmp_path: Path) -> None:
    """Oracle: by hand: FedAvg's bytes, 60 features more to all; and from all in the first round, off the clock.

    In the first round the clients also pass over their samples once more.
    """
    made = two_rounds(tmp_path / "run.h5", FedDBE())
    model = 4 * FlatModel(network(LeNet(), (1, 8, 8), 10), CPU).layout.size
    assert made.rounds["bytes_down"].tolist() == [7 * (model + 4 * 60)] * 2
    assert made.rounds["bytes_up"].tolist() == [7 * (model + 4 * 60), 7 * model]
    first = made.clients["round"] == 1
    for rows, passes in ((first, 1), (~first, 0)):
        np.testing.assert_allclose(traffic(made, forward_passes=passes)[rows], 2 * model + 4 * 60, rtol=1e-9)


#: What is trained, by hand, in units of the batches of a pass: in the first round, and in the second.
TRAININGS: dict[str, tuple[Callable[[], Algorithm], tuple[int, int], float, int]] = {
    "fedavg": (FedAvg, (1, 1), 1.0, 0),
    "scaffold": (lambda: SCAFFOLD("I"), (2, 2), 1.0, 0),
    "ditto": (lambda: Ditto(epochs=3), (4, 4), 1.0, 0),
    "fedrep": (lambda: FedRep(5), (6, 6), 1.0, 0),
    "apfl": (APFL, (2, 2), 2.0, 0),
    "apfl with a fixed share": (lambda: APFL(adaptive=False), (1, 1), 2.0, 0),
    "fedala": (lambda: FedALA(first_steps=3), (1, 4), 1.0, 0),
    "fedpac": (lambda: FedPAC(3), (4, 4), 1.0, 2),
    "fedma": (lambda: FedMA(retrain_epochs=2), (7, 7), 1.0, 0),  # three layers before the last
    "fedma at once": (lambda: FedMA(retrain=False, sweeps=1), (1, 1), 1.0, 0),
    "fedgroup": (lambda: FedGroup(2, pretrain_epochs=4), (4, 1), 1.0, 0),
    "flhc": (lambda: FLHC(2, warmup=1), (1, 1), 1.0, 0),
    "fused anew": (lambda: FeatureFusion(cache_mb=0), (1, 1), 4 / 3, 0),
    "ifca": (lambda: IFCA(5), (1, 1), 1.0, 5),
    "moon": (lambda: MOON(mu=0), (1, 1), 1.0, 0),
    "over scaffold": (lambda: FedFTG(SCAFFOLD("I"), iterations=0), (2, 2), 1.0, 0),
    "distilled": (lambda: FedDF(generator_steps=0, student_steps=0), (1, 1), 1.0, 0),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_counts(name: str, tmp_path: Path) -> None:
    """Oracle: by hand; the bytes of the round are what the clock is left with."""
    make, passes, step_cost, forward_passes = TRAININGS[name]
    made = two_rounds(tmp_path / "run.h5", make())
    batches = np.ceil(made.clients["samples"] / 10)
    assert made.clients["steps"].tolist() == (np.repeat(passes, 7) * batches).tolist()
    left = traffic(made, step_cost, forward_passes).reshape(2, 7)
    both = made.rounds["bytes_down"] + made.rounds["bytes_up"]
    np.testing.assert_allclose(left, np.repeat(both[:, None] / 7, 7, 1), rtol=1e-9)


@pytest.mark.parametrize(
    "make", [lambda: FLHC(2, warmup=0), lambda: FeSEM(2), lambda: FedGroup(2, pretrain_epochs=3)]
)
def test_who_comes_first_trains_twice(make: Callable[[], ClusteredOnce], tmp_path: Path) -> None:
    """Oracle: by hand; clients 5 and 6 come in the second round, and receive three models more: two are clusters'."""
    (tmp_path / "rounds").write_text("0 1 2 3 4\n3 4 5 6\n")
    made = two_rounds(tmp_path / "run.h5", make(), sampler=FixedList(tmp_path / "rounds"))
    epochs = 3 if isinstance(make(), FedGroup) else 1
    second = made.clients["round"] == 2
    batches = np.ceil(np.array(SIZES)[3:] / 10)
    assert made.clients["steps"][second].tolist() == (batches * [1, 1, 1 + epochs, 1 + epochs]).tolist()
    model = 4 * len(made.weights)
    np.testing.assert_allclose(traffic(made)[second], np.array([2, 2, 5, 5]) * model, rtol=1e-9)
    assert made.rounds["bytes_down"][1] + made.rounds["bytes_up"][1] == 14 * model


def test_what_is_lost_was_received(tmp_path: Path) -> None:
    """Oracle: by hand; who comes for the first time trains twice, is too late, and has received three models more."""
    (tmp_path / "rounds").write_text("0 1 2 3 4\n3 5 6\n")
    sampler, model = FixedList(tmp_path / "rounds"), 4 * FlatModel(network(LeNet(), (1, 8, 8), 10), CPU).layout.size
    deadline = 3.1 + 2 * model / BANDWIDTH
    slow = Heterogeneous(**SPEEDS, download=BANDWIDTH, upload=BANDWIDTH, deadline=deadline)
    made = two_rounds(tmp_path / "run.h5", FedGroup(2, pretrain_epochs=1), sampler=sampler, conditions=slow)
    assert made.clients["client"].tolist() == [0, 1, 2, 3, 4, 3]
    assert made.rounds["late"].tolist() == [0, 2]
    assert made.rounds["bytes_down"].tolist() == [5 * model, (3 + 2 * 3) * model]


def test_a_tenth_less_is_trained_from_the_first_round_on(tmp_path: Path) -> None:
    """Oracle: by hand; 18 and 27 of 20 and 30 samples are two and three batches of nine."""
    method = GenFL(pretrain=False, cas_epochs=0, paper_compat=True)
    made = two_rounds(tmp_path / "run.h5", method, local=LocalTraining(epochs=1, batch_size=9))
    np.testing.assert_array_equal(made.clients["steps"], np.tile([2, 3, 2, 3, 2, 3, 2], 2))
    left = BANDWIDTH * (made.clients["virtual_seconds"] - made.clients["steps"])
    np.testing.assert_allclose(left, 8 * len(made.weights), rtol=1e-9)


def test_who_does_not_train_takes_no_time(tmp_path: Path) -> None:
    """Oracle: zero, of a method that stops at any skew of labels."""
    method = GenFL(
        generator_rounds=1, generator_epochs=1, synthetic=2, pretrain_epochs=1, cas_epochs=0, stop_at_skew=1e-9
    )
    made = two_rounds(tmp_path / "run.h5", method)
    for column in ("virtual_seconds", "bytes_down", "bytes_up"):
        assert made.rounds[column].tolist() == [0, 0], column
