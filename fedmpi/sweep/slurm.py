"""The runs of a sweep as one Slurm array."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fedmpi.errors import BadInput
from fedmpi.streams import say
from fedmpi.sweep.plan import Job, Plan

SCRIPT = Path("jobs/slurm_array.sbatch")


def submit(plan: Plan, jobs: Sequence[Job], ranks: int | None, further: Sequence[str], only_show: bool) -> int:
    """Submit jobs as one array of `jobs/slurm_array.sbatch`, for which a list is written into the sweep's folder.

    The name of the list has a checksum of its contents. So a list that a waiting array will read is never changed.

    Args:
        ranks: of each job; None: as in the job script.
        further: further options of sbatch, which override others.
        only_show: whether the list and the command are printed, and nothing is written or submitted.

    Returns:
        The exit status: 0, or that of sbatch.

    Raises:
        BadInput: the job script or sbatch is missing, or the list cannot hold the options of a job.
    """
    if not SCRIPT.exists():
        raise BadInput(f"--slurm: {SCRIPT} is missing: use the folder of fedmpi's source code, which has jobs/")
    for word in (word for job in jobs for word in (job.name, *job.arguments)):
        if re.search(r"\s", word):
            raise BadInput(f"--slurm: {word}: must have no spaces, because words of a list are separated by them")
    lines = "".join(f"{job.name} {' '.join(job.arguments)}\n" for job in jobs)
    name = f"{plan.path.stem}-{hashlib.sha256(lines.encode()).hexdigest()[:8]}.list"
    sbatch = ["sbatch", f"--job-name={plan.path.stem}", f"--array=0-{len(jobs) - 1}"]
    sbatch += [f"--output={plan.folder}/slurm-%A_%a.log"]
    sbatch += [f"--ntasks-per-node={ranks}"] if ranks else []
    command = [*sbatch, *further, str(SCRIPT), str(plan.folder / name)]
    if only_show:
        say(f"{lines}{shlex.join(command)}")
        return 0
    if not shutil.which("sbatch"):
        raise BadInput("--slurm: sbatch was not found")
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / name).write_text(lines)
    return subprocess.run(command).returncode
