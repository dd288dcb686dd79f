"""Bulyan: the paper's two steps as loops over clients and coordinates, and runs with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.algorithms.bulyan import Bulyan, near_median, select
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.policies import FixedList
from tests.algorithms.test_robust import PARAMETERS, SETTINGS, Sends, models, stacked
from tests.support.experiments import Spy, run


def plain_selection(vectors: NDArray[np.float64], faulty: int) -> list[int]:
    """Ascending numbers of the models that Krum selects in turn, of at least two nearest others."""
    left, chosen = list(range(len(vectors))), list[int]()
    while len(chosen) < len(vectors) - 2 * faulty:
        scores = []
        for i in left:
            others = sorted(float(np.square(vectors[i] - vectors[j]).sum()) for j in left if j != i)
            scores.append(sum(others[: max(len(left) - faulty - 2, 2)]))
        chosen.append(left.pop(int(np.argmin(scores))))
    return sorted(chosen)


def plain_mean(vectors: NDArray[np.float64], faulty: int) -> NDArray[np.float64]:
    """[d], of the values nearest to the median of their coordinate."""
    result = []
    for column in vectors.T:
        nearest = sorted(column, key=lambda value: (abs(value - np.median(column)), value))
        result.append(np.mean(nearest[: len(column) - 2 * faulty]))
    return np.array(result)


def test_by_hand() -> None:
    """Oracle: by hand: of 1, 2, 4, 5, 9 without the two furthest from 4 the mean of 4, 5 and 2."""
    values = np.array([[9.0], [1], [5], [2], [4]], dtype=np.float32)
    assert near_median(values, 2).tolist() == [11 / 3]
    assert near_median(values, 0).tolist() == [21 / 5]


@pytest.mark.parametrize(("count", "faulty"), [(3, 0), (7, 1), (9, 1), (11, 2), (15, 3)])
def test_both_steps(count: int, faulty: int) -> None:
    """Oracle: `plain_selection` and `plain_mean`; the models in another order give the same."""
    values = models(count)
    values[count // 2] += 5
    chosen = select(stacked(values).distances(), faulty)
    wide = values.astype(np.float64)
    assert chosen.tolist() == plain_selection(wide, faulty)
    assert len(chosen) == count - 2 * faulty
    made = stacked(values).combine(lambda some: near_median(some[chosen], 2 * faulty)).numpy()
    np.testing.assert_allclose(made, plain_mean(wide[chosen], faulty), rtol=1e-6)
    order = np.random.default_rng(0).permutation(count)
    assert set(order[select(stacked(values[order]).distances(), faulty)]) == set(chosen)


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: both steps on the trained models; distances are over the parameters; whom it selects is recorded."""
    spy = Spy(monkeypatch)
    made = run(tmp_path / "run.h5", Bulyan(1), rounds=2, **SETTINGS)
    for round in (1, 2):
        trained = np.stack([spy.trained[round][client] for client in range(7)])
        chosen = plain_selection(trained[:, :PARAMETERS], 1)
        assert np.flatnonzero(made.clients["selected"][made.clients["round"] == round]).tolist() == chosen
        expected = plain_mean(trained[chosen], 1)
        np.testing.assert_allclose(spy.measured[round][0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_models_of_a_malicious_client_that_are_huge(tmp_path: Path) -> None:
    """Oracle: FedAvg would be carried away; this goes on, and learns."""
    made = run(tmp_path / "made.h5", Bulyan(1), attack=Sends(1 / 7, 1e30), rounds=2, **SETTINGS)
    assert (np.abs(made.weights) < 100).all()
    assert made.rounds["test_loss"][-1] < made.initial["test_loss"]
    assert not (made.clients["selected"] * made.clients["malicious"]).any()


@pytest.mark.parametrize(("faulty", "rejected", "moves"), [(1, 1, True), (1, 4, True), (1, 5, False), (0, 4, True)])
def test_rejected_vectors(faulty: int, rejected: int, moves: bool, tmp_path: Path) -> None:
    """Oracle: by hand: they are among the f; when all are found, three others are enough."""
    made = run(tmp_path / "made.h5", Bulyan(faulty), attack=Sends(rejected / 7, np.nan), **SETTINGS)
    assert made.rounds["rejected"].tolist() == [rejected]
    assert (made.rounds["test_loss"][0] != made.initial["test_loss"]) == moves


def test_too_few(tmp_path: Path) -> None:
    """Oracle: by hand: for one faulty client it needs seven; six come in the first round, seven in the second."""
    (tmp_path / "rounds").write_text("0 1 2 3 4 5\n0 1 2 3 4 5 6\n")
    made = run(tmp_path / "made.h5", Bulyan(1), sampler=FixedList(tmp_path / "rounds"), rounds=2, **SETTINGS)
    assert made.rounds["test_loss"][0] == made.initial["test_loss"] != made.rounds["test_loss"][1]
    assert [made.clients["selected"][made.clients["round"] == round].sum() for round in (1, 2)] == [0, 5]


def test_without_faulty_clients_it_is_fedavg(tmp_path: Path) -> None:
    """Oracle: FedAvg of clients that count alike, to a rounding of float32."""
    made = run(tmp_path / "made.h5", Bulyan(0), **SETTINGS)
    plain = run(tmp_path / "plain.h5", weighting="uniform", **SETTINGS)
    np.testing.assert_allclose(made.weights, plain.weights, rtol=1.2e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--algorithm.faulty -1", "--algorithm.faulty = -1: must be at least 0"),
        ("--algorithm.faulty 2", "--cohort = 10: must be at least 11 for Bulyan with 2 faulty clients"),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", "Bulyan", *arguments.split()])
    assert str(error.value) == message
