"""The job scripts and the settings that come with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmpi import results
from fedmpi.algorithms.fedgen import FedGen
from fedmpi.command_line import parse
from fedmpi.generators.features import FeatureGenerator
from fedmpi.scheduling import Bernoulli
from fedmpi.training.settings import LocalTraining
from tests.launch import REPOSITORY

JOBS = REPOSITORY / "jobs"
DIGITS = JOBS / "digits.yaml"
#: The rows of the lists for arrays: name, settings, options.
LISTED = [line.split() for path in sorted(JOBS.rglob("*.list")) for line in path.read_text().splitlines()]
LISTED = [words for words in LISTED if words and words[0] != "#"]
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


def run(
    script: str, *arguments: str | Path, path: Path | None = None, folder: Path | None = None, **variables: str
) -> str:
    """Standard error and output of a script that must go well."""
    search = [str(path)] if path else []
    search += [str(Path(sys.executable).parent), os.environ["PATH"]]
    result = subprocess.run(
        ["bash", JOBS / script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
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


def test_lists() -> None:
    """Oracles: the parser; the method and the data or model that a name names; the widths of FedFTG's generators.

    Those of its tables 1(b) and 2(b) for features: the latter are the images' height times width.
    """
    generators = {}
    for name, config, *options in LISTED:
        experiment, _ = parse(["--config", str(REPOSITORY / config), *options])
        settings, _, method = name.partition("-")
        algorithm = experiment.algorithm
        assert type(algorithm).__name__.lower() == method.partition("_")[0]
        said = "".join(f"{type(p).__name__}{getattr(p, 'root', '')}" for p in (experiment.dataset, experiment.model))
        assert settings.replace("_", "") in re.sub(r"\W", "", said).lower()
        if isinstance(algorithm, FedGen) and isinstance(algorithm.generator, FeatureGenerator):
            made = algorithm.generator
            generators[settings] = made.noise, made.branch, made.hidden
    assert len({name for name, *_ in LISTED}) == len(LISTED)
    table_1 = {"cifar10": 100, "resnet34": 100, "cifar100": 256}
    table_2 = {"vgg11": (100, 32), "tiny_imagenet": (256, 64), "mio_tcd": (256, 112), "compcars": (256, 112)}
    expected: dict[str, Any] = {name: (noise, 4096, (8192,)) for name, noise in table_1.items()}
    assert generators == expected | {name: (noise, s * s, (s * s, s * s)) for name, (noise, s) in table_2.items()}


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
    said = run("slurm.sbatch", DIGITS, "--rounds", "1", "--output", output, path=tmp_path, folder=None, **granted)
    assert ("srun --mpi=" in said) == bool(launched)
    environment = results.open(output).environment
    assert (environment["ranks"], environment["threads"], environment["slurm_job_id"]) == (2, 2, "4711")


def test_slurm_array(tmp_path: Path) -> None:
    """Task 3 of two lines with two seeds each is the second line with seed 1; later options win; one file a task."""
    (tmp_path / "jobs").symlink_to(JOBS)
    listed = tmp_path / "two.list"
    listed.write_text(f"# two rows\n\nfirst {DIGITS}\n  second {DIGITS} --rounds 9 --algorithm FedProx\n")
    granted = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "4714", "SLURM_ARRAY_TASK_ID": "3"}
    run("slurm_array.sbatch", listed, "2", "--rounds", "1", "--clients", "20", path=None, folder=tmp_path, **granted)
    made = results.open(tmp_path / "runs" / "two" / "second-1.h5")
    assert (made.attributes["algorithm"], made.settings["seed"], made.settings["rounds"]) == ("FedProx", 1, 1)
    assert [path.name for path in (tmp_path / "runs" / "two").iterdir()] == ["second-1.h5"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "one.list with 3 seeds needs sbatch --array=0-2"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "one.list with 3 seeds ends with task 2"),
    ],
)
def test_an_array_of_the_wrong_length(task: dict[str, str], message: str, tmp_path: Path) -> None:
    """Oracle: one line that says how long it is."""
    listed = tmp_path / "one.list"
    listed.write_text(f"only {DIGITS}\n")
    failed = subprocess.run(
        ["bash", JOBS / "slurm_array.sbatch", listed, "3"], capture_output=True, text=True, env={**os.environ, **task}
    )
    assert failed.returncode
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
