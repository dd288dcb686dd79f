"""The job scripts of two sites, on a real Slurm: what they ask for, and site B's as a job of three tasks."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import missing, started
from tests.slurm.test_real_jobs import Site
from tests.support.mpi import REPOSITORY

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SITES = REPOSITORY / "jobs" / "sites"
PAGE = (REPOSITORY / "docs" / "cluster.md").read_text()
#: What Slurm says of each job: what the page has, as far as it does not depend on when the job was submitted.
ASKED = {
    "a_openmpi_gpu": {
        "NumNodes": "4-4",
        "NumTasks": "17",
        "CPUs/Task": "1",
        "TresPerNode": "gres/gpu:4",
        "NtasksPerN:B:S:C": "5:0:*:*",
    },
    "b_mpich_cpu": {"NumNodes": "2-2", "NumTasks": "64", "CPUs/Task": "1", "NtasksPerN:B:S:C": "32:0:*:*"},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with a command `module` and a virtual environment, as the scripts expect."""
    folder = tmp_path_factory.mktemp("slurm")
    with started(folder) as slurm:
        (folder / "site").mkdir()
        made = Site(slurm, folder / "site")
        (made.folder / "bin" / "srun").unlink()
        (made.folder / "bin" / "module").write_text('#!/bin/bash\necho "module $*"\n')
        (made.folder / "bin" / "module").chmod(0o755)
        (made.folder / "venv" / "bin").mkdir(parents=True)
        # What the module of an MPI library does.
        library = f"export LD_LIBRARY_PATH={Path(sys.prefix, 'lib')}\n"
        (made.folder / "venv" / "bin" / "activate").write_text(library)
        yield made


@pytest.mark.parametrize("name", ASKED)
def test_what_a_site_asks_for(name: str, site: Site) -> None:
    """On nodes that are not there yet. Oracle: Slurm, and what the page shows of its answer."""
    place = "--partition=far", f"--chdir={site.folder}"
    number = site.user().call("sbatch", "--parsable", *place, SITES / f"{name}.sbatch", "config.yaml").strip()
    about = site.slurm.about(number)
    about["TresPerNode"] = about.get("TresPerNode", "").replace("gres:", "gres/")  # newer Slurm prints the latter
    print(site.slurm.call("scontrol", "show", "job", number))
    site.slurm.call("scancel", number)
    assert about["JobState"] == "PENDING"
    assert {key: about[key] for key in ASKED[name]} == ASKED[name]
    block = PAGE[PAGE.index(f"{name}.sbatch") :]
    shown = re.search(r"```\n(NumNodes=[^`]*)```", block)
    assert shown, "the page shows a part of `scontrol show job`"
    on_page = dict(word.split("=", 1) for word in shown[1].split())
    assert on_page == {key: about[key] for key in on_page}
    assert ASKED[name].items() <= on_page.items()


@pytest.mark.slow
def test_a_job_of_site_b(site: Site) -> None:
    """Three tasks on one node. Oracle: the doctor's lines and the results file. Site A needs PMIx and GPUs."""
    site.hold.unlink(missing_ok=True)
    few = "--nodes=1", "--ntasks=3", "--ntasks-per-node=3", "--partition=all", "--time=30"
    options = "--rounds", "2", "--clients", "8", "--cohort", "4", "--model", "LogisticRegression"
    job = site.submit(
        *few, "--", "config.yaml", *options, script="sites/b_mpich_cpu.sbatch", by_mpirun=True
    )  # finds `module`
    run = job.await_end()
    said = (site.folder / f"fedmpi-{job.number}.log").read_text()
    print(said)
    assert run.status == "finished"
    assert run.environment["ranks"] == 3
    assert said.startswith("module load python mpich\n")
    assert re.search(r"^3 ranks on 1 node, 2 of them for training$", said, re.MULTILINE)
    assert f"\nSlurm job {job.number}: 3 tasks, 1 core per task, " in said
    assert "no problem found\n" in said
