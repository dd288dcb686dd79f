"""Reading of results files: `open(path)` returns a `Run` of plain NumPy arrays."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.check import attributes_of, table_of
from fedmpi.results.files import Unfit, group_at, opened, values
from fedmpi.results.metrics import Direction, best_row, metrics_of
from fedmpi.results.owner import Owner
from fedmpi.results.schema import COLUMN, GROUPS, Array, of_metrics
from fedmpi.results.settings import CODE, DATA, FILES, LATER, sound

if TYPE_CHECKING:
    import pandas

    from fedmpi.results.network import Network

Table = dict[str, NDArray[Any]]

# Attributes that tell whether the run's process still exists.
_OF_THE_PROCESS = ("host", "pid", "last_write", "write_interval")
# Columns of /rounds that all commands need.
_RELIED_UPON = ("seconds", "bytes_up", "bytes_down")


class Statistics(NamedTuple):
    """Summary of a column of /rounds in five numbers, in the column's stored unit (accuracies are in [0, 1]).

    A number is NaN if no value was measured. `Run.best_is` says what decides which round is the best. If several
    rounds are equally good, `best_round` is the first of them. If it is not known which values are better, `best` is
    NaN and `best_round` is 0.
    """

    initial: float
    last: float
    best: float  # the column's value in `best_round`
    best_round: int
    last10: float  # mean of the last ten evaluations


class Run:
    """The results of one run. `fedmpi.results.schema` describes the layout of the file.

    The tables that can be large (`clients`, `ranks`, `clusters`, `partition`, `model`) are read when they are first
    used, from the file as it is at that time. If the run is still running, they can have more rounds than `rounds`.
    Everything else is read when the object is created. No file is kept open. If another run has replaced the file by
    then, reading them raises BadInput.

    Args:
        path: the results file.

    Attributes:
        config: the settings, as YAML text.
        attributes: the attributes of the file: algorithm, dataset, model, seed, started, ...
        environment: the hosts, devices, ranks and versions of the job.
        task: name of the task's class, such as Classification.
        main_metric: name of the main metric, such as accuracy.
        metrics: by name, the direction and the unit of each metric that the run computes.
        initial: the metrics of the model before the first round, such as test_loss; empty if it was not evaluated.
        rounds: columns [rounds].
        evaluation: columns [evaluations, ...].
        inputs: the attributes of /model, which say what samples the network takes.
        weights_sha256: SHA-256 of the bytes of the last global model; None if the file has no model yet.
        status: running, finished, interrupted, failed or killed.

    Raises:
        BadInput: as `open`.
    """

    #: Names of the tables that `table` and `to_pandas` know.
    TABLES = ("rounds", "clients", "ranks", "evaluation", "clusters", "partition", "held_out")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with opened(self.path) as file:
            self.attributes: dict[str, Any] = attributes_of(file, GROUPS, "config", "status", *_OF_THE_PROCESS)
            self.config: str = self.attributes["config"]
            self.status = _status(self.attributes)
            environment, rounds, evaluation = (
                _needed(file, name) for name in ("environment", "rounds", "evaluation")
            )
            metrics = metrics_of(self.attributes)
            self.task, self.main_metric, self.metrics = metrics
            self._groups = of_metrics(metrics)
            self.environment: dict[str, Any] = attributes_of(environment, self._groups)
            self.initial: dict[str, float] = attributes_of(evaluation, self._groups)
            self.rounds, self.evaluation = (table_of(table, self._groups) for table in (rounds, evaluation))
            model = group_at(file, "model")
            self.inputs: dict[str, Any] = attributes_of(model, self._groups, "sha256") if model else {}
            self.weights_sha256: str | None = self.inputs.get("sha256")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The run's settings, parsed from `config`; with those that its version did not have yet (`LATER`).

        Raises:
            BadInput: the text is no valid configuration, or is too large to be one.
        """
        import yaml  # imported here, because the import takes as long as reading ten files

        from fedmpi import small_yaml

        try:
            settings = sound(small_yaml.load(self.config) or {})
        except yaml.YAMLError as error:
            raise BadInput(f"{self.path}: its config {small_yaml.reason(error)}") from None
        except ValueError as error:
            raise BadInput(f"{self.path}: damaged: its config {error}") from None
        for place, value in LATER.items():
            group, _, name = place.rpartition(".")
            there = settings.get(group) if group else settings
            if isinstance(there, dict):
                there.setdefault(name, value)
        return settings

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The settings, and the checksums of the data, of the user's code and of other files that the run has read.

        If the file has no settings, the names of the method, the data set and the model, and the seed.
        """
        names = {name: self.attributes.get(name) for name in ("algorithm", "dataset", "model", "seed")}
        checksums = {name: str(self.attributes[name]) for name in DATA.values() if name in self.attributes}
        files = "".join(str(self.attributes.get(name, "{}")) for name in FILES).replace("{}", "")
        code = {CODE: hashlib.sha256(files.encode()).hexdigest()} if files else {}
        return {**names, **self.settings, **checksums, **code}

    @cached_property
    def clients(self) -> Table:
        """Columns [participations]. A client that was not trained has -1 in integer columns and NaN in others."""
        return self._read("clients")

    @cached_property
    def ranks(self) -> Table:
        """Columns [rounds x ranks]."""
        return self._read("ranks")

    @cached_property
    def clusters(self) -> Table:
        """round [rounds] and cluster [rounds, clients]; empty for methods with a single model."""
        return self._read("clusters")

    @cached_property
    def partition(self) -> Table:
        """label_counts [clients, classes] and samples [clients]; validation [clients] with a validation set."""
        return self._read("partition")

    @cached_property
    def held_out(self) -> Table:
        """The main metric [held_out, epochs + 1], by its name, and epochs [held_out]; empty without such clients."""
        return self._read("held_out")

    @cached_property
    def synthetic(self) -> Table:
        """images uint8 [n, C, H, W] and labels [n]; empty if there are none.

        The server generated the images and used them for pre-training.
        """
        return self._read("synthetic")

    @cached_property
    def confusion(self) -> Table:
        """counts [classes, classes] and round [1] of the last evaluation; empty if there was none.

        `counts[i, j]` is the number of test samples of class i for which the model predicted class j.
        """
        return self._read("confusion")

    def stage(self, name: str) -> Table:
        """Columns [rounds] of a training before the rounds, such as a generator's; empty if there was none."""
        return self._read(f"stages/{name}")

    @cached_property
    def model(self) -> Table:
        """weights [P], names [T], shapes [T, D], offsets [T]; methods with M models add arrays [M, P]."""
        return self._read("model")

    @cached_property
    def best(self) -> Table:
        """The arrays of /model in the round that is the best on the validation set; empty without one."""
        return self._read("best")

    @cached_property
    def frozen(self) -> Table:
        """Tensors of the model that training does not change, by name: frozen parameters and constant buffers.

        If the file does not have them (`--store_frozen`), they are made again as the run made them, from the files
        that its settings name, and compared with the checksum in the file. As in `network`, the classes that the
        settings name are then imported.

        Raises:
            BadInput: they cannot be made again, or are different now.
        """
        stored = self._read_frozen("model")
        if stored or "frozen_values" not in self.inputs:
            return stored
        again: Table = importlib.import_module("fedmpi.experiment.rebuilding").frozen_tensors(self)
        return again

    @property
    def weights(self) -> NDArray[np.float32]:
        """Weights [P] of the last global model, in the canonical layout.

        Raises:
            BadInput: the file has no model.
        """
        if "weights" not in self.model:
            raise BadInput(f"{self.path}: has no model")
        return self.model["weights"]

    def network(self, which: int | str | None = None) -> Network:
        """Build the trained network from the stored settings and weights, ready for evaluation.

        The network returns logits [B, classes]. It takes batches as the data set's arrays hold them:

        - images as uint8 [B, C, H, W]; the network normalises them by the data set's mean and std;
        - features as float32 [B, ...];
        - tokens as whole numbers [B, L].

        The partitions `Permuted`, `Rotated` and `SwappedLabels` change the samples of single clients. The network
        does not apply these changes. With `FeatureFusion`, the network has its own extractor in both places.

        The classes that the settings name are imported and constructed. They may be classes that are not part of
        fedmpi. Use this method only for files from people whose code you would run.

        Args:
            which: None: the global model, or, for a method with several models, the model that most clients have.
                A number: the model with this number in /clusters. "best": the same as None, in the round that is
                the best on the validation set. Another name: this vector of /model, such as "pretrained".

        Raises:
            BadInput: the model does not exist, the file does not say how it is built, or it cannot be built in the
                same way. For example, a class of the user's own cannot be imported (its folder must be on
                PYTHONPATH), or the class has changed.
        """
        # Imported by name, because the module depends on methods and models, which depend on this one.
        rebuilding = importlib.import_module("fedmpi.experiment.rebuilding")
        network: Network = rebuilding.rebuild(self, which)
        return network

    def tensors(self, name: str) -> dict[str, NDArray[np.float32]]:
        """Tensors by name of another network at the server, such as a generator; empty if the file has none.

        Raises:
            BadInput: the file is damaged.
        """
        place = f"networks/{name}"
        return {**self._tensors(self._read(place)), **self._read_frozen(place)}

    def state_dict(self, weights: NDArray[np.float32] | None = None) -> dict[str, NDArray[np.float32]]:
        """Tensors of a model by name, in their shapes; the trained tensors are views of the weights.

        The frozen tensors, which all models of the run share, are included.

        `network` also builds the module and normalises the samples. This method is for programs that build the
        module themselves. They must normalise the samples as in training (see `inputs`).

        Args:
            weights: [P] in the canonical layout; None: the last global model.

        Raises:
            BadInput: the weights do not fit the model's tensors.
        """
        model = self.model if weights is None else {**self.model, "weights": weights}
        return {**self._tensors(model), **self.frozen}

    def table(self, name: str) -> Table:
        """A table by its name, which is one of `TABLES`."""
        table: Table = getattr(self, name)
        return table

    def to_pandas(self, table: str = "rounds") -> pandas.DataFrame:
        """A table as a data frame; a column [n, m] becomes m columns name_0, name_1, ...

        Raises:
            BadInput: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise BadInput("pandas is not installed: pip install 'fedmpi[plot]'") from None
        return pandas.DataFrame(flat(self.table(table)))

    @property
    def main_column(self) -> str:
        """The column of /rounds that has the main metric on the test set, such as test_accuracy."""
        return f"test_{self.main_metric}"

    def described(self, column: str) -> Array:
        """The description of a column of /rounds: its label, its unit, and which values are better.

        Columns that a method has added have no unit and no direction.
        """
        found = self._groups["rounds"].array(column) or COLUMN
        return replace(found, label=found.label or column.replace("_", " ").capitalize())

    def decides(self, column: str) -> str:
        """The column whose best value decides which round is the best for a column of /rounds.

        For columns that are measured on test samples, it is the main metric on the validation set, if the run has
        one. Otherwise it is the column itself.
        """
        main = f"validation_{self.main_metric}"
        is_valid = main in self.rounds and self.described(main).better is not None
        return main if is_valid and self.described(column).is_on_test else column

    def best_is(self, column: str) -> str:
        """What `Statistics.best` is for a column.

        - "best on validation": the value in the round that is the best on the validation set.
        - "best on test, optimistic": the best of the values on test samples. It is better than what can be expected
          on other samples, because the test samples themselves have decided which round is the best.
        - "best": the best value of a column that is not measured on test samples.
        """
        if not self.described(column).is_on_test:
            return "best"
        return "best on test, optimistic" if self.decides(column) == column else "best on validation"

    def statistics(self, column: str | None = None, direction: Direction | None = None) -> Statistics:
        """Summarize a column of /rounds, such as an accuracy or a loss, in the numbers that are usually reported.

        Args:
            column: name of the column. If the file does not have it, all numbers are NaN. None: `main_column`.
            direction: which values are better; None: the direction that the file or the schema gives for the column.
                It does not matter if a validation set decides which round is the best.
        """
        column = column or self.main_column
        values = self.rounds.get(column, np.empty(0))
        known = values[~np.isnan(values)]
        initial = float(self.initial.get(column, np.nan))
        if not known.size:
            return Statistics(initial, np.nan, np.nan, 0, np.nan)
        last, last10 = float(known[-1]), float(known[-10:].mean())
        decides = self.decides(column)
        better = (direction if decides == column else None) or self.described(decides).better
        row = best_row(self.rounds[decides], better) if better else None
        if row is None:
            return Statistics(initial, last, np.nan, 0, last10)
        return Statistics(initial, last, float(values[row]), int(self.rounds["round"][row]), last10)

    def _tensors(self, model: Table) -> dict[str, NDArray[np.float32]]:
        """Tensors by name, as views of a model's weights; empty if there is no model."""
        tensors = {}
        try:
            parts = [model[key] for key in ("names", "shapes", "offsets")] if model else []
            for name, padded, offset in zip(*parts, strict=True):
                shape = padded[padded >= 0]
                tensors[name] = model["weights"][offset : offset + shape.prod()].reshape(shape)
        except (KeyError, ValueError):
            raise BadInput(f"{self.path}: damaged: its weights are not those of its model's tensors") from None
        return tensors

    def _read_frozen(self, network: str) -> Table:
        found: dict[str, h5py.Dataset] = {}
        with self._opened() as file:
            if group := group_at(file, f"{network}/frozen"):
                group.visititems(
                    lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {})
                )
            return {name: values(tensor) for name, tensor in found.items()}

    def _read(self, name: str) -> Table:
        with self._opened() as file:
            group = group_at(file, name)
            return table_of(group, self._groups) if group else {}

    @contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        """The file, which must still be that of this run."""
        with opened(self.path) as file:
            if str(file.attrs.get("started")) != str(self.attributes.get("started")):
                raise BadInput(f"{self.path}: another run has replaced the file since it was opened; open it again")
            yield file


