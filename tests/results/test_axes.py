"""Names of axes. Oracles: xarray and h5netcdf, which know nothing of fedmpi; the reader's tables."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi import results
from fedmpi.results.check import problems
from fedmpi.results.compare import differing_parts
from fedmpi.results.slim import slim
from tests.results.made_runs import add_round, finished, started
from tests.support.mpi import fedmpi, succeed

xarray = pytest.importorskip("xarray", reason="pip install xarray h5netcdf")
pytest.importorskip("h5netcdf", reason="pip install xarray h5netcdf")

#: The axes of a column of each table.
AXES = {
    "rounds/train_loss": ("round",),
    "clients/loss": ("round",),
    "ranks/busy_seconds": ("round",),
    "evaluation/client_accuracy": ("round", "client"),
    "evaluation/per_class_accuracy": ("round", "class"),
    "partition/label_counts": ("client", "class"),
    "partition/samples": ("client",),
    "confusion/counts": ("true_class", "predicted_class"),
}


def without_names(path: Path) -> None:
    """Make a file one of an older version."""
    axes = ("evaluation/client", "evaluation/class", "partition/client", "partition/class")
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for name in names:
            for key in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "coordinates"):
                if key in file[name].attrs:
                    del file[name].attrs[key]
        for name in (*axes, "confusion/true_class", "confusion/predicted_class"):
            del file[name]
        del file.attrs["texts_crc32"]


@pytest.mark.parametrize("slimmed", [False, True], ids=["whole", "slim"])
def test_xarray_names_the_axes(slimmed: bool, tmp_path: Path) -> None:
    path = finished(tmp_path / "run.h5")
    if slimmed:
        path, whole = tmp_path / "slim.h5", path
        slim(whole, path)
    assert problems(path) == []
    for place, axes in AXES.items():
        group, name = place.split("/")
        with xarray.open_dataset(path, group=group, engine="h5netcdf") as table:
            assert table[name].dims == axes
            assert set(axes) <= set(table.coords)
            run = results.open(path)  # also while another program of this process has the file open
            own = run.confusion if group == "confusion" else run.table(group)
            np.testing.assert_array_equal(table[name], own[name])
            for axis in set(axes) - {"round"}:
                np.testing.assert_array_equal(table[axis], np.arange(len(table[axis])))
    with xarray.open_dataset(path, group="clients", engine="h5netcdf") as table:
        assert "client" in table.coords
        assert table.loss.sel(round=7).client.values.tolist() == [0, 1, 2, 3]
    with xarray.open_dataset(path, group="evaluation", engine="h5netcdf") as table:
        assert float(table.client_accuracy.sel(round=4, client=19)) == 0.5
        assert table["round"].values.tolist() == [*range(2, 21, 2)]


def test_readers_see_columns_only(tmp_path: Path) -> None:
    """The datasets that only name axes are in no table, and their absence is no difference between runs."""
    path, older = finished(tmp_path / "run.h5"), finished(tmp_path / "older.h5")
    without_names(older)
    one, other = results.open(path), results.open(older)
    for table in ("evaluation", "partition", "rounds", "clients"):
        assert one.table(table).keys() == other.table(table).keys()
    assert one.to_pandas("evaluation").shape == (10, 1 + 10 + 20)
    assert list(differing_parts(one, other)) == []
    assert problems(older) == []
    slim(older, tmp_path / "slim.h5")
    with xarray.open_dataset(tmp_path / "slim.h5", group="evaluation", engine="h5netcdf") as table:
        assert table.client_accuracy.dims == ("round", "client")


def test_an_older_file_is_continued(tmp_path: Path) -> None:
    path = finished(tmp_path / "run.h5", rounds=6)
    without_names(path)
    later = started(path, overwrite=True)
    later.resume(str(results.open(path).attributes["started"]), 6)
    for round in (7, 8):
        add_round(later, round)
    later.finish("finished")
    again = started(path, overwrite=True)
    again.resume(later.started, 8)
    again.finish("finished")
    assert problems(path) == []
    for group, rounds in (("rounds", [*range(1, 9)]), ("evaluation", [2, 4, 6, 8])):
        with xarray.open_dataset(path, group=group, engine="h5netcdf") as table:
            assert table["round"].values.tolist() == rounds


def test_without_rows(tmp_path: Path) -> None:
    """No round yet; and a copy without the rows of a table, whose clients keep their numbers."""
    results_ = started(tmp_path / "run.h5")
    results_.write()
    assert problems(tmp_path / "run.h5") == []
    slim(finished(tmp_path / "whole.h5"), tmp_path / "copy.h5", without=("evaluation",))
    assert problems(tmp_path / "copy.h5") == []
    with xarray.open_dataset(tmp_path / "copy.h5", group="evaluation", engine="h5netcdf") as table:
        assert table.client_accuracy.shape == (0, 20)
        assert len(table.client) == 20


def test_wrong_names_are_found(tmp_path: Path) -> None:
    """Oracle: what is changed in the file; a list of scales of another type is not trusted."""
    path = finished(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        scale = file["partition/client"]
        file["rounds/train_loss"].dims[0].detach_scale(file["rounds/round"])
        file["rounds/train_loss"].dims[0].attach_scale(scale)
        del file["rounds/test_loss"].attrs["DIMENSION_LIST"]
        file["rounds/test_loss"].attrs["DIMENSION_LIST"] = np.arange(1000.0)
    assert sorted(problems(path)) == [
        "/rounds/test_loss: its axes are not named round",
        "/rounds/train_loss: its axes are not named round",
    ]


def test_a_real_run(tmp_path: Path) -> None:
    """Clusters, held-out clients, and a stage before the rounds."""
    small = ["--clients", "6", "--cohort", "3", "--rounds", "2", "--local.steps", "1", "--model", "MLP"]
    path = tmp_path / "run.h5"
    succeed(fedmpi(2, *small, "--algorithm", "IFCA", "--output", path))
    assert problems(path) == []
    with xarray.open_dataset(path, group="clusters", engine="h5netcdf") as table:
        assert table.cluster.dims == ("round", "client")
        assert table.sizes == {"round": 2, "client": 6}
    path = tmp_path / "held out.h5"
    succeed(fedmpi(2, *small, "--held_out", "2", "--held_out_epochs", "3", "--output", path))
    assert problems(path) == []
    with xarray.open_dataset(path, group="held_out", engine="h5netcdf") as table:
        assert table.accuracy.dims == ("client", "epoch")
        assert table.epochs.dims == ("client",)
        assert table.epoch.values.tolist() == [0, 1, 2, 3]
    assert results.open(path).held_out.keys() == {"accuracy", "epochs"}
