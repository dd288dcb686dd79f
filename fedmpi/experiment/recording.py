"""Records a run: rows in its results file, and lines on the terminal. Only rank 0 records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.described import leaves, settings_of
from fedmpi.errors import BadInput
from fedmpi.experiment import inputs
from fedmpi.experiment.assembly import Assembled
from fedmpi.experiment.checkpoint import Checkpoints, Place, SavedFederation
from fedmpi.experiment.environment import describe
from fedmpi.experiment.ownership import Lock
from fedmpi.experiment.progress import Progress
from fedmpi.experiment.resume import UNDECLARED, missing_in_results
from fedmpi.experiment.settings import Settings
from fedmpi.experiment.tracking import HASTE, PATIENCE, Tracked, Tracking
from fedmpi.federation.evaluation import Evaluation
from fedmpi.federation.ledger import Outcome
from fedmpi.mpi.world import World
from fedmpi.policies.privacy import NoPrivacy
from fedmpi.results import Results
from fedmpi.results.schema import Status
from fedmpi.results.settings import describe as setting
from fedmpi.results.summary import sizes, summarize, way_of_training
from fedmpi.streams import say
from fedmpi.tasks import Measures
from fedmpi.training.layout import Layout


class Recorder:
    """A recorder that does nothing: for ranks other than rank 0, and for rank 0 until the results are open.

    Attributes:
        is_open: whether anything is recorded.
        path: the results file.
        started: when the run first began.
    """

    is_open = False
    path = Path()
    started = ""

    @property
    def held_out(self) -> NDArray[np.float64] | None:
        """[held_out, epochs + 1], the accuracies of held-out clients so far; None: there are none."""
        return None

    @property
    def rounds(self) -> dict[str, NDArray]:
        """The columns of /rounds so far."""
        return {}

    def begin_stage(self, name: str, rounds: int, done: int) -> None:
        """Called when a stage begins, or continues after `done` rounds."""

    def add_stage_round(self, name: str, outcome: Outcome) -> None:
        """Called at the end of a round of a stage."""

    def begin_rounds(self, rounds: int, done: int) -> None:
        """Called when the rounds begin, or continue after `done` rounds."""

    def add_round(self, outcome: Outcome) -> None:
        """Called at the end of a round."""

    def stop(self, reason: str) -> None:
        """Called when the run ends before all its rounds are done."""

    def note_undeclared(self, names: str) -> None:
        """Record attributes that keep something between rounds and that no checkpoint has."""

    def end_rounds(self) -> None:
        """Called at the end of the rounds, or of a stage's rounds."""

    def set_initial(self, values: Mapping[str, float]) -> None:
        """Set the evaluation of the initial model, by column."""

    def set_held_out(self, values: NDArray[np.float64]) -> None:
        """Set the results of held-out clients so far."""

    def keep(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Store arrays as a group of the results."""

    def write_if_due(self) -> None:
        """Write the file if the last time was long ago."""

    def write(self) -> None:
        """Write the file."""

    def finish(self, status: Status) -> None:
        """Write the file, with this status."""

    def sum_up(self) -> None:
        """Print the summary of a finished run."""

    def beyond_file(self) -> dict[str, NDArray]:
        """The rows that the file does not have yet, for a checkpoint, see `Results.beyond_file`."""
        return {}


class ResultsRecorder(Recorder):
    """The recorder of rank 0: writes rows to the results file, and lines or a bar to the terminal.

    Args:
        results: the results file.
        measures: what evaluations measure.
        experiment: its settings.
    """

    is_open = True

    def __init__(self, results: Results, measures: Measures, experiment: Settings) -> None:
        self._results = results
        self._every_client = experiment.records_every_client
        run = Tracked(results.path, results.started, experiment.settings)
        self._tracking = Tracking(experiment.track, run, results.rounds)
        self._shown = measures.task.main, measures.main.unit
        self._progress: Progress | None = None
        self.path = results.path
        self.started = results.started

    @property
    def held_out(self) -> NDArray[np.float64] | None:
        return self._results.held_out

    @property
    def rounds(self) -> dict[str, NDArray]:
        return self._results.rounds

    def begin_stage(self, name: str, rounds: int, done: int) -> None:
        self._results.begin_stage(name, done)
        self._progress = Progress(rounds, *self._shown, f"{name} round", done)

    def add_stage_round(self, name: str, outcome: Outcome) -> None:
        self._results.add_stage_round(name, outcome.row)
        self._show(outcome.row)

    def begin_rounds(self, rounds: int, done: int) -> None:
        self._progress = Progress(rounds, *self._shown, done=done)

    def add_round(self, outcome: Outcome) -> None:
        results, round = self._results, int(outcome.row["round"])
        results.add_round(outcome.row)
        results.add_clients(outcome.clients)
        results.add_ranks(outcome.ranks)
        if outcome.clusters is not None:
            results.add_clusters(round, outcome.clusters)
        if outcome.evaluation is not None:
            self._add_evaluation(round, outcome.evaluation, outcome)
        self._show(outcome.row)
        self._tracking.add(outcome.row)

    def _show(self, row: Mapping[str, float]) -> None:
        assert self._progress is not None
        self._progress.show(row)

    def stop(self, reason: str) -> None:
        self._results.set_stopped(reason)
        self.end_rounds()
        say(f"stopped by {reason}")

    def _add_evaluation(self, round: int, found: Evaluation, outcome: Outcome) -> None:
        results, task = self._results, found.measures.task
        columns: dict[str, NDArray] = {}
        if task.has_classes:
            columns["per_class_accuracy"] = found.class_accuracy
            results.set_confusion(round, found.confusion)
        if self._every_client:
            columns[f"client_{task.main}"] = found.of_clients
            if outcome.fine_tuned:
                columns[f"fine_tuned_{task.main}"] = outcome.fine_tuned.of_clients
        results.add_evaluation(round, columns)
        if found.validation:
            column = f"validation_{task.main}"
            results.keep_if_best(round, column, outcome.row[column], found.measures.main.better)

    def note_undeclared(self, names: str) -> None:
        self._results.set_undeclared(names)
        say(f"note: {UNDECLARED.format(names)}; this run cannot be resumed, and may depend on the number of ranks")

    def end_rounds(self) -> None:
        if self._progress:
            self._progress.close()

    def set_initial(self, values: Mapping[str, float]) -> None:
        self._results.set_initial(values)

    def set_held_out(self, values: NDArray[np.float64]) -> None:
        self._results.set_held_out(values)
        self._results.write_if_due()

    def keep(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        self._results.keep(name, arrays)

    def write_if_due(self) -> None:
        self._results.write_if_due()

    def write(self) -> None:
        self._results.write()

    def finish(self, status: Status) -> None:
        self.end_rounds()
        self._results.finish(status)
        self._tracking.close(PATIENCE if status == "finished" else HASTE)

    def sum_up(self) -> None:
        say("\n" + summarize(results.open(self.path)))

    def beyond_file(self) -> dict[str, NDArray]:
        return self._results.beyond_file()


def open_recorder(
    experiment: Settings,
    config: str,
    assembled: Assembled,
    world: World,
    lock: Lock,
    checkpoints: Checkpoints,
    place: Place | None,
) -> Recorder:
    """The recorder of this rank. Rank 0 has then written the results file for the first time.

    Args:
        config: the settings, as YAML for the results file.
        lock: of the results file.
        checkpoints: of the run. Those of a replaced run are removed.
        place: where the run continues; None: it begins.

    Raises:
        BadInput: the file cannot be written, or lacks rows; on every rank alike.
    """
    choice = assembled.choice
    environment = describe(world, assembled.engine.federation.device)
    environment |= {"clients_at_once": choice.at_once, "clients_at_once_reason": choice.reason}
    recorder = Recorder()
    with world.agreed():
        if world.is_server:
            try:
                results = _begun(experiment, config, assembled, environment, lock)
                if place:
                    done = 0 if place.stage else place.round
                    results.resume(place.started, done, checkpoints.rows)
                else:
                    checkpoints.remove()
                results.write()
            except OSError as error:
                reason = f"cannot be written ({error.strerror or error})"
                raise BadInput(f"= {experiment.output}: {reason}", "--output") from None
            _say_what_is_trained(experiment, assembled, world)
            recorder = ResultsRecorder(results, assembled.engine.federation.context.evaluator.measures, experiment)
    return recorder


def _say_what_is_trained(experiment: Settings, assembled: Assembled, world: World) -> None:
    fed, choice = assembled.engine.federation, assembled.choice
    data, size = setting(settings_of(experiment.dataset, "dataset")), fed.samples
    split = fed.context.split
    tested, validated = split.test.total, split.validation.total
    apart = f"{validated:,} validation samples, " if validated else ""
    say(f"data: {data}, {split.train.total:,} training samples, {apart}{tested:,} test samples")
    each = f"{size.min():,} to {size.max():,}" if size.min() < size.max() else f"{size.min():,}"
    say(f"clients: {fed.clients}, {experiment.cohort} per round, with {each} training samples each")
    working = f"{world.size - 1} of {world.size} ranks" if world.size > 1 else "1 rank"
    if frozen := fed.layout.frozen:
        say(f"model: {sizes(fed.layout.size, sum(tensor.numel() for tensor in frozen.values()))}")
    if drawn := experiment.model.drawn:
        say(f"model: {experiment.model.weights} has another number of outputs: drawn instead: {', '.join(drawn)}")
    if experiment.cohort < (train := len(world.workers)):
        say(f"training: {train} ranks train, but a round has only {experiment.cohort} clients (--cohort)")
    way = way_of_training(choice.at_once, choice.reason)
    say(f"training: {working} on {'CPU' if fed.device.type == 'cpu' else 'GPU'}, {way}")


def _begun(
    experiment: Settings, config: str, assembled: Assembled, environment: dict[str, Any], lock: Lock
) -> Results:
    """The results before the first round."""
    fed = assembled.engine.federation
    measures = fed.context.evaluator.measures
    names = {name: type(getattr(experiment, name)).__name__ for name in ("algorithm", "dataset", "model")}
    names |= experiment.described_metrics
    attributes = {**names, "seed": experiment.seed, "config": config, **assembled.checksums}
    attributes |= {**inputs.describe(config), **_after_more_rounds(experiment, assembled)}
    results = Results(experiment.output, attributes, environment, overwrite=True, confirm=lock.confirm)
    if experiment.records_every_client:
        split = fed.context.split
        validation = split.validation.sizes if experiment.validation else None
        results.set_partition(split.label_counts, split.samples, validation)
    source = _source_of_frozen(experiment)
    _describe_models(results, experiment.algorithm, fed.layout, source, experiment.store_frozen)
    data, kind = experiment.dataset, "uint8" if fed.has_images else "int64" if fed.is_text else "float32"
    results.set_inputs(kind, fed.shape, measures.outputs, data.mean, data.std, data.vocabulary)
    return results


def _after_more_rounds(experiment: Settings, assembled: Assembled) -> dict[str, Callable[[], str | None]]:
    """Attributes of the results file that say whether a finished run can have more rounds."""
    engine, algorithm, local = assembled.engine, experiment.algorithm, experiment.local

    def missing() -> str:
        spent = [] if isinstance(experiment.privacy, NoPrivacy) else ["the privacy budget spent so far"]
        spent += ["the virtual clock"] if experiment.availability.by_clock else []
        return "\n".join([*missing_in_results(SavedFederation("rounds", engine, algorithm)), *spent])

    def depends_on_rounds() -> str | None:
        reasons = [f"--local.schedule {local.schedule}"] if local.schedule in ("linear", "cosine") else []
        reasons += ["--local.compile auto"] if local.compile == "auto" else []
        reasons += [f"--algorithm {type(algorithm).__name__}"] if engine.federation.has_asked_for_rounds else []
        return ", ".join(reasons) or None

    return {"missing": missing, "depends_on_rounds": depends_on_rounds}


def _source_of_frozen(experiment: Settings) -> str:
    """Where the tensors that training does not change came from, in words."""
    chosen = {name: experiment.settings[name] for name in ("init", "model")}
    paths = {name.replace(".init_args", ""): value for name, value in leaves(chosen) if isinstance(value, Path)}
    return ", ".join(f"--{name} = {path}" for name, path in paths.items()) or f"drawn with seed {experiment.seed}"


def _describe_models(results: Results, algorithm: Algorithm, layout: Layout, source: str, store_frozen: bool) -> None:
    def current(part: Algorithm, name: str, layout: Layout) -> Callable[[], np.ndarray]:
        return lambda: layout.canonical(getattr(part, name)).numpy()

    def tensors(layout: Layout) -> tuple[list[str], list[tuple[int, ...]], list[int]]:
        entries = layout.entries
        return [entry.name for entry in entries], [entry.shape for entry in entries], [e.offset for e in entries]

    states = {name: part for part in algorithm.parts for name in part.server_state}
    # Methods with several models keep them in vectors of the same length.
    models = {
        name: current(part, name, layout)
        for name, part in states.items()
        if getattr(part, name).shape[-1:] == (layout.size,) and name not in {*algorithm.networks, *part.hidden_state}
    }
    models.pop("weights", None)
    weights = current(algorithm, "weights", layout)
    results.set_model(*tensors(layout), weights, models, layout.frozen_arrays, source, store_frozen)
    for name, other in algorithm.networks.items():
        results.set_network(name, *tensors(other), current(states[name], name, other), other.frozen_arrays)
