"""Starting real MPI jobs from tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent


def mpirun(
    ranks: int, *arguments: str | Path, launcher: str | None = None, **options: str
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` on so many ranks; 0: without mpirun. Environment variables are given by keyword."""
    return subprocess.run(
        _command(ranks, arguments, launcher or default_launcher()),
        capture_output=True,
        text=True,
        timeout=480,
        env={**environment(), **options},
    )


def start(ranks: int, *arguments: str | Path) -> subprocess.Popen[str]:
    """The same without waiting for the end; standard output is to be read line by line."""
    command = _command(ranks, arguments, default_launcher())
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment())


def fedmpi(
    ranks: int, *arguments: str | Path, launcher: str | None = None, **options: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m fedmpi ARGUMENTS` on so many ranks; 0: without mpirun."""
    return mpirun(ranks, "-m", "fedmpi", *arguments, launcher=launcher, **options)


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    """The standard output of a job that must have gone well."""
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def _command(ranks: int, arguments: tuple[str | Path, ...], launcher: str) -> list[str]:
    python = [sys.executable, *map(str, arguments)]
    return [launcher, "-n", str(ranks), *_root_options(launcher), *python] if ranks else python


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def default_launcher() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    assert found, "mpirun is missing: pip install 'fedmpi[mpich]'"
    return found


def _root_options(launcher: str) -> list[str]:
    """What Open MPI wants to be told before it starts more ranks than cores, or anything as root."""
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
    return ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version or "OpenRTE" in version else []
