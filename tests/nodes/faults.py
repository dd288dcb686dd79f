"""What becomes of a job when something goes wrong on one of its nodes: python -m tests.nodes.faults

Prints a table: what happened; seconds from then until all ranks are gone, and until `mpirun` is; how many processes
are left then, its daemons and what stands for ssh included; the exit status of `mpirun`; the results file's status;
how many reports there were; what `--resume` on the same nodes ends with.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py

from fedmpi import results
from fedmpi.results.owner import SILENCE
from fedmpi.results.paths import lock_beside
from tests.nodes.cluster import Cluster, Job, Mpi, Node, missing, until
from tests.support.mpi import REPOSITORY, environment, fedmpi, succeed

PROGRAMS = REPOSITORY / "tests" / "jobs"
#: On each node: 5 in all, two of them on the node that things happen to, and one that is a node's only one.
RANKS = (2, 2, 1)
#: In which round things happen.
STRUCK = 4
OPTIONS = (
    "--algorithm told.Told --clients 12 --rounds 40 --model LogisticRegression --local.epochs 1"
    " --checkpoint.every_rounds 2 --evaluate_every 10"
)
#: Seconds until a job has reached a round.
LONGEST_START = 120.0
#: Seconds until a resumed run is over.
LONGEST_RESUME = 120.0
#: Seconds that daemons may take to end after `mpirun`.
LINGERING = 2.0
#: Seconds for which a node is away that comes back.
AWAY = 5.0
#: How a rank knows its number.
RANK_VARIABLES = "PMI_RANK", "OMPI_COMM_WORLD_RANK"
DAEMONS = "hydra_pmi_proxy", "orted"


class Trial:
    """A run on nodes, held in its rounds until it is let go.

    Attributes:
        hold: the file that holds it, and says what ranks do; see `told.Told`.
        path: of its results.
    """

    def __init__(self, folder: Path, mpi: Mpi, options: str = "", ranks: Sequence[int] = RANKS) -> None:
        self.folder, self.mpi, self.ranks = folder, mpi, ranks
        self.hold = folder / "hold"
        self.path = folder / "run.h5"
        self.arguments = [*shlex.split(f"-m fedmpi {OPTIONS} --algorithm.hold {self.hold}"), *shlex.split(options)]
        self.cluster: Cluster
        self.job: Job

    def start(self, cluster: Cluster, *options: str) -> None:
        arguments = [*self.arguments, "--output", str(self.path), *options]
        self.cluster = cluster
        self.job = cluster.start(self.ranks, *arguments, mpi=self.mpi, PYTHONPATH=PYTHONPATH)

    def await_round(self, number: int) -> None:
        """Wait until this round has begun."""
        path = self.hold.with_name("round")
        with suppress(AssertionError):
            until(lambda: self.job.process.poll() is not None or _number_in(path) >= number, LONGEST_START)
        job = self.job
        assert _number_in(path) >= number, f"exit status {job.process.poll()}\n{job.stdout}\n{job.stderr}"

    def processes_of_ranks(self, stuck: Sequence[int] = ()) -> dict[int, int]:
        """Rank -> number of its process, but for some nodes."""
        found: dict[int, int] = {}
        for node in (node for number, node in enumerate(self.cluster.nodes) if number not in stuck):
            for pid in node.processes():
                try:
                    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                except OSError:  # it has ended
                    continue
                variables = dict(word.decode().split("=", 1) for word in words if b"=" in word)
                found |= {int(variables[name]): pid for name in RANK_VARIABLES if name in variables}
        return found

    def tell(self, order: str) -> None:
        self.hold.write_text(order)

    def kill_rank(self, rank: int) -> None:
        os.kill(self.processes_of_ranks()[rank], signal.SIGKILL)

    def kill_daemon(self, node: Node) -> None:
        for pid, command in node.processes().items():
            if Path(command.split()[0]).name in DAEMONS:
                os.kill(pid, signal.SIGKILL)


PYTHONPATH = os.pathsep.join([environment()["PYTHONPATH"], str(PROGRAMS)])


def _number_in(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Args:
        strike: makes it happen.
        goes_on: whether the run comes to its end.
        stuck: which nodes cannot do anything any more, not even end.
        restarts: whether rank 0's node has to be started anew. Nobody can look up its old processes then, so the
            file's lock counts for ten minutes without a sign of life.
    """

    strike: Callable[[Trial], None]
    goes_on: bool = False
    stuck: tuple[int, ...] = ()
    restarts: bool = False


def _away(leave: Callable[[Node], None], come_back: Callable[[Node], None]) -> Callable[[Trial], None]:
    def strike(trial: Trial) -> None:
        node = trial.cluster.nodes[1]
        leave(node)
        time.sleep(AWAY)
        come_back(node)
        trial.hold.unlink()

    return strike


def _twice(trial: Trial) -> None:
    trial.tell("hang 2")  # or it would end at once by itself
    time.sleep(1)
    for _ in range(2):
        trial.job.process.terminate()
        time.sleep(1)


def _cut_off(trial: Trial) -> None:
    """The ranks do not need the login node until they leave MPI, which needs it."""
    trial.cluster.login.cut()
    trial.hold.unlink()


