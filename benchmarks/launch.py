"""Starting the programs that are measured."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path


def mpirun(ranks: int) -> list[str]:
    """What starts this Python on so many ranks."""
    launcher = Path(sys.executable).with_name("mpirun")
    found = str(launcher) if launcher.exists() else shutil.which("mpirun") or "mpirun"
    return [found, "-n", str(ranks), sys.executable]


def output_of(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a program prints; this one ends if that one fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}))
    if done.returncode:
        raise SystemExit(f"{done.stderr[-5000:]}\n{shlex.join(command)} failed ({done.returncode}), see above")
    return done.stdout
