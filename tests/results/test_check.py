from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.results.__main__ import main
from fedmpi.results.check import problems
from fedmpi.results.metrics import metrics_of
from fedmpi.results.schema import SCHEMA, document, generic, of_metrics
from tests.results.made_runs import finished, started
from tests.support.mpi import REPOSITORY

#: Is also said of attributes that another program has changed.
CHANGED_TEXT = "/: a text is damaged (an attribute or the name of a tensor)"


def test_faults_are_found(tmp_path: Path) -> None:
    """Oracle: what is done to a file."""

    def with_text(file: h5py.File) -> None:
        file["rounds/note"] = np.array([b"x"] * 20)

    def shorter(file: h5py.File) -> None:
        del file["rounds/test_loss"]
        file["rounds/test_loss"] = np.zeros(19)

    def fewer_clients(file: h5py.File) -> None:
        del file["evaluation/client_accuracy"]
        file["evaluation/client_accuracy"] = np.zeros((10, 19))

    def lost(*names: str) -> Callable[[h5py.File], None]:
        def change(file: h5py.File) -> None:
            for name in names:
                del file[name]

        return change

    faults: dict[str, Callable[[h5py.File], object]] = {
        "/: attribute host is missing": lambda file: file.attrs.pop("host"),
        "/: status is done, not one of running, finished, interrupted, failed": lambda file: file.attrs.update(
            status="done"
        ),
        "/: started is noon, not a time in ISO 8601": lambda file: file.attrs.update(started="noon"),
        "/partition: is missing": lost("partition"),
        "/extra: is not in the schema": lambda file: file.create_group("extra"),
        "/rounds/seconds: is missing": lost("rounds/seconds"),
        "/rounds/note: has the type |S1": with_text,
        "/rounds/test_loss: has 19 rows, others have 20": shorter,
        "/rounds/round: does not count 1, 2, 3, ...": lambda file: file["rounds/round"].write_direct(np.arange(20)),
        "/evaluation/client_accuracy: has 19 clients, others have 20": fewer_clients,
        "/ranks/mood: is not in the schema": lambda file: file.create_dataset("ranks/mood", data=np.zeros(40)),
        "/model/weights: has 2 axes, not 1 (P)": lambda file: (
            lost("model/weights")(file),
            file.create_dataset("model/weights", data=np.zeros((1, 9), "f4")),
        ),
        "/model: shapes and offsets do not match the weights": lambda file: file["model/offsets"].write_direct(
            np.array([0, 5])
        ),
        "/model: sha256 does not match the weights": lambda file: file["model"].attrs.update(sha256="0" * 64),
    }
    for expected, change in faults.items():
        path = finished(tmp_path / "run.h5")
        with h5py.File(path, "r+") as file:
            change(file)
        found = [line for line in problems(path) if line != CHANGED_TEXT]
        assert expected in found, f"{expected}: {found}"
        assert len(found) == 1 or "/model" in expected or "/partition/label" in expected
        path.unlink()


def test_what_the_check_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, young, bad = finished(tmp_path / "good.h5"), tmp_path / "young.h5", finished(tmp_path / "bad.h5")
    started(young).write()
    with h5py.File(bad, "r+") as file:
        del file["partition/samples"]
    (tmp_path / "text.h5").write_text("no HDF5")
    assert main(["check", str(good), str(young)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{path}: valid (schema 1)" for path in (good, young)]
    assert main(["check", str(bad)]) == 1
    assert capsys.readouterr().out == f"{bad}: /partition/samples: is missing\n"
    assert main(["check", str(tmp_path / "text.h5"), str(good)]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'text.h5'}: not an HDF5 file, or a damaged one\n"


def test_the_document_is_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """The page of the documentation is what the command prints."""
    assert main(["schema"]) == 0
    page = (REPOSITORY / "docs" / "results_file.md").read_text()
    assert page == capsys.readouterr().out, "python -m fedmpi.results schema > docs/results_file.md"
    assert f"schema {SCHEMA}" in document()


def test_every_column_that_a_method_logs_is_documented() -> None:
    """Oracle: the names in the calls of `log` in the sources, with N for what is put in."""
    known = of_metrics(metrics_of({}))["rounds"].arrays
    # Trackers call `log` of other packages.
    sources = [path for path in (REPOSITORY / "fedmpi").rglob("*.py") if path.name != "tracking.py"]
    logged = {name for path in sources for name in _logged(path)}
    assert {"epsilon", "cluster_size_N", "generator_resets", "cas_test"} <= logged
    unknown = {name for name in logged if name not in known and not _stands_for_several(name, known)}
    assert not unknown


def _stands_for_several(name: str, known: Iterable[str]) -> bool:
    pattern = re.escape(name).replace("N", ".+")
    return any(re.fullmatch(pattern, generic(other)) for other in known) if "N" in name else False


def _logged(path: Path) -> Iterator[str]:
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "log":
            for keyword in call.keywords:
                if keyword.arg:
                    yield keyword.arg
                else:
                    yield from _keys(keyword.value)


def _keys(node: ast.expr) -> Iterator[str]:
    keys = node.keys if isinstance(node, ast.Dict) else [node.key] if isinstance(node, ast.DictComp) else []
    for key in keys:
        for part in [key.body, key.orelse] if isinstance(key, ast.IfExp) else [key]:
            if isinstance(part, ast.Constant):
                yield str(part.value)
            elif isinstance(part, ast.JoinedStr):
                yield "".join(str(one.value) if isinstance(one, ast.Constant) else "N" for one in part.values)
