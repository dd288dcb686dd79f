"""The reader's side of the results file: `open(path)` gives a `Run` of plain NumPy arrays."""

from __future__ import annotations

import importlib
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
from fedmpi.results.owner import Owner
from fedmpi.results.schema import GROUPS, Direction, described
from fedmpi.results.settings import DATA, sound

if TYPE_CHECKING:
    import pandas

    from fedmpi.results.network import Network

Table = dict[str, NDArray[Any]]

# Attributes that tell whether it still runs.
_OF_THE_PROCESS = ("host", "pid", "last_write", "write_interval")
_RELIED_UPON = ("seconds", "bytes_up", "bytes_down")


class Accuracy(NamedTuple):
    """A column of /rounds in five numbers, NaN where nothing was evaluated; the best one is the earliest of equals.

    Where nobody knows which values are better, the best one is NaN, of round 0.
    """

    initial: float
    last: float
    best: float
    best_round: int
    last10: float  # mean of the last ten evaluations


class Run:
    """One run's results; the layout is described in `fedmpi.results.schema`.

    The tables that can be large (`clients`, `ranks`, `clusters`, `partition`, `model`) are read when first asked for,
    from the file as it is then: those of a run that is still going on may be some rounds ahead. All else is
    read at once. No file is kept open.

    Attributes:
        config: the configuration, as YAML text.
        attributes: algorithm, dataset, model, seed, started, ...
        environment: what the job ran on.
        initial: test_loss and test_accuracy of the model before the first round, if it was evaluated.
        rounds: columns [rounds].
        evaluation: columns [evaluations, ...].
        inputs: what the network takes: the attributes of /model.
        weights_sha256: of the bytes of the last global model, or None before it is known.
        status: running, finished, interrupted, failed or killed.
    """

    #: Names of the tables that `table` and `to_pandas` know.
    TABLES = ("rounds", "clients", "ranks", "evaluation", "clusters", "partition", "held_out")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with opened(self.path) as file:
            self.attributes: dict[str, Any] = attributes_of(file, "config", "status", *_OF_THE_PROCESS)
            self.config: str = self.attributes["config"]
            self.status = _status(self.attributes)
            environment, rounds, evaluation = (
                _needed(file, name) for name in ("environment", "rounds", "evaluation")
            )
            self.environment: dict[str, Any] = attributes_of(environment)
            self.initial: dict[str, float] = attributes_of(evaluation)
            self.rounds, self.evaluation = table_of(rounds), table_of(evaluation)
            model = group_at(file, "model")
            self.inputs: dict[str, Any] = attributes_of(model, "sha256") if model else {}
            self.weights_sha256: str | None = self.inputs.get("sha256")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The run's configuration, parsed.

        Raises:
            BadInput: it is no configuration, or one that is too large to be one.
        """
        import yaml  # here, because it takes as long as reading ten files

        from fedmpi import small_yaml

        try:
            return sound(small_yaml.load(self.config) or {})
        except yaml.YAMLError as error:
            raise BadInput(f"{self.path}: its config {small_yaml.reason(error)}") from None
        except ValueError as error:
            raise BadInput(f"{self.path}: damaged: its config {error}") from None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What was run: the settings, and the checksums of the data as they were read.

        Of a file without settings, the names of method, data set and model, and the seed.
        """
        names = {name: self.attributes.get(name) for name in ("algorithm", "dataset", "model", "seed")}
        checksums = {name: str(self.attributes[name]) for name in DATA.values() if name in self.attributes}
        return {**names, **self.settings, **checksums}

    @cached_property
    def clients(self) -> Table:
        """Columns [participations]; of clients that were not trained -1 in those of whole numbers, or NaN."""
        return self._read("clients")

    @cached_property
    def ranks(self) -> Table:
        """Columns [rounds x ranks]."""
        return self._read("ranks")

    @cached_property
    def clusters(self) -> Table:
        """round [rounds] and cluster [rounds, clients], of a method with several models; else nothing."""
        return self._read("clusters")

    @cached_property
    def partition(self) -> Table:
        """label_counts [clients, classes] and samples [clients]."""
        return self._read("partition")

    @cached_property
    def held_out(self) -> Table:
        """accuracy [held_out, epochs + 1] and epochs [held_out]; empty if there were none."""
        return self._read("held_out")

    @cached_property
    def synthetic(self) -> Table:
        """images uint8 [n, C, H, W] and labels [n] that the server made and pre-trained on; empty if it did not."""
        return self._read("synthetic")

    @cached_property
    def confusion(self) -> Table:
        """counts [classes, classes] of the last evaluation's samples, by class and by predicted class; and its round.

        Empty if there was none.
        """
        return self._read("confusion")

    def stage(self, name: str) -> Table:
        """Columns [rounds] of what was trained before the rounds, such as a generator; empty if nothing was."""
        return self._read(f"stages/{name}")

    @cached_property
    def model(self) -> Table:
        """weights [P], names [T], shapes [T, D], offsets [T], and [M, P] arrays of methods with M models."""
        return self._read("model")

    @cached_property
    def frozen(self) -> Table:
        """The model's tensors that training does not change, by name: frozen parameters and constant buffers."""
        return self._read_frozen("model")

    @property
    def weights(self) -> NDArray[np.float32]:
        """The last global model in the canonical layout, [P].

        Raises:
            BadInput: there is none.
        """
        if "weights" not in self.model:
            raise BadInput(f"{self.path}: has no model")
        return self.model["weights"]

    def network(self, which: int | str | None = None) -> Network:
        """The trained network, ready to use: built from the stored settings, with the stored weights, for evaluation.

        It takes batches as the data set's arrays hold them, and gives logits [B, classes]: images as uint8
        [B, C, H, W], which it normalises by the data set's mean and std; features as float32 [B, ...]; tokens as
        whole numbers [B, L]. What a partition changes for single clients (`Permuted`, `Rotated`, `SwappedLabels`) is
        not done. The classes that the settings name are imported and constructed, also such as are not fedmpi's:
        only for files from somebody whose code you would run. `FeatureFusion` gives what the network does with its
        own extractor twice.

        Args:
            which: None: the global model, or, of a method with several, the one that most clients have; a number: of
                such a method that model, as /clusters counts them; a name: that vector of /model, such as
                "pretrained".

        Raises:
            BadInput: there is no such model, the file does not say how it is built, or it cannot be built as it was,
                such as where a class of one's own cannot be imported (its folder must be on PYTHONPATH) or is another
                one now.
        """
        # By its name, because it needs what lies above: methods and models.
        rebuilding = importlib.import_module("fedmpi.experiment.rebuilding")
        network: Network = rebuilding.rebuild(self, which)
        return network

    def tensors(self, name: str) -> dict[str, NDArray[np.float32]]:
        """The tensors by name of another network that the method had at the server, such as a generator."""
        place = f"networks/{name}"
        return {**self._tensors(self._read(place)), **self._read_frozen(place)}

    def state_dict(self, weights: NDArray[np.float32] | None = None) -> dict[str, NDArray[np.float32]]:
        """The tensors of `weights` [P] (the last global model if left out) by name, as views in their shapes.

        With those that are frozen, which all models of the run share. For other programs than `network`, which also
        knows how the module is built and what it takes: a network is right only with samples that are normalised as
        in training (`inputs`).
        """
        model = self.model if weights is None else {**self.model, "weights": weights}
        return {**self._tensors(model), **self.frozen}

    def table(self, name: str) -> Table:
        """The table of that name, one of `TABLES`."""
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

    def accuracy(self, column: str = "test_accuracy", direction: Direction | None = None) -> Accuracy:
        """What is usually reported of a column of /rounds, such as one of accuracies or losses.

        Args:
            direction: which values are better; None: as the schema says of its columns.
        """
        values = self.rounds.get(column, np.empty(0))
        evaluated = np.flatnonzero(~np.isnan(values))
        initial = float(self.initial.get(column, np.nan))
        if not evaluated.size:
            return Accuracy(initial, np.nan, np.nan, 0, np.nan)
        values = values[evaluated]
        last, last10 = float(values[-1]), float(values[-10:].mean())
        direction = direction or described(column).better
        if direction is None:
            return Accuracy(initial, last, np.nan, 0, last10)
        best = int(values.argmax() if direction == "higher" else values.argmin())
        best_round = int(self.rounds["round"][evaluated[best]])
        return Accuracy(initial, last, float(values[best]), best_round, last10)

    def _tensors(self, model: Table) -> dict[str, NDArray[np.float32]]:
        """By name, as views of a model's weights; of no model none."""
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
        with opened(self.path) as file:
            if group := group_at(file, f"{network}/frozen"):
                group.visititems(
                    lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {})
                )
            return {name: values(tensor) for name, tensor in found.items()}

    def _read(self, name: str) -> Table:
        with opened(self.path) as file:
            group = group_at(file, name)
            return table_of(group) if group else {}


def open(path: str | Path) -> Run:
    """Read a run's results file.

    Raises:
        BadInput: it is missing, damaged, no results file, or of another schema.
    """
    return Run(path)


def whole(path: Path) -> Run:
    """The same for commands, which rely upon all attributes, some columns of /rounds, and the settings.

    Raises:
        BadInput: as `open`, or something of that is not there.
    """
    run = open(path)
    lacking = [f"/: attribute {name}" for name in GROUPS["/"].attributes if name not in run.attributes]
    lacking += [f"/rounds/{name}:" for name in _RELIED_UPON if run.rounds and name not in run.rounds]
    if lacking:
        raise BadInput(f"{path}: damaged: {lacking[0]} is missing")
    _ = run.settings  # what is wrong with them is said now
    return run


def flat(table: Table) -> Table:
    """The same with columns [n] only: a column [n, m] becomes m columns name_0, name_1, ..."""
    columns: Table = {}
    for name, column in table.items():
        if column.ndim == 1:
            columns[name] = column
        else:
            columns.update({f"{name}_{i}": column[:, i] for i in range(column.shape[1])})
    return columns


def traffic(run: Run) -> NDArray[np.float64]:
    """[rounds] GB that the clients sent and received, by the method's definition."""
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
