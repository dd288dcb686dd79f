"""All that speaks MPI: the ranks of a job and their collectives, failures, deadlines, shared arrays, devices.

May import only from the small files of the package; every folder above may import from here.
Only this folder imports mpi4py.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from fedmpi.errors import NO_MPI, BadInput

if TYPE_CHECKING:
    from fedmpi.mpi.world import World


@cache
def whole_job() -> World:
    """The ranks of this job, one if nothing has launched it. MPI starts with the first call.

    Always the same object, because a process may run many experiments, and MPI knows a limited number of
    communicators.

    Raises:
        BadInput: there is no MPI library.
    """
    from fedmpi.mpi import leftovers
    from fedmpi.mpi.guard import Guard

    guard = Guard()
    guard.start()  # before MPI, whose start waits for all ranks
    try:
        from fedmpi.mpi.world import World
    except (ImportError, RuntimeError) as error:
        raise BadInput(NO_MPI.format(str(error).splitlines()[0])) from None
    world = World(guard=guard)
    if world.size > 1:
        files = world.node.gather(leftovers.mine())
        if files is not None:
            leftovers.keep_list({file for of_rank in files for file in of_rank})
    return world
