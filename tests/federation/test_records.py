from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi import results
from fedmpi.algorithms import FedAvg
from fedmpi.models import LogisticRegression
from fedmpi.policies import Cohort, Heterogeneous
from fedmpi.typing import Federation
from tests.support.experiments import run
from tests.support.mpi import REPOSITORY, mpirun, succeed

PROGRAM = REPOSITORY / "tests" / "jobs" / "records.py"


def test_a_client_that_did_not_train_has_no_records(tmp_path: Path) -> None:
    """Oracle: clients with odd numbers do not train; on any number of ranks the same."""
    runs = {}
    for ranks in (0, 3):
        told = succeed(mpirun(ranks, PROGRAM, tmp_path))
        runs[ranks] = run = results.open(tmp_path / f"{max(ranks, 1)}.h5")
        records = run.clients
        trained = records["client"] % 2 == 0
        assert 0 < trained.sum() < len(trained)
        for name in ("rank", "samples", "steps", "diverged"):
            assert records[name].dtype == np.int64
            assert (records[name][~trained] == -1).all(), name
            assert (records[name][trained] >= 0).all(), name
        for name in ("seconds", "loss", "zero", "local_accuracy"):
            assert (np.isnan(records[name]) == ~trained).all(), name
        assert (records["zero"][trained] == 0).all(), "which was recorded"
        for row, round in enumerate(run.rounds["round"]):
            own = trained & (records["round"] == round)
            weights = records["samples"][own] / records["samples"][own].sum()
            np.testing.assert_allclose(run.rounds["train_loss"][row], records["loss"][own] @ weights)
            np.testing.assert_allclose(run.rounds["local_accuracy"][row], records["local_accuracy"][own].mean())
        assert (run.rounds["diverged_clients"] == 0).all()
        assert run.ranks["clients"].sum() == trained.sum()
    alone, several = runs[0], runs[3]
    assert alone.weights_sha256 == several.weights_sha256
    for name in ("round", "client", "samples", "steps", "loss", "zero"):
        np.testing.assert_array_equal(alone.clients[name], several.clients[name])
    assert told.splitlines()[-1] == (
        "twice of client 4 was recorded on several ranks: record it where the client is trained, or only at the"
        " server (fed.is_server)"
    )


class Logs(FedAvg):
    """Logs a value, and records one, under names that fedmpi uses itself or not."""

    def __init__(self, column: str = "mine", metric: str = "also") -> None:
        self.column, self.client_metrics = column, (metric,)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        fed.log(**{self.column: 77.0})


def test_columns_of_fedmpi_cannot_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    settings: dict[str, Any] = {"clients": 3, "rounds": 2, "model": LogisticRegression(), "overwrite": True}
    for column in (
        "round",
        "seconds",
        "train_loss",
        "bytes_up",
        "test_accuracy",
        "server_seconds",
        "virtual_seconds",
    ):
        with pytest.raises(ValueError, match=f"^fed.log: /rounds has a column {column} already: choose another name"):
            run(path, Logs(column), conditions=Heterogeneous(), **settings)
    for metric in ("loss", "round", "client", "seconds", "virtual_seconds"):
        with pytest.raises(ValueError, match=f"^client_metrics: /clients has a column {metric} already"):
            run(path, Logs(metric=metric), conditions=Heterogeneous(), **settings)
    with pytest.raises(ValueError, match=r"^client_metrics: /clients has a column local_accuracy already"):
        run(path, Logs(metric="local_accuracy"), evaluate_local=True, **settings)
    assert run(path, Logs(), **settings).rounds["mine"].tolist() == [77.0, 77.0]


class Records(FedAvg):
    """Records and logs what is no value for each client, or under no name.

    Args:
        value: that is recorded.
        name: of a column of the round.
    """

    client_metrics = ("drift",)

    def __init__(self, value: Any = None, name: str = "mine") -> None:
        self.value, self.name = value, name

    def round(self, fed: Federation, cohort: Cohort) -> None:
        for block in fed.my_clients(cohort):
            if self.value is not None:
                fed.record(block, drift=self.value)
        fed.log(**{self.name: 1.0})


@pytest.mark.parametrize(
    ("value", "given"), [(3.0, "a float"), ([1.0], "a list"), ("x", "a str"), (torch.zeros(2), "[2]")]
)
def test_records_have_a_value_for_each_client(value: Any, given: str, tmp_path: Path) -> None:
    message = f"^{re.escape(f'fed.record: drift is {given}: must be a tensor [1], a value per client')}$"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run.h5", Records(value), rounds=1)


@pytest.mark.parametrize("name", ["", "a/b", "a\0"])
def test_logged_columns_have_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"fed.log: {name!r}: must be a name without /")):
        run(tmp_path / "run.h5", Records(name=name), rounds=1)


class Misspelt(FedAvg):
    client_metrics = ("drift",)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        for block in fed.my_clients(cohort):
            fed.record(block, drfit=torch.zeros(len(block)))


def test_a_record_that_is_not_declared(tmp_path: Path) -> None:
    """Oracle: the name, and where it should have been declared."""
    with pytest.raises(
        ValueError, match=r"^fed\.record: drfit is not among the client_metrics of the method: drift$"
    ):
        run(tmp_path / "run.h5", Misspelt())
