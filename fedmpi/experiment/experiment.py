"""An experiment that can be run, in a script, a notebook, or a job of many ranks.

    from fedmpi import Experiment
    from fedmpi.algorithms import FedProx

    run = Experiment(algorithm=FedProx(mu=0.01), rounds=20).run()

Importing this module is cheap, like that of the settings: what a run needs is imported when it begins.
"""

import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from fedmpi.experiment.settings import Latest, Settings
from fedmpi.mpi import whole_job
from fedmpi.randomness import apart, globals_kept

if TYPE_CHECKING:
    from fedmpi.federation.ledger import Outcome
    from fedmpi.mpi.world import World
    from fedmpi.results import Run


class Experiment(Settings):
    """One federated experiment.

    Its arguments and attributes are those of its settings (`fedmpi.experiment.settings.Settings`).
    """

    def load(self) -> None:
        """Import what a run needs; with PyTorch, which starts its threads then."""
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        import fedmpi.experiment.run  # noqa: F401

    def run(self, world: "World | None" = None, config: str | None = None) -> "Run":
        """Run to the end, on every rank of the job if there are several, see `outcomes`.

        Returns:
            What the results file holds, on every rank; its status is interrupted if the run was (`exit_status`).

        Raises:
            BadInput: on every rank alike, before anything is trained or written.
            KeyboardInterrupt: somebody wanted it to end (SIGINT); the file and its checkpoint are written.
            SystemExit: with `exit_status`, if it was to end (SIGUSR1, SIGTERM) before there was a results file.
        """
        world = world or whole_job()
        self.complete(world, config)
        from fedmpi.experiment.run import results_of

        return results_of(self, world)

    def complete(self, world: "World", config: str | None = None) -> int:
        """Run to the end, and return `exit_status`; arguments as of `outcomes`."""
        rounds = self._begun(world, config)
        with globals_kept():
            for _ in rounds:
                pass
        return self.exit_status

    def outcomes(self, world: "World | None" = None, config: str | None = None) -> "Iterator[Outcome]":
        """Run, and give what each round left when it is over; to be called, and used up, on every rank of the job.

        An error other than bad input ends a job of several ranks (`fedmpi.experiment.failure.end_job`). Where there
        is one, the results file says failed, and the error is raised again. What the caller draws from the generators
        of `random`, `numpy.random` and `torch` is not disturbed, and the run does not depend on it.

        Args:
            world: the ranks; None: all of the job.
            config: what the results file keeps as the settings, and a run is resumed with; None: `config`.

        Raises:
            BadInput: on every rank alike, before anything is trained or written.
        """
        yield from apart(self._begun(world or whole_job(), config))

    def _begun(self, world: "World", config: str | None) -> "Generator[Outcome, None, None]":
        """The rounds of a new run, of which `output` and `exit_status` are from now on."""
        self.load()
        from fedmpi.experiment.run import outcomes

        latest = vars(self)["_latest"] = Latest(self._latest.output)
        return outcomes(self, latest, world, config)
