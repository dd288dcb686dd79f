"""The job scripts and the settings that come with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fedmpi import results
from fedmpi.command_line import parse
from fedmpi.scheduling import Bernoulli
from fedmpi.training.settings import LocalTraining
from tests.launch import REPOSITORY

JOBS = REPOSITORY / "jobs"
DIGITS = JOBS / "digits.yaml"
#: The options of every row and variant in the tables of papers/README.md.
PAPERS = re.findall(r"^\|[^|`]+\| `(--[^`]+)`", (JOBS / "papers" / "README.md").read_text(), re.MULTILINE)

# Slurm, as far as the script sees it: a list of protocols, and a launcher of SLURM_NTASKS ranks.
SRUN = """#!/usr/bin/env bash
if [[ $1 == --mpi=list ]]; then
    echo "MPI plugin types are..."
    printf '%s\n' none PROTOCOLS
    exit
fi
echo "srun $*" >&2
while [[ $1 == --* ]]; do shift; done
exec mpirun -n "$SLURM_NTASKS" "$@"
"""


def run(script: str, *arguments: str | Path, path: Path | None = None, **variables: str) -> str:
    """Standard error and output of a script that must go well."""
    search = [str(path)] if path else []
    search += [str(Path(sys.executable).parent), os.environ["PATH"]]
    result = subprocess.run(
        ["bash", JOBS / script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": os.pathsep.join(search), "PYTHONPATH": str(REPOSITORY), **variables},
    )
    assert result.returncode == 0, result.stderr
    return result.stderr + result.stdout


@pytest.mark.parametrize("config", sorted(JOBS.rglob("*.yaml")), ids=lambda path: path.name)
def test_settings_are_understood(config: Path) -> None:
    """Oracle: the parser, which knows every option; and YAML's own reader for the number of clients."""
    experiment, _ = parse(["--config", str(config)])
    assert experiment.clients == yaml.safe_load(config.read_text()).get("clients", 100)


@pytest.mark.parametrize("options", PAPERS)
def test_rows_of_the_papers(options: str) -> None:
    """Oracle: the method that the row names, with the paper's protocol."""
    experiment, _ = parse(["--config", str(JOBS / "papers" / "fedftg.yaml"), *options.split()])
    named = dict(zip(options.split()[::2], options.split()[1::2], strict=True))
    assert type(experiment.algorithm).__name__ == named.get("--algorithm", "FedAvg")
    assert type(experiment.sampler) is Bernoulli
    assert (experiment.cohort, experiment.rounds, experiment.partition.alpha) == (  # type: ignore[attr-defined]
        10,
        1000,
        float(named.get("--partition.alpha", 0.6)),
    )
    protocol = LocalTraining(5, None, 50, 0.1, "sgd", 0.0, 1e-3, "exponential", 0.998, 10)
    assert experiment.local == (replace(protocol, steps=50) if "--local.steps" in named else protocol)


def test_the_digits_settings_are_the_defaults() -> None:
    settings = [parse([*options, "--output", "run.h5"])[1] for options in ([], ["--config", str(DIGITS)])]
    assert settings[0] == settings[1]


def test_local(tmp_path: Path) -> None:
    output = tmp_path / "run.h5"
    said = run("local.sh", DIGITS, "3", "--rounds", "1", "--output", output)
    assert "3 ranks" in said
    finished = results.open(output)
    assert (finished.status, finished.settings["rounds"], finished.environment["ranks"]) == ("finished", 1, 3)


@pytest.mark.parametrize(
    ("protocols", "launched"), [("pmi2 pmix", "srun --mpi="), ("cray_shasta", "")], ids=["srun", "mpirun"]
)
def test_slurm(tmp_path: Path, protocols: str, launched: str) -> None:
    """On a make-believe Slurm: srun where it speaks the library's protocol, else mpirun; threads as granted."""
    srun = tmp_path / "srun"
    srun.write_text(SRUN.replace("PROTOCOLS", protocols))
    srun.chmod(0o755)
    output = tmp_path / "run.h5"
    granted = {"SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "4711"}
    said = run("slurm.sbatch", DIGITS, "--rounds", "1", "--output", output, path=tmp_path, **granted)
    assert ("srun --mpi=" in said) == bool(launched)
    environment = results.open(output).environment
    assert (environment["ranks"], environment["threads"], environment["slurm_job_id"]) == (2, 2, "4711")