def open(path: str | Path) -> Run:
    """Read a run's results file.

    Raises:
        BadInput: the file does not exist, is damaged, is no results file, or has another schema.
    """
    return Run(path)


def whole(path: Path) -> Run:
    """Read a results file for commands, which need all attributes, some columns of /rounds, and the settings.

    Raises:
        BadInput: as `open`; or one of these is missing or damaged.
    """
    run = open(path)
    lacking = [f"/: attribute {name}" for name in GROUPS["/"].attributes if name not in run.attributes]
    lacking += [f"/rounds/{name}:" for name in _RELIED_UPON if run.rounds and name not in run.rounds]
    if lacking:
        raise BadInput(f"{path}: damaged: {lacking[0]} is missing")
    _ = run.settings  # raises BadInput here if they are damaged
    return run


def flat(table: Table) -> Table:
    """The table with columns [n] only: a column [n, m] becomes m columns name_0, name_1, ..."""
    columns: Table = {}
    for name, column in table.items():
        if column.ndim == 1:
            columns[name] = column
        else:
            columns.update({f"{name}_{i}": column[:, i] for i in range(column.shape[1])})
    return columns


def traffic(run: Run) -> NDArray[np.float64]:
    """GB [rounds] that the clients sent and received in each round, by the method's definition."""
    return (run.rounds["bytes_up"] + run.rounds["bytes_down"]) / 1e9


def _needed(file: h5py.File, name: str) -> h5py.Group:
    group = group_at(file, name)
    if group is None:
        raise Unfit(f"damaged: /{name} is missing")
    return group


def _status(attributes: dict[str, Any]) -> str:
    status = str(attributes["status"])
    if status == "running" and not _is_alive(attributes):
        return "killed"
    return status


def _is_alive(attributes: dict[str, Any]) -> bool:
    age = datetime.now(timezone.utc) - datetime.fromisoformat(attributes["last_write"])
    return not Owner.parse(attributes.get("owner", "")).is_gone(
        age.total_seconds(), 10 * attributes["write_interval"]
    )
