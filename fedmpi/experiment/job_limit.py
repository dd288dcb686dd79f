"""When the job ends in which a run takes place."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from fedmpi.streams import say


def job_end(environment: Mapping[str, str], tells: bool = False) -> float | None:
    """When Slurm ends the job, in seconds since 1970; None: never, or it is not known.

    Args:
        tells: whether it is said where the variable is no time, or one of a job that ended before this program
            began, as in a shell that has outlived its job.
    """
    text = environment.get("SLURM_JOB_END_TIME", "")
    try:
        end = float(text)
    except ValueError:
        end = math.nan
    if end > time.time():
        return end
    if text and tells:
        reason = "is not a number" if math.isnan(end) else "has passed, so it is not the limit of this job"
        say(f"ignoring SLURM_JOB_END_TIME = {text}: it {reason}")
    return None
