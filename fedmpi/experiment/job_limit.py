"""The time limit of the job of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from fedmpi.streams import say


def job_end(environment: Mapping[str, str], tells: bool = False) -> float | None:
    """The time at which Slurm ends the job, in seconds since 1970; None: unknown, or no limit.

    Args:
        tells: whether to print a line if the variable is not a time, or a time in the past (from a job that has
            ended).
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
