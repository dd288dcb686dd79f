"""Ranks that each are a job of their own want one output at once: mpirun -n N races.py FOLDER TRIES.

FOLDER/interrupted.h5 and its checkpoint are of a run with OPTIONS that goes on. Every rank asserts what must hold.
"""

import random
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from mpi4py import MPI

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.ownership import InUse, Lock
from fedmpi.mpi.world import World
from fedmpi.results.owner import SILENCE, Owner
from fedmpi.results.paths import checkpoint_beside, lock_beside
from tests.experiment.test_ownership import OPTIONS, leave

comm, alone = MPI.COMM_WORLD, World(MPI.COMM_SELF)
ME = Owner.here()
#: What is gone: a process of this node, one of another node that is silent, and one whose record is damaged.
GONE = [(replace(ME, pid=2**22 + 1), 0.0), (replace(ME, boot="another"), 2 * SILENCE), (Owner(), 2 * SILENCE)]


def take(output: Path, tries: int) -> None:
    """Of those that take a lock at once, one gets it, and the others name it."""
    for attempt in range(tries):
        if comm.rank == 0:
            for owner, silence in GONE[: attempt % 4]:
                leave(output, owner, silence)
            if attempt % 5 == 0:
                lock_beside(output).mkdir(exist_ok=True)  # by one that was killed while it gave the lock back
        comm.barrier()
        lock, said = Lock(), ""
        try:
            lock.take(output)
        except InUse as error:
            said = str(error)
        told = comm.allgather((ME.pid, said))
        winners = [pid for pid, text in told if not text]
        assert len(winners) == 1, told
        assert all(f"is in use by process {winners[0]} on " in text for _, text in told if text), told
        assert len(list(output.parent.iterdir())) == 1
        comm.barrier()
        lock.release()
        comm.barrier()
        assert not list(output.parent.iterdir())
        comm.barrier()


def run(arguments: list[str]) -> tuple[str, float, float]:
    """What was wrong, and when the first round ended and the last one."""
    ended = [0.0]
    experiment, config = parse(arguments, speaks=False)
    try:
        ended = [time.monotonic() for _ in experiment.outcomes(alone, config)] or ended
    except BadInput as error:
        return str(error), 0.0, 0.0
    assert experiment.exit_status == 0
    return "", ended[0], ended[-1]


def jobs(kind: str, folder: Path, wanted: dict[int, str], tries: int) -> int:
    """Two jobs of this kind at once; how often one was refused.

    Args:
        wanted: the sha256 of the run with each seed.
    """
    refused, chance = 0, random.Random(kind)
    for _ in range(tries):
        output, seed = folder / "race" / "run.h5", 1
        if comm.rank == 0:
            output.parent.mkdir()
            if kind in ("resume", "take over"):
                shutil.copy(folder / "interrupted.h5", output)
                shutil.copy(checkpoint_beside(folder / "interrupted.h5"), checkpoint_beside(output))
            if kind == "take over":
                leave(output, *GONE[0])
        more = ["--resume"] if kind in ("resume", "take over") else []
        if kind in ("start", "overwrite"):
            seed = comm.rank + 1
        if kind == "overwrite" and comm.rank:
            more = ["--overwrite"]
        comm.barrier()
        if "--overwrite" in more:
            while not lock_beside(output).exists():
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
        told = comm.allgather(
            (ME.pid, seed, *run([*OPTIONS.split(), "--seed", str(seed), "--output", str(output), *more]))
        )
        comm.barrier()
        last = results.open(output)
        over = [one for one in told if not one[2]]
        assert last.status == "finished"
        assert last.weights_sha256 in {wanted[seed] for _, seed, *_ in over}, told
        assert last.weights_sha256 == wanted[last.attributes["seed"]]
        assert last.rounds["round"].tolist() == list(range(1, 7))
        if len(over) == 1:
            refused += 1
            (said,) = [one[2] for one in told if one[2]]
            may_exist = kind == "start" and "exists already; give --overwrite" in said
            assert may_exist or f"is in use by process {over[0][0]} on " in said, told
        elif kind == "overwrite":
            (_, _, _, *one), (_, _, _, *other) = over
            assert one[1] < other[0] or other[1] < one[0], told
        else:
            assert kind != "start", told
            assert [0.0, 0.0] in [times for _, _, _, *times in over], told  # one came when the other had finished
        assert [path.name for path in output.parent.iterdir()] == ["run.h5"]
        comm.barrier()
        if comm.rank == 0:
            shutil.rmtree(output.parent)
        comm.barrier()
    return refused


def main(folder: Path, tries: int) -> None:
    locks = folder / "locks"
    if comm.rank == 0:
        locks.mkdir()
    comm.barrier()
    take(locks / "run.h5", 20 * tries)
    wanted = {}
    for seed in (1, 2):
        output = folder / f"{comm.rank}-{seed}.h5"
        assert not run([*OPTIONS.split(), "--seed", str(seed), "--output", str(output)])[0]
        wanted[seed] = str(results.open(output).weights_sha256)
    for kind in ("start", "overwrite", "resume", "take over"):
        refused = jobs(kind, folder, wanted, tries)
        if comm.rank == 0:
            print(f"{kind}: {refused} of {tries} refused")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
