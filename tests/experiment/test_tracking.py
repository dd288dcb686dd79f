"""Live trackers. Oracles: the programs' own readers of their files, and the rows of the results file."""

from __future__ import annotations

import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import results
from fedmpi.experiment import recording, tracking
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.tracking import Row, Tracked, Tracking
from tests.support.experiments import Alone
from tests.support.mpi import fedmpi, succeed

OPTIONS = "--clients 4 --cohort 2 --rounds 4 --local.steps 2 --model LogisticRegression --checkpoint.every_rounds 2"
#: A column, and (round, value) of each point.
Points = list[tuple[int, float]]
LEVELDB_BLOCK = 1 << 15


def of_tensorboard(output: Path, column: str) -> Points:
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for file in output.with_suffix(".tensorboard").glob("*tfevents*"):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == column]
            place += length + 16
    return found


def of_wandb(output: Path, column: str) -> Points:
    """Its files are logs of LevelDB after a header of 7 bytes, whose records are protocol buffers."""
    wandb_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found = []
    for file in output.with_suffix(".wandb").glob("wandb/offline-run-*/*.wandb"):
        content, place, whole = file.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if LEVELDB_BLOCK - place % LEVELDB_BLOCK < 7:
                place += LEVELDB_BLOCK - place % LEVELDB_BLOCK
                continue
            length, kind = struct.unpack_from("<HB", content, place + 4)
            whole += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # a full record, or the last part of one
                record, whole = wandb_pb2.Record.FromString(whole), b""
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if column in items:
                    found.append((int(items["_step"]), float(items[column])))
    return found


def of_mlflow(output: Path, column: str) -> Points:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(output.parent / "mlruns").resolve().as_uri())
    runs = client.search_runs(["0"])
    assert [run.info.run_name for run in runs] == [output.stem]
    assert runs[0].data.params["local.steps"] == "2"
    return [(m.step, m.value) for run in runs for m in client.get_metric_history(run.info.run_id, column)]


READERS = {"tensorboard": of_tensorboard, "wandb-offline": of_wandb, "mlflow": of_mlflow}


@pytest.mark.parametrize("name", READERS)
def test_each_round_is_there_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two ranks were interrupted in round 3, and one rank has gone on after the checkpoint of round 2.

    The weights are those of a run without a tracker.
    """
    pytest.importorskip({"tensorboard": "tensorboardX", "wandb-offline": "wandb"}.get(name, name))
    monkeypatch.setattr(recording, "HASTE", 60.0)  # the import alone takes seconds on a busy machine
    output = tmp_path / "run.h5"
    words = [*OPTIONS.split(), "--track", name, "--output", str(output)]
    experiment, config = parse(words)
    for outcome in experiment.outcomes(Alone(), config):
        if outcome.row["round"] == 3:
            break
    assert results.open(output).status == "interrupted"
    assert [round for round, _ in READERS[name](output, "train_loss")] == [1, 2, 3]
    said = succeed(fedmpi(2, *words, "--resume"))
    assert "resuming after round 2" in said
    assert "warning" not in said
    run = results.open(output)
    for column in ("train_loss", "test_accuracy", "bytes_up"):
        points = READERS[name](output, column)
        assert [round for round, _ in points] == [1, 2, 3, 4]
        np.testing.assert_allclose([value for _, value in points], run.rounds[column], rtol=1e-6)
    succeed(fedmpi(2, *OPTIONS.split(), "--output", tmp_path / "plain.h5"))
    assert results.open(tmp_path / "plain.h5").weights_sha256 == run.weights_sha256


def test_a_tracker_that_fails(tmp_path: Path) -> None:
    """A file is in the folder's place: one line of warning, and a finished run."""
    output = tmp_path / "run.h5"
    (tmp_path / "run.tensorboard").write_text("")
    said = succeed(fedmpi(2, *OPTIONS.split(), "--track", "tensorboard", "--output", output))
    (line,) = (line for line in said.splitlines() if "warning" in line)
    assert line.startswith("warning: --track tensorboard: [Errno 20] Not a directory")
    assert line.endswith("; the run continues without it")
    assert results.open(output).status == "finished"


@pytest.fixture
def tracked(tmp_path: Path) -> Tracked:
    return Tracked(tmp_path / "run.h5", "2026-01-01T00:00:00+00:00", {"rounds": 3, "local": {"lr": 0.1}})


def test_a_missing_package(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    rows = Tracking("wandb-offline", tracked, {})
    rows.add({"round": 1, "seconds": 1.0})
    rows.close(10)
    said = "is not installed: pip install 'fedmpi[wandb]'; the run continues without it\n"
    assert capsys.readouterr().out == f"warning: --track wandb-offline: wandb {said}"


def test_a_tracker_that_hangs(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are taken all the same, and the end of the run does not wait for it."""
    released = threading.Event()

    class Hangs:
        def __init__(self, run: Tracked) -> None:
            released.wait()

    monkeypatch.setitem(tracking._TRACKERS, "mlflow", Hangs)
    rows = Tracking("mlflow", tracked, {})
    for round in range(1000):
        rows.add({"round": round, "seconds": 1.0})
    rows.close(0.05)
    released.set()
    assert capsys.readouterr().out == "warning: --track mlflow: not all rounds were written within 0.05 s\n"


def test_what_a_tracker_is_given(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier rounds first; no values that are not finite; times without the pause between two jobs."""
    given: list[tuple[Any, ...]] = []

    class Keeps:
        def __init__(self, run: Tracked) -> None:
            given.append((run.options,))

        def log(self, values: Row, round: int, time: float) -> None:
            given.append((dict(values), round, time - 1767225600))

        def close(self) -> None:
            given.append(())

    monkeypatch.setitem(tracking._TRACKERS, "mlflow", Keeps)
    earlier = {"round": np.array([1, 2]), "seconds": np.array([2.0, 3.0]), "loss": np.array([np.nan, 0.5])}
    rows = Tracking("mlflow", tracked, earlier)
    rows.add({"round": 3, "seconds": 4.0, "loss": np.inf, "clients": 7})
    rows.close(10)
    assert given == [
        ({"rounds": "3", "local.lr": "0.1"},),
        ({"seconds": 2.0}, 1, 2.0),
        ({"seconds": 3.0, "loss": 0.5}, 2, 5.0),
        ({"seconds": 4.0, "clients": 7.0}, 3, 9.0),
        (),
    ]


def test_none_starts_nothing(tracked: Tracked, tmp_path: Path) -> None:
    before = threading.active_count()
    Tracking("none", tracked, {}).close(10)
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []
