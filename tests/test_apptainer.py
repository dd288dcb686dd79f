"""The image's definition and its job script. Oracle: a stand-in for apptainer, which says what it is asked for.

The image itself is built only where apptainer is at hand, and if pytest is asked for slow tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedmpi import results
from tests.support.mpi import REPOSITORY
from tests.test_jobs import DIGITS, JOBS, SRUN, environment

DEFINITION = (JOBS / "apptainer.def").read_text()
SECTIONS = dict(re.findall(r"^%(\w+)\n((?:(?!^%).*\n?)*)", DEFINITION, re.MULTILINE))
#: It prints its arguments before those of Python, and runs Python with the variables that it was given by --env.
APPTAINER = """#!/usr/bin/env bash
[[ $1 == exec ]] || exit 9
options=() given=()
while [[ $1 != *.sif ]]; do
    options+=("$1")
    [[ $1 == --env ]] && given+=("$2")
    shift
done
echo "apptainer ${options[*]} $1 $2" >>"$TOLD"
exec env "${given[@]}" PYTHON "${@:3}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the jobs and an image, and in its folder bin an apptainer and an srun."""
    (tmp_path / "jobs").symlink_to(JOBS)
    (tmp_path / "bin").mkdir()
    programs = {"apptainer": APPTAINER.replace("PYTHON", sys.executable), "srun": SRUN.replace("PROTOCOLS", "pmi2")}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "fedmpi.sif").touch()
    return tmp_path


def submitted(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The job script, as a job of two tasks."""
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711", "TOLD": str(folder / "told"), **variables}
    return subprocess.run(
        ["bash", "jobs/apptainer.sbatch", DIGITS, "--rounds", "1", *options],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env=environment(folder / "bin", **job),
    )


def test_a_job_runs_in_the_image(folder: Path) -> None:
    """With data and with the cluster's MPI; no GPU is passed on, unless the node has one."""
    (folder / "data.sqsh").touch()
    library = next(Path(sys.prefix, "lib").glob("libmpi.so.[14]*"), None)
    given = {"FEDMPI_DATA": f"{folder}/data.sqsh", **({"FEDMPI_MPI": sys.prefix} if library else {})}
    made = submitted(folder, "--output", "runs/run.h5", FEDMPI_GPU_DEVICE=str(folder / "nothing"), **given)
    assert made.returncode == 0, made.stdout + made.stderr
    assert results.open(folder / "runs" / "run.h5").environment["ranks"] == 2
    told = (folder / "told").read_text().splitlines()
    mpi = f" --bind {sys.prefix} --env MPI4PY_LIBMPI={library}" if library else ""
    binds = f"--bind {folder} --pwd {folder} --bind {folder}/data.sqsh:/data:image-src=/{mpi}"
    assert set(told) == {f"apptainer exec {binds} {folder}/fedmpi.sif python"}
    assert len(told) == 5, "the name of the results file, the library's name, two ranks, and how the run ended"


def test_a_folder_without_mpi(folder: Path) -> None:
    made = subprocess.run(
        [JOBS / "apptainer" / "python"],
        capture_output=True,
        text=True,
        env=environment(folder / "bin", FEDMPI_IMAGE="x.sif", FEDMPI_MPI=str(folder)),
    )
    assert (made.returncode, made.stderr.count("\n")) == (2, 1)
    assert made.stderr.startswith(f"FEDMPI_MPI = {folder}: has neither libmpi.so.12 ")


def test_gpus_are_passed_on(folder: Path) -> None:
    made = subprocess.run(
        [JOBS / "apptainer" / "python", "--version"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(
            folder / "bin", TOLD=str(folder / "told"), FEDMPI_IMAGE="other.sif", FEDMPI_GPU_DEVICE="/dev/null"
        ),
    )
    assert made.stdout.startswith("Python 3"), made.stderr
    assert (folder / "told").read_text() == f"apptainer exec --bind {folder} --pwd {folder} --nv other.sif python\n"


@pytest.mark.parametrize("variable", ["FEDMPI_IMAGE", "FEDMPI_DATA"])
def test_a_file_that_is_missing(folder: Path, variable: str) -> None:
    made = submitted(folder, **{variable: "nowhere"})
    assert made.returncode == 2
    assert made.stderr.startswith(f"{variable} = nowhere: ")
    assert made.stderr.count("\n") == 1
    assert not (folder / "told").exists()


def test_the_definition(tmp_path: Path) -> None:
    """Its files exist, its scripts are shell, and its arguments are those that it uses."""
    assert SECTIONS.keys() == {"arguments", "files", "post", "environment", "runscript", "test", "labels"}
    for line in SECTIONS["files"].splitlines():
        if line.strip():
            source, target = line.split()
            assert (REPOSITORY / source).exists(), source
            assert target == f"/opt/fedmpi/{source}"
    needed = {"fedmpi", "pyproject.toml", "README.md", "LICENSE"}
    assert needed <= {line.split()[0] for line in SECTIONS["files"].splitlines() if line.strip()}
    arguments = dict(line.strip().split("=") for line in SECTIONS["arguments"].splitlines() if line.strip())
    assert set(re.findall(r"{{ (\w+) }}", DEFINITION)) == arguments.keys()
    extras = (REPOSITORY / "pyproject.toml").read_text()
    assert f"\n{arguments['mpi']} = [" in extras
    for name in ("post", "environment", "runscript", "test"):
        script = tmp_path / name
        script.write_text(re.sub(r"{{ (\w+) }}", lambda found: arguments[found[1]], SECTIONS[name]))
        subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("apptainer"), reason="needs apptainer")
def test_the_image_is_built(tmp_path: Path) -> None:
    """Its %test trains a round."""
    image = tmp_path / "fedmpi.sif"
    subprocess.run(["apptainer", "build", image, JOBS / "apptainer.def"], cwd=REPOSITORY, check=True)
    assert subprocess.run(["apptainer", "exec", image, "python", "-m", "fedmpi", "--help"]).returncode == 0


def test_the_conda_environment() -> None:
    """No MPI of conda's; fedmpi from the folder above, where pip finds a project."""
    made = yaml.safe_load((JOBS / "conda.yml").read_text())
    *plain, by_pip = made["dependencies"]
    assert not [name for name in plain if "mpi" in name]
    assert by_pip == {"pip": ["--editable .."]}
    assert (JOBS / ".." / "pyproject.toml").exists()
