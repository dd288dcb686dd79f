"""The end of a job after an error: one report on rank 0, and a results file with the status failed."""

from __future__ import annotations

import traceback
from typing import NoReturn

import torch

from fedmpi import streams
from fedmpi.errors import BadInput, Diverged
from fedmpi.experiment.ownership import Lock
from fedmpi.experiment.recording import Recorder
from fedmpi.mpi.failures import RemoteFailure, Silence
from fedmpi.mpi.meeting import RanksDiffer
from fedmpi.mpi.segments import TooLittleMemory
from fedmpi.mpi.world import World


def end_job(
    world: World, error: BaseException, where: str, recorder: Recorder | None = None, lock: Lock | None = None
) -> NoReturn:
    """Report an error once and end all ranks with exit status 1.

    Rank 0 writes the results so far, with status = failed, before it prints the report: its own, or that of the rank
    whose failure was reported first. On a single rank the caller may continue (a notebook, for example). The report
    then has no traceback, and the error is raised again.

    Args:
        recorder: writes the results; None: there are none so far.
        lock: of the results file; it is released. None: there is none so far.
    """
    world.guard.begin_end()
    is_alone, is_silent = world.size == 1, isinstance(error, Silence)
    report = str(error) if isinstance(error, RemoteFailure) else _report(world, error, where, not is_alone)
    note = world.failures.note(where, world.meetings) if is_silent else ""
    if not world.is_server and is_silent:
        world.failures.report_silence(note, unanswered=report if world.stands_in else "")
    if not world.is_server:
        world.failures.report(report)
    if is_silent:
        report = world.failures.who_is_late(note)
    else:
        world.failures.announce_end()
    kept = ""
    try:
        if recorder and recorder.is_open:
            recorder.finish("failed")
            kept = f"\nThe results so far are in {recorder.path}"
    except OSError as problem:
        kept = f"\nThe results could not be written: {problem}"
    if lock:
        lock.release()
    report += kept
    if is_alone:
        streams.say(report, "stderr")
        raise error
    world.failures.announce_end()
    world.failures.abort(report)


def show(error: BaseException) -> None:
    """Print the traceback of an error that `end_job` has raised again, if it says more than the report."""
    if not isinstance(error, (Diverged, torch.cuda.OutOfMemoryError)):
        traceback.print_exception(error)


def _report(world: World, error: BaseException, where: str, traced: bool) -> str:
    headline = f"fedmpi: failed on rank {world.rank} of {world.size}: {where}"
    if isinstance(error, Silence):
        limit, host = world.guard.exceeded, world.hosts[0]
        return f"{headline}: rank 0 on {host} does not answer within the deadline of {limit:.0f} s (--deadline)"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        wanted = str(error).split(". GPU")[0].removeprefix("CUDA out of memory. ")
        smaller = "lower --local.vectorize or --local.batch_size (--local.accumulate keeps the size of a step)"
        remedy = f"{smaller}, or start fewer ranks per GPU"
        return f"{headline}: the GPU has too little memory ({wanted}); {remedy}"
    if isinstance(error, (BadInput, Diverged, RanksDiffer, TooLittleMemory)):
        return f"{headline}: {error}"
    return f"{headline}\n{''.join(traceback.format_exception(error)).rstrip()}" if traced else headline
