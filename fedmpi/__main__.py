"""`mpirun -n 16 python -m fedmpi`: from the command line to a running experiment."""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from fedmpi.errors import BadInput
from fedmpi.streams import outlast, say

if TYPE_CHECKING:
    from fedmpi.mpi.world import World


def main() -> None:
    """Run the experiment that the command line describes, on every rank, and exit. Rank 0 prints for all."""
    outlast()
    # Imported objects are never garbage, and the garbage collector's repeated search through them delays the start.
    gc.disable()
    status, world = run()
    if world:
        world.end(status)
    gc.freeze()  # or the interpreter would look through it once more before it ends
    sys.exit(status)


def run() -> tuple[int, World | None]:
    """Run the program; returns the exit status and the ranks (None: there is no MPI)."""
    world: World | None = None
    try:
        world = _job()
        return _run(world), world
    except BadInput as error:
        if world is None or world.is_server:
            say(f"fedmpi: error: {' '.join(str(error).split())}", "stderr")
        return 2, world
    except BaseException as error:
        if world is None or world.size > 1:  # the job has been ended
            raise
        from fedmpi.experiment.failure import show

        show(error)
        return 1, world


def _job() -> World | None:
    """The ranks of this job; None: there is no MPI library, and help is asked for, which needs none."""
    from fedmpi.mpi import whole_job

    with suppress(BadInput) if {"-h", "--help"} & set(sys.argv) else nullcontext():
        return whole_job()
    return None


def _run(world: World | None) -> int:
    """Read the command line and run; returns the exit status."""
    from fedmpi.experiment.command_line import HelpPrinted, parse

    experiment = None
    try:
        with world.agreed() if world else nullcontext(), suppress(HelpPrinted):
            experiment, _ = parse(sys.argv[1:], speaks=not world or world.is_server)
    except BadInput:
        raise
    except BaseException as error:
        if not world:
            raise
        from fedmpi.experiment.failure import end_job  # here, because it imports torch, which --help does without

        end_job(world, error, "reading the command line")
    if experiment is None or not world:
        return 0
    experiment.load()
    gc.freeze()
    gc.enable()
    return experiment.complete(world)


if __name__ == "__main__":
    main()
