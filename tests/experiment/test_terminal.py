"""What is printed where the terminal knows little more than ASCII."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.results.made_runs import finished
from tests.support.mpi import fedmpi, mpirun, succeed

ASCII = {"PYTHONIOENCODING": "ascii"}


def test_results_are_shown_in_ascii(tmp_path: Path) -> None:
    files = [finished(tmp_path / f"{seed}.h5", rounds=4, seed=seed) for seed in (1, 2)]
    named = tmp_path / "Lauf für März.h5"
    files[0].rename(named)
    table = succeed(mpirun(0, "-m", "fedmpi.results", "table", named, files[1], **ASCII))
    assert "16.00 +- 0.00" in table
    watched = succeed(mpirun(0, "-m", "fedmpi.results", "watch", named, **ASCII))
    assert "Lauf f?r M?rz.h5" in watched
    assert "_^ 16.00 %" in watched
    assert "?" not in succeed(mpirun(0, "-m", "fedmpi.results", "table", "--help", **ASCII))


def test_a_name_that_is_no_text_is_printed_as_it_is(tmp_path: Path) -> None:
    """As bytes, which is what a terminal gets from ls as well."""
    path: bytes = os.fsencode(tmp_path) + b"/\xff.h5"
    os.rename(finished(tmp_path / "run.h5"), path)
    command: list[str | bytes] = [sys.executable, "-m", "fedmpi.results", "check", path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    assert path in subprocess.check_output(command, env=environment)


def test_a_run_is_told_in_ascii(tmp_path: Path) -> None:
    """With a class that has a name of its own, which is in the summary."""
    (tmp_path / "meins.py").write_text(
        "from fedmpi.algorithms.fedavg import FedAvg\nclass Größe(FedAvg):\n    'Mit Maß.'\n", encoding="utf-8"
    )
    arguments = f"--algorithm meins.Größe --clients 4 --rounds 1 --local.steps 1 --output {tmp_path}/a.h5".split()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    told = succeed(fedmpi(0, *arguments, PYTHONPATH=path, **ASCII))
    assert "experiment  Gr??e, LeNet" in told
