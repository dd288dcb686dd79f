"""On what a run took place: command, hardware, libraries, job; kept as /environment in the results."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from email.parser import HeaderParser
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

from fedmpi.mpi.devices import gpu_uuid
from fedmpi.mpi.transport import by_ranks, transport
from fedmpi.mpi.world import World, mpi_version
from fedmpi.options import spans


def describe(world: World, device: torch.device) -> dict[str, Any]:
    """Facts about the job, as attributes on rank 0, and nothing on other ranks; a collective.

    Args:
        world: the ranks, which have exchanged messages.
        device: the one that this rank computes on.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    mine = {
        "hosts": platform.node(),
        "devices": name,
        "gpus": f"{device} {gpu_uuid(device)}".rstrip() if device.type == "cuda" else "",
        "cores": spans(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else "",
        "transport": transport(),
    }
    ranks = [json.loads(text) for text in world.gather_text(json.dumps(mine))]
    if not world.is_server:
        return {}  # a thousand ranks should not all look for packages in a shared folder
    each = {key: [rank[key] for rank in ranks] for key in mine}
    return {
        "ranks": world.size,
        "hosts": each["hosts"],
        "devices": each["devices"],
        **{key: each[key] if any(each[key]) else None for key in ("gpus", "cores")},
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "mkl_cbwr": os.environ.get("MKL_CBWR"),
        "command": _text(shlex.join(sys.orig_argv)),
        "folder": _folder(),
        "python": platform.python_version(),
        **libraries(),
        "mpi4py": version("mpi4py"),
        "h5py": version("h5py"),
        "packages": _packages(),
        "mpi": mpi_version(),
        "mpi_transport": by_ranks(each["transport"]),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "git_revision": _git_revision(),
    }


def libraries() -> dict[str, str]:
    """Versions of those on which the bits of results depend."""
    return {"torch": str(torch.__version__), "numpy": version("numpy")}


def _packages() -> list[str]:
    """All that are installed, as name==version.

    Only the head of their metadata is parsed, because the long descriptions below it take five times as long.
    """
    parse = HeaderParser().parsestr
    found = set()
    for package in distributions():
        text = package.read_text("METADATA") or package.read_text("PKG-INFO") or ""
        head = parse(text.partition("\n\n")[0])
        if head["Name"]:
            found.add(f"{head['Name']}=={head['Version']}")
    return sorted(found)


def _text(name: str) -> str:
    """The same text, where bytes that are no UTF-8 are escaped; the locale's encoding does not matter."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _folder() -> str | None:
    try:
        return _text(os.getcwd())
    except FileNotFoundError:  # it has been removed
        return None


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
