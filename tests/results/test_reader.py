from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import fedmpi.results
from fedmpi.errors import BadInput
from fedmpi.results.owner import Owner
from tests.results.made_runs import NAMES, OFFSETS, SHAPES, add_round, finished, started, weights


def change(path: Path, **attributes: Any) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)


def status_after(path: Path, **attributes: Any) -> str:
    change(path, **attributes)
    return fedmpi.results.open(path).status


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    run = fedmpi.results.open(finished(tmp_path / "run.h5"))
    assert run.status == "finished"
    assert list(run.rounds)[:3] == ["round", "seconds", "train_loss"]  # in the order they came
    assert run.rounds["round"].tolist() == list(range(1, 21))
    assert np.isnan(run.rounds["test_accuracy"][::2]).all()
    np.testing.assert_allclose(run.rounds["test_accuracy"][1::2], 0.04 * np.arange(2, 21, 2))
    assert run.clients["client"].shape == (80,)
    assert run.ranks["busy_seconds"].shape == (40,)
    assert run.partition["samples"].tolist() == [10] * 20
    assert run.evaluation["per_class_accuracy"].shape == (10, 10)
    assert run.environment == {"ranks": 3, "hosts": "ä\nb"}
    absent = {"compile": "off", "accumulate": 1, "warmup": 0.0, "schedule_by": "round"}  # in older files
    assert run.settings["local"] == {"epochs": 2, "lr": 1e-5} | absent


def test_accuracies_are_taken_from_the_evaluated_rounds(tmp_path: Path) -> None:
    score = fedmpi.results.open(finished(tmp_path / "run.h5")).statistics()
    assert score == pytest.approx((0.1, 0.8, 0.8, 20, 0.04 * np.mean(np.arange(2, 21, 2))))


def test_the_earliest_of_equally_good_rounds_is_the_best(tmp_path: Path) -> None:
    results = started(tmp_path / "run.h5")
    for round, accuracy in enumerate([0.2, np.nan, 0.5, 0.5, 0.4], start=1):
        results.add_round({"round": round, "test_accuracy": accuracy})
    results.finish("failed")
    score = fedmpi.results.open(results.path).statistics()
    assert score == pytest.approx((0.1, 0.4, 0.5, 3, 0.4))


def test_the_best_loss_is_the_least(tmp_path: Path) -> None:
    results = started(tmp_path / "run.h5")
    for round, loss in enumerate([0.4, 0.2, np.nan, 0.2, 0.3], start=1):
        results.add_round({"round": round, "train_loss": loss, "mine": loss})
    results.finish("finished")
    run = fedmpi.results.open(results.path)
    assert run.statistics("train_loss")[1:4] == (0.3, 0.2, 2)
    assert run.statistics("mine", "higher")[2:4] == (0.4, 1)
    last, best, best_round = run.statistics("mine")[1:4]
    assert (last, best_round) == (0.3, 0)
    assert np.isnan(best), "nobody knows which is better"


def test_a_run_without_rounds_has_no_accuracies(tmp_path: Path) -> None:
    results = started(tmp_path / "run.h5")
    results.write()
    run = fedmpi.results.open(results.path)
    assert run.rounds == {}
    assert np.isnan(run.statistics()[1:3]).all()
    assert run.statistics().best_round == 0


def test_the_weights_load_into_a_torch_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    results = started(tmp_path / "run.h5")
    source = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    tensors = {name: value for name, value in source.state_dict().items() if value.is_floating_point()}
    sizes = [value.numel() for value in tensors.values()]
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()
    flat = torch.cat([value.flatten() for value in tensors.values()]).numpy()
    shapes = [tuple(value.shape) for value in tensors.values()]
    results.set_model(list(tensors), shapes, offsets, lambda: flat)
    results.finish("finished")

    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = fedmpi.results.open(results.path).state_dict()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in tensors.items())


def test_scalars_and_further_models_have_their_shapes(tmp_path: Path) -> None:
    results = started(tmp_path / "run.h5")
    centers = np.stack([weights(1), weights(2)])
    results.set_model([*NAMES, "scale"], [*SHAPES, ()], [*OFFSETS, 8], weights, {"centers": lambda: centers})
    results.finish("finished")
    run = fedmpi.results.open(results.path)
    assert run.state_dict()["scale"].shape == ()
    np.testing.assert_array_equal(run.state_dict(run.model["centers"][1])["weight"], 2 * weights()[:6].reshape(3, 2))


