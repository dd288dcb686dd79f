"""On what a run took place: hardware, libraries, job; kept as /environment in the results."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedmpi.mpi.world import World, mpi_version


def describe(world: World, device: torch.device) -> dict[str, Any]:
    """Facts about the job, as attributes; a collective."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    places = [place.split("\n") for place in world.gather_text(f"{platform.node()}\n{name}")]
    return {
        "ranks": world.size,
        "hosts": [host for host, _ in places],
        "devices": [device for _, device in places],
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "mkl_cbwr": os.environ.get("MKL_CBWR"),
        "python": platform.python_version(),
        **libraries(),
        "mpi4py": version("mpi4py"),
        "h5py": version("h5py"),
        "mpi": mpi_version(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "git_revision": _git_revision(),
    }


def libraries() -> dict[str, str]:
    """Versions of those on which the bits of results depend."""
    return {"torch": str(torch.__version__), "numpy": version("numpy")}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _git_revision() -> str | None:
    """The revision of fedmpi's own sources, if they are a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
