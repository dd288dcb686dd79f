"""`mpirun -n 16 python -m fedmpi`: from the command line to a running experiment."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress

from fedmpi.streams import outlast, put


def main() -> None:
    """Run the experiment that the command line describes, on every rank; rank 0 speaks for all."""
    outlast()
    # Nothing of what is imported is ever garbage, and looking through it again and again delays the start.
    gc.disable()
    try:
        from fedmpi.mpi.world import World
    except (ImportError, RuntimeError) as error:
        from fedmpi.errors import NO_MPI

        put(f"fedmpi: error: {NO_MPI.format(str(error).splitlines()[0])}", "stderr")
        sys.exit(2)

    from fedmpi.command_line import Answered, parse
    from fedmpi.errors import BadInput

    world = World()
    try:
        parsed = None
        with world.agreed(), suppress(Answered):
            parsed = parse(sys.argv[1:], speaks=world.is_server)
        if parsed:
            experiment, config = parsed
            experiment.load()
            gc.freeze()
            gc.enable()
            status = experiment.run(world, config)
            gc.freeze()  # or the interpreter would look through it once more before it ends
            sys.exit(status)
    except BadInput as error:
        if world.is_server:
            put(f"fedmpi: error: {' '.join(str(error).split())}", "stderr")
        sys.exit(2)
    except SystemExit:  # of a job that has been ended
        raise
    except BaseException as error:
        from fedmpi.failure import end_job  # here, because it imports torch, which --help does without

        end_job(world, error, "reading the command line", None)


if __name__ == "__main__":
    main()
