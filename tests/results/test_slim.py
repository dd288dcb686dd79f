"""Copies without weights and images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.results.__main__ import main
from fedmpi.results.check import problems
from fedmpi.results.slim import LARGE, slim
from tests.results.made_runs import finished


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A results file with weights of a megabyte, other networks, and images."""
    path = finished(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        for name in LARGE[1:]:
            file.create_dataset(f"{name}/inner/weights" if name == "networks" else f"{name}/images", data=np.ones(3))
    return path


def test_a_copy_has_all_but_what_is_large(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: each attribute and each other array of the file; the same summary and table."""
    whole = finished(tmp_path / "whole.h5")
    copy = tmp_path / "slim.h5"
    assert main(["slim", str(whole), str(copy)]) == 0
    assert "without weights and images" in capsys.readouterr().out
    assert problems(copy) == []
    assert copy.stat().st_size < whole.stat().st_size
    with h5py.File(whole) as before, h5py.File(copy) as after:
        names: list[str] = []
        before.visit(names.append)
        left_out = [name for name in names if name not in after]
        assert left_out
        assert all(name.startswith("model/") for name in left_out)
        # Attributes that refer to other places of the file; `problems` has compared them.
        apart = {"texts_crc32", "DIMENSION_LIST", "REFERENCE_LIST"}
        for name in ["/", *names]:
            if name in after:
                texts = {key: value for key, value in before[name].attrs.items() if key not in apart}
                assert texts.keys() == {*after[name].attrs} - apart
                for key, value in texts.items():
                    np.testing.assert_array_equal(after[name].attrs[key], value)
            if name in after and isinstance(before[name], h5py.Dataset):
                np.testing.assert_array_equal(after[name][()], before[name][()])
                assert after[name].dtype == before[name].dtype
    for command in ("summary", "table"):
        said = []
        for path in (whole, copy):
            assert main([command, str(path)]) == 0
            said.append(capsys.readouterr().out.replace(str(path), ""))
        assert said[0] == said[1]
    assert results.open(copy).weights_sha256 == results.open(whole).weights_sha256
    with pytest.raises(BadInput, match="has no model"):
        _ = results.open(copy).weights


def test_networks_and_images_go_as_well(source: Path, tmp_path: Path) -> None:
    assert main(["slim", str(source), str(tmp_path / "slim.h5")]) == 0
    with h5py.File(tmp_path / "slim.h5") as file:
        assert [list(file[name]) for name in ("networks/inner", "synthetic", "best")] == [[], [], []]


def test_many_files_go_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [finished(tmp_path / f"{number}.h5", seed=number) for number in range(2)]
    (tmp_path / "slim").mkdir()
    files = [*map(str, paths), str(tmp_path / "slim")]
    assert main(["slim", *files]) == 0
    assert sorted(path.name for path in (tmp_path / "slim").iterdir()) == ["0.h5", "1.h5"]
    capsys.readouterr()
    assert main(["slim", *files]) == 2
    assert capsys.readouterr().err.count("exists already; --overwrite replaces it\n") == 2
    assert main(["slim", "--overwrite", *files]) == 0


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["run.h5"], "run.h5: slim needs files to copy, and then the target"),
        (["run.h5", "run.h5"], "run.h5: exists already"),
        (["--overwrite", "run.h5", "run.h5"], "run.h5: exists already"),
        (["run.h5", "run.h5", "no_folder"], "no_folder: must be a folder, for copies of 2 files"),
        (["run.h5", "no/folder.h5"], "no/folder.h5: No such file or directory"),
        (["none.h5", "slim.h5"], "none.h5: No such file or directory"),
        (["run.h5", "/dev/null"], "/dev/null: is a device"),
    ],
)
def test_what_cannot_be(
    files: list[str], said: str, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: one line, and the file as it was."""
    monkeypatch.chdir(source.parent)
    before = source.read_bytes()
    assert main(["slim", *files]) == 2
    assert capsys.readouterr().err == f"{said}\n"
    assert source.read_bytes() == before


def test_copies_that_are_made_at_the_same_time(source: Path, tmp_path: Path) -> None:
    """Oracle: all are valid, and as the one that is made alone."""
    slim(source, tmp_path / "alone.h5")
    copies = [tmp_path / f"copy-{number}.h5" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda copy: slim(source, copy), copies))
    alone = (tmp_path / "alone.h5").read_bytes()
    assert [copy.read_bytes() == alone for copy in copies] == [True] * 40


def test_tables_without_rows(tmp_path: Path) -> None:
    """Oracle: the columns are there without rows, and the other tables are as they were."""
    source, copy = finished(tmp_path / "run.h5"), tmp_path / "slim.h5"
    slim(source, copy, without=("evaluation",))
    assert problems(copy) == []
    run, whole = results.open(copy), results.open(source)
    assert {name: len(column) for name, column in run.evaluation.items()} == dict.fromkeys(whole.evaluation, 0)
    np.testing.assert_equal(run.rounds, whole.rounds)
    np.testing.assert_equal(run.clients, whole.clients)
