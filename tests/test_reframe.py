"""The tests of ReFrame, by ReFrame itself, on this machine. Oracle: its report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.mpi import REPOSITORY, environment

FOLDER = REPOSITORY / "jobs" / "reframe"
REFRAME = shutil.which("reframe", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

pytestmark = pytest.mark.skipif(not REFRAME, reason="needs ReFrame: pip install reframe-hpc")


def ran(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status of ReFrame, and by name what its report says of each test."""
    report = folder / "report.json"
    files = "--config-file", FOLDER / "local.py", "--checkpath", FOLDER / "checks.py", "--prefix", folder
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    made = subprocess.run(
        [str(REFRAME), *map(str, files), "--report-file", str(report), "--run", *options],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**environment(), "PATH": path, "HOME": str(folder)},
    )
    assert report.exists(), made.stdout + made.stderr
    (session,) = json.loads(report.read_text())["runs"]
    return made.returncode, {case["name"]: case for case in session["testcases"]}


def test_all_is_well(tmp_path: Path) -> None:
    status, cases = ran(tmp_path, "--setvar", "ranks=2")
    assert status == 0
    assert {name: case["result"] for name, case in cases.items()} == {"Doctor": "pass", "Exchange": "pass"}
    found = {name: sorted(key.rpartition(":")[2] for key in case["perfvalues"]) for name, case in cases.items()}
    assert found == {"Doctor": ["broadcast", "mean"], "Exchange": ["fedmpi", "plain_mpi"]}


def test_what_fails(tmp_path: Path) -> None:
    """A problem that the doctor finds, and an exchange that is slower than expected."""
    options = (
        "--setvar",
        "Doctor.executable_opts=-m,fedmpi.doctor,--threads,999",
        "--setvar",
        "Exchange.expected_ms=1e-9",
    )
    status, cases = ran(tmp_path, *options, "--setvar", "ranks=2")
    assert status == 1
    assert {name: (case["result"], case["fail_phase"]) for name, case in cases.items()} == {
        "Doctor": ("fail", "sanity"),
        "Exchange": ("fail", "performance"),
    }
