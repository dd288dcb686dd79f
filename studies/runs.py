"""Many experiments, each a process of its own on one rank, and the table of their files."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from tqdm import tqdm

from fedmpi import results
from fedmpi.errors import BadInput


def train_all(experiments: Mapping[Path, str], rounds: int) -> bool:
    """Run experiments, as many at a time as there are cores; one that is done with as many rounds is not repeated.

    Args:
        experiments: results file -> options.
        rounds: of each.

    Returns:
        Whether all went well; what those that failed printed, is printed.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_train, experiments.keys(), experiments.values(), repeat(rounds))
        problems = [problem for problem in tqdm(found, total=len(experiments), unit="run") if problem]
    for problem in problems:
        print(problem, file=sys.stderr)
    return not problems


def _train(path: Path, options: str, rounds: int) -> str:
    """Run one experiment unless it is there; what it printed if it failed."""
    if is_done(path, rounds):
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fedmpi", *shlex.split(options), "--rounds", str(rounds)]
    command += ["--output", str(path), "--overwrite"]
    found = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return f"{path}: {found.stderr.strip()}" if found.returncode else ""


def is_done(path: Path, rounds: int) -> bool:
    """Whether the file of a run of so many rounds is there, and the run has finished."""
    try:
        run = results.open(path)
    except BadInput:
        return False
    return run.status == "finished" and run.settings["rounds"] == rounds