#: Ranks 0 and 1 are on node1, 2 and 3 on node2, and 4 on node3.
FAULTS = {
    "a rank killed": Fault(lambda trial: trial.kill_rank(2)),
    "rank 0 killed": Fault(lambda trial: trial.kill_rank(0)),
    "a rank stopped": Fault(lambda trial: os.kill(trial.processes_of_ranks()[3], signal.SIGSTOP)),
    "a rank leaves by os._exit(0)": Fault(lambda trial: trial.tell("leave 3")),
    "a client hangs": Fault(lambda trial: trial.tell("hang 3")),
    "a node's link cut": Fault(lambda trial: trial.cluster.nodes[1].cut()),
    "a node powered off": Fault(lambda trial: trial.cluster.nodes[1].power_off()),
    "a node stopped for good": Fault(lambda trial: trial.cluster.nodes[1].stop(), stuck=(1,)),
    "rank 0's node's link cut": Fault(lambda trial: trial.cluster.nodes[0].cut()),
    "rank 0's node powered off": Fault(lambda trial: trial.cluster.nodes[0].power_off(), restarts=True),
    "the login node's link cut": Fault(_cut_off),
    "a node's daemon killed": Fault(lambda trial: trial.kill_daemon(trial.cluster.nodes[1])),
    "mpirun killed": Fault(lambda trial: trial.job.process.kill()),
    "SIGTERM twice, a client hangs": Fault(_twice),
    "a node stopped 5 s": Fault(_away(Node.stop, Node.go_on), goes_on=True),
    "a node unplugged 5 s": Fault(_away(Node.cut, Node.mend), goes_on=True),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        ranks_gone: seconds from the fault until no rank was left on a node that can do anything; None: some still
            were when waiting was given up.
        launcher_gone: likewise, until `mpirun` had ended.
        left: names of the programs that were still there after that, on all nodes, stuck ones included.
        exit_status: of `mpirun`; None: it had not ended.
        written: the status that the results file has, as it is written there.
        reports: how many times something was reported to have failed.
        stderr: all that was printed there.
        resumed: status and SHA-256 of the weights after `--resume`.
        resume_stderr: likewise.
    """

    ranks_gone: float | None
    launcher_gone: float | None
    left: list[str]
    exit_status: int | None
    written: str
    reports: int
    stderr: str
    resumed: tuple[str, str | None]
    resume_stderr: str


def suffer(fault: Fault, trial: Trial, patience: float) -> Outcome:
    """Start the run, let things go wrong, wait for its end for so many seconds, and resume it."""
    trial.hold.touch()
    with Cluster(len(trial.ranks)) as cluster:
        trial.start(cluster)
        trial.await_round(STRUCK)
        began = time.monotonic()
        fault.strike(trial)

        def elapsed(is_over: Callable[[], bool]) -> float | None:
            try:
                until(is_over, began + patience - time.monotonic())
            except AssertionError:
                return None
            return time.monotonic() - began

        ranks_gone = elapsed(lambda: not trial.processes_of_ranks(fault.stuck))
        launcher_gone = elapsed(lambda: trial.job.process.poll() is not None)
        with suppress(AssertionError):
            until(lambda: not cluster.processes(), LINGERING)
        left = [
            Path(command.split()[0]).name for of_node in cluster.processes().values() for command in of_node.values()
        ]
        exit_status, stderr = trial.job.process.poll(), trial.job.stderr
        with h5py.File(trial.path) as file:
            written = str(file.attrs["status"])
        cluster.repair()
        trial.hold.unlink(missing_ok=True)
        if fault.restarts:
            _let_time_pass(trial.path)
        trial.start(cluster, "--resume")
        with suppress(subprocess.TimeoutExpired):
            trial.job.wait(LONGEST_RESUME)
        resume_stderr = trial.job.stderr
        run = results.open(trial.path)
    reports = stderr.count("fedmpi: failed on rank")
    return Outcome(
        ranks_gone,
        launcher_gone,
        left,
        exit_status,
        written,
        reports,
        stderr,
        (run.status, run.weights_sha256),
        resume_stderr,
    )


def _let_time_pass(path: Path) -> None:
    """As if the lock of a file had been silent for so long that nobody waits for its owner any more."""
    for record in lock_beside(path).iterdir():
        then = record.stat().st_mtime - SILENCE
        os.utime(record, (then, then))


def unbroken(folder: Path) -> str | None:
    """SHA-256 of what the run ends with when nothing goes wrong, on one rank."""
    trial = Trial(folder, "mpich")
    path = folder / "unbroken.h5"
    succeed(fedmpi(0, *trial.arguments[2:], "--output", path, PYTHONPATH=PYTHONPATH))
    return results.open(path).weights_sha256


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.nodes.faults", description=__doc__)
    parser.add_argument("--mpi", choices=("mpich", "openmpi"), default="mpich")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for the end (default: 60)")
    parser.add_argument("--options", default="", help="for the run, such as '--deadline 15'")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--jobs", type=int, default=2, help="sets of nodes side by side (default: 2)")
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    with tempfile.TemporaryDirectory() as name:
        sha256 = unbroken(Path(name))

        def measured(fault: str) -> str:
            folder = Path(tempfile.mkdtemp(dir=name))
            outcome = suffer(FAULTS[fault], Trial(folder, options.mpi, options.options), options.patience)
            row = _row(fault, outcome, sha256)
            print(f"## {fault}\n{outcome.stderr}\n-- resumed\n{outcome.resume_stderr}\n{row}", flush=True)
            return row

        with ThreadPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(measured, options.only))
    head = "what happens", "ranks gone", "mpirun gone", "left", "exit status", "file", "reports", "resume"
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", *rows, sep="\n")


def _row(fault: str, outcome: Outcome, sha256: str | None) -> str:
    moments = outcome.ranks_gone, outcome.launcher_gone
    ends = ["never" if seconds is None else f"{seconds:.1f} s" for seconds in moments]
    status = "-" if outcome.exit_status is None else str(outcome.exit_status)
    resumed = "same bits" if outcome.resumed == ("finished", sha256) else f"WRONG: {outcome.resumed}"
    counts = str(len(outcome.left)), status, outcome.written, str(outcome.reports)
    return f"| {' | '.join([fault, *ends, *counts, resumed])} |"


if __name__ == "__main__":
    main()