def test_tables_become_data_frames(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    run = fedmpi.results.open(finished(tmp_path / "run.h5"))
    assert run.to_pandas().shape == (20, 10)
    assert run.to_pandas("clients")["client"].max() == 3
    assert list(run.to_pandas("partition"))[-2:] == ["label_counts_9", "samples"]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fedmpi.results.open(finished(tmp_path / "run.h5"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BadInput, match=r"pip install 'fedmpi\[plot\]'"):
        run.to_pandas()


def test_a_run_on_this_host_is_killed_when_its_process_is_gone(tmp_path: Path) -> None:
    results = started(tmp_path / "run.h5")
    results.write()
    assert fedmpi.results.open(results.path).status == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = Owner.here()
    assert status_after(results.path, owner=replace(here, pid=gone.pid).text) == "killed"
    assert status_after(results.path, owner=replace(here, start="1").text) == "killed", (
        "a later process has its number"
    )
    assert status_after(results.path, owner=here.text) == "running"
    assert status_after(results.path, status="interrupted") == "interrupted"


def test_a_run_on_another_host_is_killed_when_it_is_silent(tmp_path: Path) -> None:
    def ago(seconds: float) -> str:
        return (datetime.now(timezone.utc) - timedelta(seconds=seconds)).isoformat()

    results = started(tmp_path / "run.h5")
    results.write()
    there = replace(Owner.here(), host="elsewhere")
    change(results.path, owner=there.text, write_interval=60.0)
    assert status_after(results.path, last_write=ago(590)) == "running"
    assert status_after(results.path, last_write=ago(610)) == "killed"
    assert status_after(results.path, owner=replace(Owner.here(), namespace="another").text) == "killed"
    assert status_after(results.path, owner=Owner.here().text) == "running"


def test_what_is_no_results_file_is_named_in_one_line(tmp_path: Path) -> None:
    good = finished(tmp_path / "good.h5")
    text, cut, foreign, other = (tmp_path / name for name in ("text.h5", "cut.h5", "foreign.h5", "other.h5"))
    text.write_text("no HDF5")
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    h5py.File(foreign, "w").close()
    other.write_bytes(good.read_bytes())
    change(other, schema=2)
    reasons = {
        tmp_path / "missing.h5": "No such file or directory",
        tmp_path: "Is a directory",
        Path(os.devnull): "not a regular file",
        text: "not an HDF5 file, or a damaged one",
        cut: "not an HDF5 file, or a damaged one",
        foreign: "not a results file of fedmpi",
        other: "has schema 2, this version of fedmpi reads schema 1",
    }
    for path, reason in reasons.items():
        with pytest.raises(BadInput) as error:
            fedmpi.results.open(path)
        assert str(error.value) == f"{path}: {reason}"


HOLD = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('held', flush=True); sys.stdin.read()"


def test_a_file_that_somebody_has_locked_is_read_all_the_same(tmp_path: Path) -> None:
    """A run's file is replaced, never changed: HDF5's locks, which the environment may demand, protect nothing."""
    path = finished(tmp_path / "run.h5")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HDF5_USE_FILE_LOCKING": "TRUE"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], env=environment, **pipes) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(subprocess.CalledProcessError):  # so there is a lock
            subprocess.check_output(
                [sys.executable, "-c", HOLD, str(path)], env=environment, stderr=subprocess.DEVNULL
            )
        command = [sys.executable, "-m", "fedmpi.results", "check", str(path)]
        assert "valid (schema" in subprocess.check_output(command, text=True, env=environment)
        holder.communicate()


def test_another_run_in_the_same_file_is_not_mixed_in(tmp_path: Path) -> None:
    """Oracle: what was read before stays, and a line in place of the other run's tables; the run itself may go on."""
    path = tmp_path / "run.h5"
    results = started(path)
    add_round(results, 1)
    results.write()
    run = fedmpi.results.open(path)
    add_round(results, 2)
    results.finish("finished")
    assert run.clients["round"].tolist() == [1] * 4 + [2] * 4, "read when it was used"
    started(path, overwrite=True).finish("finished")
    for name in ("weights", "frozen", "partition", "ranks", "best", "held_out"):
        with pytest.raises(
            BadInput, match=f"^{path}: another run has replaced the file since it was opened; open it"
        ):
            getattr(run, name)
    with pytest.raises(BadInput, match="another run has replaced"):
        run.stage("generator")
    assert len(run.clients["round"]) == 8
    assert fedmpi.results.open(path).ranks == {}


@pytest.mark.parametrize("part", ["rounds", "status"])
def test_a_results_file_that_lacks_a_part_is_damaged(tmp_path: Path, part: str) -> None:
    path = finished(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        del (file if part in file else file.attrs)[part]
    with pytest.raises(BadInput, match="damaged"):
        fedmpi.results.open(path)


def test_reading_starts_fast() -> None:
    heavy = ("torch", "mpi4py", "matplotlib", "pandas", "yaml", "jsonargparse", "scipy", "tensorboardX")
    code = f"import sys, fedmpi.results.__main__; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment) == "[]\n"
