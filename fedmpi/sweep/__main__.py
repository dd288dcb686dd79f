"""`python -m fedmpi.sweep GRID.yaml`: run a grid of settings, or a list of runs, with several seeds; compare them.

The same command continues: finished runs are skipped, and all others are started or continued. Exit status 1: runs
have not finished; 130 or 85: runs were interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedmpi.errors import BadInput
from fedmpi.streams import outlast, say
from fedmpi.sweep.local import Runs, command
from fedmpi.sweep.plan import read
from fedmpi.sweep.report import report
from fedmpi.sweep.slurm import submit


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns the exit status.

    Args:
        arguments: the command line, without the program's name. Those after -- are options of sbatch.
    """
    outlast()
    own, further = list(arguments), list[str]()
    if "--" in own:
        at = own.index("--")
        own, further = own[:at], own[at + 1 :]
    try:
        options = _parser().parse_args(own)
        if further and not options.slurm:
            raise BadInput("options after -- are those of sbatch, and need --slurm")
        return _run(options, further)
    except BadInput as error:
        say(f"fedmpi.sweep: error: {error}", "stderr")
        return 2
    except KeyboardInterrupt:  # before the first run, or after the last
        return 130


def _run(options: argparse.Namespace, further: Sequence[str]) -> int:
    plan = read(options.path, options.seeds, options.output)
    by_setting = plan.jobs()
    jobs = [job for of_setting in by_setting for job in of_setting]
    for job in jobs if not options.report else ():
        job.check_code()
    unfinished = [job for job in jobs if not job.finished()]
    waiting = [job for job in unfinished if not job.is_running()]
    if not options.dry_run:
        done, running = len(jobs) - len(unfinished), len(unfinished) - len(waiting)
        counts = f"{done} finished, {running} running, {len(waiting)} to be started or continued"
        say(f"settings: {len(plan.settings)}; seeds: {len(plan.seeds)}; runs: {counts}")
    if options.slurm:
        return submit(plan, waiting, options.ranks, further, options.dry_run) if waiting else 0
    if options.local and options.dry_run:
        for job in waiting:
            say(shlex.join(command(job, options.ranks or 1)))
        return 0
    if options.local and (status := Runs(waiting, options.local, options.ranks or 1).complete()) > 1:
        return status
    runs = [[run for job in of_setting if (run := job.finished())] for of_setting in by_setting]
    for line in report(plan.settings, runs, len(plan.seeds)):
        say(line)
    return int(sum(map(len, runs)) < len(jobs))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m fedmpi.sweep", allow_abbrev=False, description=__doc__)
    add = parser.add_argument
    add("path", type=Path, metavar="GRID.yaml|NAME.list", help="a grid of settings, or a list of runs")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--local", type=_count, metavar="K", help="run on this machine, K runs at a time")
    how.add_argument(
        "--slurm",
        action="store_true",
        help="submit one Slurm array (jobs/slurm_array.sbatch); options after -- are given to sbatch",
    )
    how.add_argument("--report", action="store_true", help="only compare the runs that have finished")
    add(
        "--ranks",
        type=_count,
        metavar="N",
        help="MPI ranks per run (default: 1; with --slurm as the job script says)",
    )
    add("--seeds", type=int, nargs="+", metavar="SEED", help="seeds (default: those of the grid file, else 0)")
    add("--output", type=Path, metavar="FOLDER", help="folder of the results files (default: runs/NAME)")
    add("--dry_run", action="store_true", help="only print what would be run or submitted")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
