"""Starting real MPI jobs from tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def mpirun(
    ranks: int, *arguments: str | Path, launcher: str | None = None, **options: str
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` on so many ranks; 0: without mpirun. Environment variables are given by keyword."""
    python = [sys.executable, *map(str, arguments)]
    launcher = launcher or _launcher()
    command = [launcher, "-n", str(ranks), *_root_options(launcher), *python] if ranks else python
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path, **options},
    )


def fedmpi(
    ranks: int, *arguments: str | Path, launcher: str | None = None, **options: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m fedmpi ARGUMENTS` on so many ranks; 0: without mpirun."""
    return mpirun(ranks, "-m", "fedmpi", *arguments, launcher=launcher, **options)


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    """The standard output of a job that must have gone well."""
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def _launcher() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    assert found, "mpirun is missing: pip install 'fedmpi[mpich]'"
    return found


def _root_options(launcher: str) -> list[str]:
    """What Open MPI wants to be told before it starts more ranks than cores, or anything as root."""
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
    return ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version or "OpenRTE" in version else []
