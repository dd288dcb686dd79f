"""ReFrame tests of fedmpi for the staff of a site: does it run here, and how fast are its exchanges of models?

    reframe --config-file SITE.py --checkpath jobs/reframe/checks.py --run

fedmpi must be importable in the site's environment (`--setvar valid_prog_environs=...`, `--module ...`), and this
repository must be visible on the nodes. The number of ranks is chosen by `--setvar ranks=33`. Without a site's
configuration, jobs/reframe/local.py starts the tests on this machine.
"""

import sys
from pathlib import Path

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import performance_function, run_before, sanity_function, variable

REPOSITORY = Path(__file__).resolve().parents[2]


class OnAllRanks(rfm.RunOnlyRegressionTest):
    """A program of fedmpi as an MPI job."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    ranks = variable(int, value=3)
    python = variable(str, value=sys.executable)

    @run_before("run")
    def prepare(self) -> None:
        self.num_tasks = self.ranks
        self.executable = self.python
        self.env_vars = {"PYTHONPATH": f"{REPOSITORY}:$PYTHONPATH"}


@rfm.simple_test
class Doctor(OnAllRanks):
    """What a job gets. The test fails for each problem that the doctor finds."""

    descr = "python -m fedmpi.doctor"
    executable_opts = ["-m", "fedmpi.doctor"]

    @sanity_function
    def no_problem(self) -> object:
        all_ranks = sn.assert_found(rf"^{self.ranks} ranks? on \d+ nodes?", self.stdout)
        return sn.all([all_ranks, sn.assert_found(r"^no problem found$", self.stdout)])

    @performance_function("ms")
    def broadcast(self) -> object:
        return sn.extractsingle(r"broadcast in (\S+) ms", self.stdout, 1, float)

    @performance_function("ms")
    def mean(self) -> object:
        return sn.extractsingle(r"mean over the ranks in (\S+) ms", self.stdout, 1, float)


@rfm.simple_test
class Exchange(OnAllRanks):
    """Broadcast and mean of a model of 1.66 million parameters, and the same by MPI_Bcast and MPI_Reduce alone.

    With `--setvar Exchange.expected_ms=4`, the test fails if fedmpi's take more than 20 % longer than 4 ms.
    """

    descr = "python -m benchmarks.null_round"
    executable_opts = ["-m", "benchmarks.null_round"]
    expected_ms = variable(float, value=0.0)
    row = r"^1660000 (\S+) (\S+)$"

    @run_before("performance")
    def expect(self) -> None:
        if self.expected_ms:
            self.reference = {"*": {"fedmpi": (self.expected_ms, None, 0.2, "ms")}}

    @sanity_function
    def has_every_size(self) -> object:
        return sn.assert_eq(sn.count(sn.findall(r"^\d+ \S+ \S+$", self.stdout)), 4)

    @performance_function("ms")
    def fedmpi(self) -> object:
        return sn.extractsingle(self.row, self.stdout, 1, float)

    @performance_function("ms")
    def plain_mpi(self) -> object:
        return sn.extractsingle(self.row, self.stdout, 2, float)
