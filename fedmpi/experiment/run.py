"""The course of a run, from locking its results file to the end. Every rank of a job executes it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NoReturn, cast

import numpy as np

from fedmpi import results
from fedmpi.described import leaves
from fedmpi.errors import BadInput, named
from fedmpi.experiment import inputs
from fedmpi.experiment.assembly import Assembled, assemble, set_up
from fedmpi.experiment.checkpoint import Checkpoints, Place, SavedFederation
from fedmpi.experiment.failure import end_job
from fedmpi.experiment.held_out import train_held_out
from fedmpi.experiment.interruption import Interrupted, Interruptions
from fedmpi.experiment.ownership import Lock, claim
from fedmpi.experiment.recording import Recorder, open_recorder
from fedmpi.experiment.resume import UNDECLARED, continuation, find, restore_weights
from fedmpi.experiment.rounds import begin_before, evaluate_start, play
from fedmpi.experiment.schedule import replay
from fedmpi.experiment.settings import BY_HAND, Latest, Settings
from fedmpi.experiment.stopping import reason_to_stop
from fedmpi.experiment.undeclared import Undeclared
from fedmpi.federation.engine import Engine
from fedmpi.federation.ledger import Outcome
from fedmpi.mpi.failures import Silence
from fedmpi.mpi.world import World
from fedmpi.options import shown
from fedmpi.results import Run
from fedmpi.streams import say

#: The attribute of components that a run uses.
RUN = "_is_used_by_a_run"


def outcomes(
    experiment: Settings, latest: Latest, world: World, config: str | None
) -> Generator[Outcome, None, None]:
    """Run the experiment: see `Experiment.outcomes`.

    Args:
        latest: is updated with the output and the exit status of the run.
    """
    course = _Course(experiment, latest, world, config)

    def fail(error: BaseException) -> NoReturn:
        end_job(world, error, course.where(), course.recorder, course.lock)

    try:
        with world.guard.running(lambda: fail(Silence())), course.interruptions:
            yield from course.outcomes()
    except Interrupted as end:
        latest.exit_status = end.status
        if world.is_server:
            going_on = continuation(experiment, world.size)
            say(f"interrupted (exit status {end.status}); continue with: {going_on}")
        if world.size > 1 and not course.interruptions.is_set_up:
            course.lock.release()
            world.failures.abort(status=end.status)  # the others may wait for this rank
    except GeneratorExit:  # the caller of `outcomes` has stopped iterating
        course.recorder.finish("interrupted")
    except BaseException as error:
        if isinstance(error, BadInput) and error.agreed:
            with suppress(OSError):
                course.recorder.finish("failed")
            raise
        fail(error)
    finally:
        course.close()


def results_of(experiment: Settings, world: World) -> Run:
    """The contents of the results file after a run, on every rank.

    Raises:
        KeyboardInterrupt: the run was interrupted by SIGINT.
        SystemExit: it was interrupted by another signal, before there was a results file.
    """
    status = experiment.exit_status
    if status == BY_HAND:
        raise KeyboardInterrupt
    if status and not experiment.output.exists():
        raise SystemExit(status)
    run = results.open(experiment.output) if world.is_server else None
    return world.from_server(cast("Run", run))


class _Course:
    """The course of a run: settings, output, place, federation, stages, rounds and held-out clients.

    Attributes:
        lock: of the output.
        interruptions: ends the run early; a context around `outcomes`.
    """

    def __init__(self, experiment: Settings, latest: Latest, world: World, config: str | None) -> None:
        self.lock = Lock()
        self.interruptions = Interruptions(world, experiment)
        self._experiment = experiment
        self._latest = latest
        self._world = world
        self._config = config
        self._engine: Engine | None = None
        self._checkpoints: Checkpoints | None = None
        self._used: list[object] = []
        self._undeclared: set[str] = set()

    @property
    def recorder(self) -> Recorder:
        """Writes the results; writes nothing until they are open."""
        return self.interruptions.recorder

    def where(self) -> str:
        """What this rank is doing, for failure reports."""
        return self._engine.where() if self._engine else "setting up"

    def close(self) -> None:
        """Close checkpoints, and release the lock and the components."""
        if self._checkpoints:
            self._checkpoints.close()
        self.lock.release()
        for component in self._used:
            vars(component).pop(RUN, None)

    def outcomes(self) -> Iterator[Outcome]:
        """Run from the start, or from where the run continues, to the end."""
        experiment, interruptions = self._experiment, self.interruptions
        self._agree()
        self._use()
        checkpoints = self._claim()
        place = self._place(checkpoints)
        if place and place.is_end:
            self._remove(checkpoints)
            return
        assembled = assemble(experiment, self._world)
        engine = self._engine = assembled.engine
        self._open(assembled, checkpoints, place)
        if experiment.algorithm.has_stages and (place is None or place.stage):
            self._run_stages(engine, checkpoints, place)
            interruptions.save(0)
        done = place.round if place and not place.stage else 0
        replay(engine, experiment.algorithm, assembled.timeline, done)
        if not done:
            self._measure_start(engine)
            interruptions.pause()
        self.recorder.begin_rounds(experiment.rounds, done)
        undeclared = Undeclared(self._used)
        is_over = self._is_over(done)
        while not is_over:
            done += 1
            with undeclared.round():
                outcome = play(
                    experiment, engine, experiment.algorithm, done, interruptions, assembled.timeline, undeclared
                )
            if outcome.hearing:
                self._report(undeclared, is_resumed=place is not None)
            self.recorder.add_round(outcome)
            yield outcome
            is_over = self._is_over(done)
            interruptions.act_on(outcome, is_over)
        self.recorder.end_rounds()
        if experiment.held_out:
            self._train_held_out(assembled, done)
        if experiment.checkpoint.keep:
            interruptions.save(done)
        self.recorder.finish("finished")
        self.recorder.sum_up()
        self._remove(checkpoints)
        self._world.meet()  # the file is there when any rank returns

    def _agree(self) -> None:
        """Raise BadInput, on every rank alike, if the ranks have different settings.

        Paths of files may differ between nodes.
        """
        world, settings = self._world, self._experiment.settings
        mine = {name: value for name, value in leaves(settings) if not isinstance(value, Path)}
        first = world.from_server(mine)
        with world.agreed():
            for name in [*mine, *first]:
                value, wanted = (shown(settings.get(name)) for settings in (mine, first))  # as texts, for NaN
                reason = f"= {value} on rank {world.rank}: must be {wanted}, as on rank 0"
                if value != wanted:
                    raise BadInput(reason, f"--{name}")

    def _use(self) -> None:
        """Mark the components that hold the state of the run, until it ends.

        Raises:
            BadInput: another run has not ended.
        """
        experiment = self._experiment
        with self._world.agreed():
            for name, component in (
                *(("algorithm", part) for part in experiment.algorithm.parts),
                ("server_optimizer", experiment.server_optimizer),
            ):
                if RUN in vars(component):
                    reason = "is used by another run, which has not ended: give each run an object of its own"
                    raise BadInput(f"= {type(component).__name__}: {reason}", name)
                vars(component)[RUN] = True
                self._used.append(component)

    def _claim(self) -> Checkpoints:
        """Lock the output, whose name all ranks then know, and return its checkpoints."""
        experiment, output = self._experiment, self._latest.output
        with self._world.agreed():
            if self._world.is_server:
                replaces = experiment.overwrite or experiment.resume
                output = claim(output, self.lock, experiment.names_output, replaces)
        self._latest.output = self._world.from_server(output)
        checkpoints = Checkpoints(self._world, self._latest.output, experiment.checkpoint, self.lock)
        self.interruptions.checkpoints = self._checkpoints = checkpoints
        return checkpoints

    def _place(self, checkpoints: Checkpoints) -> Place | None:
        """Where the run continues, on every rank; None: at its start."""
        experiment, world = self._experiment, self._world
        place: Place | None = None
        if experiment.resume:
            with world.agreed():
                if world.is_server:
                    place = find(experiment, self._settings, checkpoints)
            place = world.from_server(place)
        return place

    def _open(self, assembled: Assembled, checkpoints: Checkpoints, place: Place | None) -> None:
        """Restore the federation's state from before an interruption, and open the results."""
        experiment, interruptions = self._experiment, self.interruptions
        whole = interruptions.whole = SavedFederation("rounds", assembled.engine, experiment.algorithm)
        if place:
            self._check_data(assembled)
        if place and place.is_in_results:
            restore_weights(whole, experiment.output)
        elif place:
            checkpoints.restore(whole)
        interruptions.is_set_up = True
        recorder = interruptions.recorder = open_recorder(
            experiment, self._settings, assembled, self._world, self.lock, checkpoints, place
        )
        context = assembled.engine.federation.context
        context.pause, context.when_idle, context.keep = interruptions.pause, recorder.write_if_due, recorder.keep

    def _check_data(self, assembled: Assembled) -> None:
        """Raise BadInput if the data, or the frozen tensors, have changed since the resumed run was begun."""
        with self._world.agreed():
            if self._world.is_server:
                run = results.open(self._experiment.output)
                inputs.check_data(run, assembled.checksums)
                inputs.check_frozen(run, assembled.engine.federation.layout)

    def _run_stages(self, engine: Engine, checkpoints: Checkpoints, place: Place | None) -> None:
        """Run the stages before the first round, from this place on."""
        experiment, recorder, interruptions = self._experiment, self.recorder, self.interruptions
        resumed = place.stage if place else None
        begin_before(engine, experiment.algorithm)
        stages = experiment.algorithm.stages(engine.federation)
        names = {interruptions.whole.name}  # by which a checkpoint tells federations apart
        for number in count(1):
            engine.federation.context.reseed(f"stage {number}")
            stage = next(stages, None)
            if stage is None:
                break
            name, sibling, algorithm = stage
            if name in names:
                with self._world.agreed():
                    reason = f"yields a stage {name!r}, a name that is taken: choose another one for each stage"
                    raise BadInput(f"= {named(experiment.algorithm)}: {reason}", "--algorithm")
            names.add(name)
            if resumed and resumed != name:
                continue  # it was finished before
            other, rounds = Engine(sibling), sibling.context.rounds
            engine.stage = name, other
            sibling.context.when_idle = engine.federation.context.when_idle
            set_up(algorithm, other)
            saved, done = SavedFederation(name, other, algorithm), 0
            if place and resumed:
                checkpoints.restore(saved)
                done, resumed = place.round, None
            recorder.begin_stage(name, rounds, done)
            for round in range(done + 1, rounds + 1):
                outcome = play(experiment, other, algorithm, round, interruptions)
                recorder.add_stage_round(name, outcome)
                interruptions.act_on(outcome, round == rounds, saved)
            recorder.end_rounds()
            engine.stage = None

    def _measure_start(self, engine: Engine) -> None:
        """Evaluate the initial model."""
        if self._experiment.evaluated:
            evaluation = evaluate_start(self._experiment, engine)
            if evaluation:
                self.recorder.set_initial(evaluation.columns)

    def _is_over(self, done: int) -> bool:
        """Whether no further round follows: all are done, or a --stop option ends the run. A collective.

        Raises:
            BadInput: the run does not have what a --stop option needs; on every rank alike. A checkpoint is written
                first, so no round is lost.
        """
        experiment, world, reason, problem = self._experiment, self._world, None, None
        if done == experiment.rounds or not (done and experiment.stop.has_conditions):
            return done == experiment.rounds
        if world.is_server:
            rows, metrics = self.recorder.rounds, experiment.described_metrics
            try:
                reason = reason_to_stop(experiment.stop, experiment.evaluated, rows, metrics)
            except BadInput as error:
                problem = error
        found = np.array([reason is not None, problem is not None], dtype=np.int64)
        stops, fails = world.tell(found).tolist()
        if fails:
            self.interruptions.save(done)
            with world.agreed():
                if problem:
                    raise problem
        if reason is not None:
            self.recorder.stop(reason)
        return bool(stops)

    def _report(self, undeclared: Undeclared, is_resumed: bool) -> None:
        """Say what the run keeps from round to round that no checkpoint has; a collective.

        Raises:
            BadInput: there is such state, and the run was resumed, so that it is another run than without an
                interruption; on every rank alike.
        """
        texts = self._world.gather_text("\n".join(undeclared.found))
        undeclared.found.clear()
        found = sorted({line for text in texts for line in text.splitlines()} - self._undeclared)
        if not found:
            return
        if is_resumed:
            with self._world.agreed():
                raise BadInput(f"--resume: {UNDECLARED.format(', '.join(found))}; start again with --overwrite")
        self._undeclared |= {*found}
        self.recorder.note_undeclared(", ".join(sorted(self._undeclared)))

    def _train_held_out(self, assembled: Assembled, last: int) -> None:
        """Train the held-out clients after the last round."""
        experiment, interruptions = self._experiment, self.interruptions
        known = self._world.from_server(self.recorder.held_out)
        interruptions.begin_round()
        for values in train_held_out(
            assembled.engine,
            experiment.algorithm,
            assembled.held_out,
            last,
            experiment.held_out_epochs,
            known,
        ):
            self.recorder.set_held_out(values)
            interruptions.pause()

    def _remove(self, checkpoints: Checkpoints) -> None:
        """Remove the checkpoints of a finished run, unless they are kept."""
        if self._world.is_server and not self._experiment.checkpoint.keep:
            checkpoints.remove()

    @property
    def _settings(self) -> str:
        """The settings that the results file keeps, and that a run is resumed with."""
        return self._config or self._experiment.config
