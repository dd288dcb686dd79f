from __future__ import annotations

from pathlib import Path

import numpy as np

from fedmpi import results
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
