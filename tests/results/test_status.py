"""The word that job scripts ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from fedmpi.results.__main__ import main
from fedmpi.results.owner import Owner
from fedmpi.results.schema import Status
from tests.results.made_runs import finished, started


def test_one_word(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: what was done to each file; 0 only of the one that has finished."""
    words: tuple[Status, ...] = ("running", "interrupted", "failed")
    files = {word: tmp_path / f"{word}.h5" for word in words}
    for status, path in files.items():
        started(path).finish(status)
    killed = tmp_path / "killed.h5"
    started(killed).write()
    finished(tmp_path / "finished.h5", rounds=1)
    for path in (killed, files["interrupted"], files["failed"], tmp_path / "finished.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["owner"] = replace(Owner.here(), pid=2**31 - 1).text  # no process can have it
    (tmp_path / "empty.h5").touch()
    damaged = finished(tmp_path / "damaged.h5", rounds=1)
    with h5py.File(damaged, "r+") as file:
        del file["rounds"]
    monkeypatch.setenv("FOLDER", str(tmp_path))
    reasons = {
        "finished.h5": ("finished", ""),
        "running.h5": ("running", ""),
        "interrupted.h5": ("interrupted", ""),
        "failed.h5": ("failed", ""),
        "killed.h5": ("killed", ""),
        "none.h5": ("missing", "No such file or directory"),
        ".": ("unreadable", "Is a directory"),
        "empty.h5": ("unreadable", "not an HDF5 file, or a damaged one"),
        "damaged.h5": ("unreadable", "damaged: /rounds is missing"),
    }
    for name, (word, reason) in reasons.items():
        assert main(["status", f"$FOLDER/{name}"]) == (word != "finished")
        said = capsys.readouterr()
        assert said.out == f"{word}\n"
        assert said.err == (f"{tmp_path / name}: {reason}\n" if reason else "")
    assert main(["status", "$NOWHERE/run.h5"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("missing\n", "$NOWHERE/run.h5: the environment variable NOWHERE is not set\n")


def test_it_starts_fast(tmp_path: Path) -> None:
    """Without what takes seconds to import."""
    heavy = ("torch", "mpi4py", "matplotlib", "yaml", "jsonargparse", "scipy")
    path = finished(tmp_path / "run.h5", rounds=1)
    code = f"import sys; from fedmpi.results.__main__ import main; main(['status', {str(path)!r}])"
    code += f"; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert said.splitlines() == ["finished", "[]"]
