"""An experiment that can be run, in a script, a notebook, or a job of many ranks.

    from fedmpi import Experiment
    from fedmpi.algorithms import FedProx

    run = Experiment(algorithm=FedProx(mu=0.01), rounds=20).run()

Importing this module is fast, because modules for a run are imported when it begins.
"""

import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from fedmpi.experiment.settings import Latest, Settings
from fedmpi.mpi import whole_job
from fedmpi.own_state import apart, own_state

if TYPE_CHECKING:
    from fedmpi.federation.ledger import Outcome
    from fedmpi.mpi.world import World
    from fedmpi.results import Run


class Experiment(Settings):
    """One federated experiment.

    Its arguments and attributes are those of its settings (`fedmpi.experiment.settings.Settings`).
    """

    def load(self) -> None:
        """Import the modules for a run, including PyTorch, which starts its threads then."""
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        import fedmpi.experiment.run  # noqa: F401

    def run(self, world: "World | None" = None, config: str | None = None) -> "Run":
        """Run the experiment to the end; must be called on every rank of the job, see `outcomes`.

        Returns: The contents of the results file, on every rank. Its status is interrupted if the run was interrupted
            (`exit_status`).

        Raises:
            BadInput: on every rank alike, before anything is trained or written.
            KeyboardInterrupt: the run was interrupted by SIGINT; the file and its checkpoint are written.
            SystemExit: with `exit_status`, if the run was interrupted (SIGUSR1, SIGTERM) before there was a results
                file.
        """
        world = world or whole_job()
        self.complete(world, config)
        from fedmpi.experiment.run import results_of

        return results_of(self, world)

    def complete(self, world: "World", config: str | None = None) -> int:
        """Run to the end, and return `exit_status`; arguments as for `outcomes`."""
        rounds = self._begun(world, config)
        with own_state(self.threads):
            for _ in rounds:
                pass
        return self.exit_status

    def outcomes(self, world: "World | None" = None, config: str | None = None) -> "Iterator[Outcome]":
        """Run the experiment, and yield the outcome of each round. Every rank of the job must iterate to the end.

        An error other than bad input ends a job of several ranks (`fedmpi.experiment.failure.end_job`). On a single
        rank, the results file says failed, and the error is raised again. The run neither uses nor changes the state
        of the caller: the generators of `random`, `numpy.random` and `torch`, and settings of libraries
        (`fedmpi.own_state`).

        Args:
            world: the ranks; None: all of the job.
            config: the settings that the results file keeps, and that a run is resumed with; None: `config`.

        Raises:
            BadInput: on every rank alike, before anything is trained or written.
        """
        yield from apart(self._begun(world or whole_job(), config), self.threads)

    def _begun(self, world: "World", config: str | None) -> "Generator[Outcome, None, None]":
        """Begin a new run, which `output` and `exit_status` then describe."""
        self.load()
        from fedmpi.experiment.run import outcomes

        latest = vars(self)["_latest"] = Latest(self._latest.output)
        return outcomes(self, latest, world, config)
