"""Provenance: what /environment says about a job."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import h5py

from fedmpi import results
from fedmpi.results.check import problems
from fedmpi.results.compare import sameness
from tests.support.mpi import fedmpi, succeed

OPTIONS = ["--rounds", "1", "--clients", "4", "--cohort", "2", "--local.epochs", "1", "--model", "LogisticRegression"]


def test_facts_about_a_job(tmp_path: Path) -> None:
    """Oracles: this process, its Python and its cores; the user's module is named by an attribute of the file."""
    (tmp_path / "mine.py").write_text(
        "from fedmpi.algorithms.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n"
    )
    output = tmp_path / "a run.h5"
    arguments = ["--algorithm", "mine.Mine", *OPTIONS, "--output", str(output)]
    core = str(min(os.sched_getaffinity(0)))
    python_path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    succeed(fedmpi(3, *arguments, launcher=None, PYTHONPATH=python_path))
    run = results.open(output)
    about = run.environment
    words = shlex.split(about["command"])
    assert words[1:] == ["-m", "fedmpi", *arguments]
    assert Path(words[0]).name.startswith("python")
    assert about["folder"] == os.getcwd()
    assert about["hosts"].splitlines() == [platform.node()] * 3
    assert len(about["cores"].splitlines()) == 3
    assert about["cores"].startswith(core)
    packages = dict(line.split("==") for line in about["packages"].splitlines())
    assert packages["numpy"] == version("numpy")
    assert packages["h5py"] == about["h5py"]
    assert about["mpi_transport"].startswith("ranks 0-2: ")
    assert "mine.py" in run.attributes["user_code"]
    assert len(run.attributes["data_sha256"]) == 64
    assert problems(output) == []


def test_comparing_names_changed_packages_alone(tmp_path: Path) -> None:
    """Oracle: what is changed in a copy. Commands and folders of two runs always differ, and are not listed."""
    files = [tmp_path / "one.h5", tmp_path / "other.h5"]
    for file in files:
        succeed(fedmpi(0, *OPTIONS, "--output", file))
    with h5py.File(files[1], "r+") as file:
        about = file["environment"].attrs
        lines = [line for line in about["packages"].splitlines() if not line.startswith("scipy==")]
        about["packages"] = "\n".join([*lines, "zzz==1"])
        about["python"] = "3.99"
    said = sameness(*map(results.open, files))
    ran_on = next(line for line in said.splitlines() if line.startswith("  ran on"))
    python, scipy = platform.python_version(), version("scipy")
    assert ran_on == f"  ran on    python {python} | 3.99, scipy {scipy} | -, zzz - | 1"
    assert sys.executable not in said
