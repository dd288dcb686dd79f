"""Writing of the results file by rank 0: rows are collected in memory, and the whole file is replaced at times.

`fedmpi.results.schema` describes the layout of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmpi import __version__
from fedmpi.checksum import sha256_of
from fedmpi.errors import BadInput, require
from fedmpi.results.axes import columns, name_axes
from fedmpi.results.columns import Columns
from fedmpi.results.files import unlocked
from fedmpi.results.metrics import metrics_of
from fedmpi.results.owner import Owner
from fedmpi.results.paths import kind, replacing
from fedmpi.results.schema import SCHEMA, SETTLED_EPOCHS, SETTLED_GAIN, Direction, Status, of_metrics
from fedmpi.results.storage import Packed, Storage, image

_TABLES = ("rounds", "clients", "ranks", "evaluation", "partition")
# Other groups that a file may have. All further groups are arrays that were stored by `Results.keep`.
_OTHERS = {"environment", "clusters", "held_out", "stages", "model", "best", "networks"}
# The group of `Results.set_confusion`.
_CONFUSION = "confusion"
_FIRST_ROUND = 360.0  # seconds between two writes that readers should expect before the first round has ended

Weights = Callable[[], NDArray[np.float32]]


class Results:
    """The results of one run in memory, and the results file.

    Any program can open the file at any time. Each write makes a new file in the same folder and then renames it to
    the name of the old file. So readers see a complete state and never wait. Before the first `write`, nothing is
    written, and an old file is unchanged.

    Args:
        path: the results file. Missing folders are created at the first write.
        attributes: the attributes of the file: config (YAML text), algorithm, dataset, model, seed, ... None is left
            out. If a value changes during the run, give a function, which is called at each write.
        environment: the hosts, devices and versions of the job: numbers, texts and lists of texts. None is left out.
        overwrite: whether an existing file may be replaced.
        confirm: called before each write; raises an error if the file no longer belongs to this process. None: no
            other run uses the file.

    Raises:
        BadInput: as `check_writable`.
    """

    def __init__(
        self,
        path: str | Path,
        attributes: Mapping[str, Any],
        environment: Mapping[str, Any],
        overwrite: bool = False,
        confirm: Callable[[], object] | None = None,
    ) -> None:
        check_writable(path, overwrite)
        self.path = Path(path).resolve()  # the target of a link is replaced, not the link
        self._attributes = {
            "schema": SCHEMA,
            "fedmpi_version": __version__,
            "started": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "owner": Owner.here().text,
            **attributes,
        }
        metrics = metrics_of(attributes)
        self._main = metrics.main
        self._groups = of_metrics(metrics)
        self._environment = environment
        self._confirm = confirm
        self._status: Status = "running"
        self._tables = {name: Columns() for name in _TABLES}
        self._initial: dict[str, float] = {}
        self._inputs: dict[str, Any] = {}
        self._models: dict[str, _Model] = {}
        self._kept: dict[str, dict[str, Packed]] = {}
        self._best: _Best | None = None
        self._pace = _Pace()
        # The number of rows of each table in the file, and whether the file lacks anything other than rows.
        self._written: dict[str, int] = {}
        self._lacks = True

    @property
    def started(self) -> str:
        """Start time of the run, ISO 8601, UTC. A resumed run keeps its first start time."""
        return str(self._attributes["started"])

    @property
    def held_out(self) -> NDArray[np.float64] | None:
        """The values [held_out, epochs + 1] that were set last; None: none were set.

        They may come from the file of a run that was interrupted and resumed.
        """
        table = self._tables.get("held_out")
        return None if table is None else np.array(dict(table.items())[self._main])

    @property
    def rounds(self) -> dict[str, NDArray[Any]]:
        """The columns of /rounds so far."""
        return dict(self._tables["rounds"].items())

    def resume(self, started: str, round: int, beyond: Mapping[str, NDArray] | None = None) -> None:
        """Read the results up to a round from the file, to continue them.

        Those of held-out clients are read if they belong to this round.

        Args:
            started: start time of the run. A file with another start time is a file of another run.
            round: the last round that is read.
            beyond: the rows that `beyond_file` returned after this round. The file may have some of them by now.

        Raises:
            OSError: the file cannot be read.
            BadInput: the file is damaged, is of another run, or ends before the round.
        """
        with unlocked(self.path) as file:
            if file.attrs.get("started") != started:
                raise BadInput(f"{self.path}: was replaced while the run was set up")
            before = str(file.attrs.get("resumed", "")).splitlines()
            self._attributes |= {"started": file.attrs["started"], "resumed": [*before, f"{_now()} after {round}"]}
            self._initial = dict(file["evaluation"].attrs)
            stages = [f"stages/{name}" for name in file.get("stages", ())]
            for name in ("rounds", "clients", "ranks", "evaluation", "clusters"):
                if name in file:
                    self._tables[name] = _table(file[name], round)
            after = ["held_out"] if "held_out" in file and len(file["rounds/round"]) == round else []
            self._tables |= {name: _table(file[name]) for name in [*stages, *after]}
            # It may be of a later round than `round`: then it is the best of all up to that round, which comes again.
            self._best = _Best.read(file["best"]) if "best" in file else None
            for name in set(file) - {*_TABLES, *_OTHERS}:
                self.keep(name, {array: values[()] for array, values in columns(file[name]).items()})
        for name, rows in (beyond or {}).items():
            table = self._tables.setdefault(name, Columns())
            numbers = dict(table.items()).get("round", np.zeros(1))
            later = rows[rows["round"] > numbers.max(initial=0)]
            table.add({column: later[column] for column in later.dtype.names or ()})
        if self._tables["rounds"].rows != round:
            raise BadInput(f"{self.path}: ends before its checkpoint, which is after round {round}")

    def beyond_file(self) -> dict[str, NDArray]:
        """The rows that the file does not have yet, by table: [n] records of the table's columns.

        A checkpoint stores these rows, so that it need not wait until the whole file is written again. The file is
        written first if a write is due, or if the file lacks anything other than rows.

        Raises:
            OSError: as `write`.
        """
        if self._lacks:
            self.write()
        else:
            self.write_if_due()
        written = {name: self._written.get(name, 0) for name in self._tables}
        tables = {name: table for name, table in self._tables.items() if table.rows > written[name]}
        return {name: _records(table.since(written[name])) for name, table in tables.items()}

    def add_round(self, values: Mapping[str, float]) -> None:
        """Add one row to /rounds: round, seconds, ... and the values that the algorithm logs.

        Results of held-out clients, which are of an earlier round then, are removed.
        """
        self._tables["rounds"].add(values)
        self._tables.pop("held_out", None)

    def add_clients(self, table: Mapping[str, ArrayLike]) -> None:
        """Add rows to /clients: columns [n] round, client, rank, samples, steps, seconds, loss, ..."""
        self._tables["clients"].add(table)

    def add_ranks(self, table: Mapping[str, ArrayLike]) -> None:
        """Add rows to /ranks: columns [n] round, rank, busy_seconds, wait_seconds, clients, ..."""
        self._tables["ranks"].add(table)

    def add_clusters(self, round: int, cluster: ArrayLike) -> None:
        """Add one row to /clusters: the number of each client's model [clients]; -1 for a client without a model."""
        table = self._tables.setdefault("clusters", Columns())
        table.add({"round": np.array([round]), "cluster": np.asarray(cluster)[None]})

    def add_evaluation(self, round: int, columns: Mapping[str, ArrayLike]) -> None:
        """Add one row to /evaluation: per_class_accuracy [classes], client_accuracy [clients], ..."""
        rows = {name: np.asarray(values)[None] for name, values in columns.items()}
        self._tables["evaluation"].add({"round": np.array([round]), **rows})

    def keep_if_best(self, round: int, column: str, value: float, better: Direction) -> None:
        """Keep the current model in /best if its value of this column is better than that of the kept model.

        Args:
            round: the round of the evaluation.
            column: such as validation_accuracy.
            value: of the current model. NaN is never better.
        """
        before = self._best.value if self._best else np.nan
        is_better = np.isnan(before) or (value > before if better == "higher" else value < before)
        if is_better and not np.isnan(value):
            arrays = {
                name: Packed(np.asarray(give(), dtype="<f4")) for name, give in self._models["model"].arrays.items()
            }
            self._best = _Best(round, column, value, arrays)
            self._lacks = True

    def set_confusion(self, round: int, counts: NDArray) -> None:
        """Set /confusion, the confusion matrix of the last evaluation.

        The next write stores it. `beyond_file` does not write it at once, because a later evaluation of the run
        replaces it.

        Args:
            round: the round of the evaluation.
            counts: [classes, classes] numbers of samples; rows are true classes, columns predicted classes.
        """
        self._kept[_CONFUSION] = {"round": Packed(np.array([round])), "counts": Packed(counts)}

    def begin_stage(self, stage: str, round: int) -> None:
        """Begin or continue a stage. Later rounds of an interrupted job are dropped.

        Args:
            stage: name of the stage.
            round: the last round of the stage that is kept; 0: none.
        """
        self._lacks = True
        self._tables[f"stages/{stage}"] = self._tables.get(f"stages/{stage}", Columns()).until(round)

    def add_stage_round(self, stage: str, values: Mapping[str, float]) -> None:
        """Add one row to /stages/NAME: round, seconds, ... of a training before the rounds."""
        self._tables.setdefault(f"stages/{stage}", Columns()).add(values)

    def keep(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """Set the arrays of a group. They replace the earlier arrays of the group."""
        self._kept[name] = {array: Packed(values) for array, values in arrays.items()}
        self._lacks = True

    def set_initial(self, values: Mapping[str, float]) -> None:
        """Set the evaluation of the initial model: test_loss, test_accuracy, ..."""
        self._initial = dict(values)
        self._lacks = True

    def set_partition(self, label_counts: ArrayLike, samples: ArrayLike, validation: ArrayLike | None = None) -> None:
        """Set the numbers of the clients' training samples: per class [clients, classes], and in all [clients].

        Args:
            validation: [clients] numbers of validation samples; None: there is no validation set.
        """
        partition = self._tables["partition"] = Columns()
        apart = {} if validation is None else {"validation": validation}
        partition.add({"label_counts": label_counts, "samples": samples, **apart})
        self._lacks = True

    def set_held_out(self, values: NDArray[np.float64]) -> None:
        """Set the results of the held-out clients.

        Args:
            values: [held_out, epochs + 1], the main metric of each client on its own test samples: before
                fine-tuning, and after each epoch.
        """
        held_out = self._tables["held_out"] = Columns()
        described = json.loads(self._attributes.get("metrics", "{}")).get(self._main, {})
        sign = -1 if described.get("better") == "lower" else 1
        held_out.add({self._main: values, "epochs": [settled(sign * one) for one in values]})
        self._lacks = True

    def set_model(
        self,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        offsets: Sequence[int],
        weights: Weights,
        others: Mapping[str, Weights] | None = None,
        frozen: Mapping[str, NDArray] | None = None,
        frozen_source: str = "",
        store_frozen: bool = True,
    ) -> None:
        """Set the layout of the model, and the functions that return its weights.

        Args:
            names, shapes, offsets: of the T tensors in the canonical layout. Offsets count values, not bytes.
            weights: returns the canonical weights [P]. It is called at each write of the file, and only then.
            others: by name, functions that return further arrays, such as the [M, P] centers of a method with M
                models.
            frozen: by name, the tensors of the network that training does not change.
            frozen_source: where they came from.
            store_frozen: whether the file has these tensors, and not only their checksum and their source.
        """
        arrays, frozen = {"weights": weights, **(others or {})}, frozen or {}
        self._models["model"] = _Model(names, shapes, offsets, arrays, frozen if store_frozen else {})
        if frozen:
            self._inputs |= {
                "frozen_values": sum(tensor.size for tensor in frozen.values()),
                "frozen_sha256": sha256_of(frozen),
                "frozen_source": frozen_source,
            }

    def set_inputs(
        self,
        inputs: str,
        shape: Sequence[int],
        classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        vocabulary: int | None = None,
    ) -> None:
        """Set the attributes of /model that describe its samples, so that it can be used without the data set.

        Args:
            inputs: kind of samples, as in /model of the schema.
            shape: shape of a sample, without the batch.
            classes: number of classes.
            mean, std, vocabulary: as in `Dataset`.
        """
        numbers = {"shape": shape, "mean": mean, "std": std}
        arrays = {name: np.array(values) for name, values in numbers.items() if values is not None}
        self._inputs |= {"inputs": inputs, "classes": classes, "vocabulary": vocabulary, **arrays}

    def set_network(
        self,
        name: str,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        offsets: Sequence[int],
        weights: Weights,
        frozen: Mapping[str, NDArray] | None = None,
    ) -> None:
        """Set the layout and the weights of another network at the server; the arguments are as in `set_model`."""
        self._models[f"networks/{name}"] = _Model(names, shapes, offsets, {"weights": weights}, frozen or {})

    def set_stopped(self, reason: str) -> None:
        """Set the reason why the run ends before all its rounds are done."""
        self._attributes["stopped_by"] = reason
        if self._best and self._best.round > self._tables["rounds"].rows:  # an earlier, killed job had more rounds
            self._best = None
        self._lacks = True

    def set_undeclared(self, names: str) -> None:
        """Set the attributes that the run keeps between rounds and that no checkpoint has."""
        self._attributes["undeclared_state"] = names
        self._lacks = True

    def write_if_due(self) -> None:
        """Write the file if the last write is so long ago that writes take at most two percent of the run time.

        Raises:
            OSError: as `write`.
        """
        if self._pace.due():
            self.write()

    def finish(self, status: Status) -> None:
        """Set the final status of the run, and write the file.

        Raises:
            OSError: as `write`.
        """
        self._status = status
        self.write()

    def write(self) -> None:
        """Replace the file by a new one.

        Raises:
            OSError: the file cannot be written (a full disk, a missing folder). The old file is then unchanged.
        """
        with self._pace.writing():
            content = image(self._store)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path, self.path, self._confirm) as file:
                file.write(content)
        self._written = {name: table.rows for name, table in self._tables.items()}
        self._lacks = False

    def _store(self, storage: Storage) -> None:
        file = storage.file
        interval = self._pace.longest_gap if self._tables["rounds"].rows else _FIRST_ROUND
        now = {"status": self._status, "last_write": _now(), "write_interval": interval}
        storage.set_attributes(file, {**self._attributes, **now})
        storage.set_attributes(file.create_group("environment"), self._environment)
        for name, table in self._tables.items():
            # Readers list the columns in the order in which they were added.
            group = file.create_group(name, track_order=True)
            for column, values in table.items():
                storage.add(group, column, values)
        storage.set_attributes(file["evaluation"], self._initial)
        for place, model in self._models.items():
            model.store(storage, file.create_group(place))
        if "model" in file:
            storage.set_attributes(file["model"], self._inputs)
        if self._best:
            self._best.store(storage, file.create_group("best"))
        for place, arrays in self._kept.items():
            group = file.create_group(place)
            for name, packed in arrays.items():
                packed.store(storage, group, name)
        name_axes(storage, self._groups)


@dataclass
class _Model:
    names: Sequence[str]
    shapes: Sequence[Sequence[int]]
    offsets: Sequence[int]
    arrays: dict[str, Weights]
    frozen: Mapping[str, NDArray]

    def store(self, storage: Storage, group: h5py.Group) -> None:
        shapes = np.full((len(self.shapes), max(map(len, self.shapes), default=0)), -1, dtype=np.int64)
        for row, shape in zip(shapes, self.shapes, strict=True):
            row[: len(shape)] = shape
        storage.add_texts(group, "names", self.names)
        storage.add(group, "shapes", shapes)
        storage.add(group, "offsets", np.asarray(self.offsets, dtype=np.int64))
        for name, give in self.arrays.items():
            array = np.ascontiguousarray(give(), dtype="<f4")
            storage.add(group, name, array)
            if name == "weights":
                storage.set_attributes(group, {"sha256": hashlib.sha256(array.data).hexdigest()})
        if self.frozen:
            frozen = group.create_group("frozen")
            for name, tensor in self.frozen.items():
                storage.add(frozen, name, np.ascontiguousarray(tensor).reshape(tensor.shape))


@dataclass
class _Best:
    """The model of the round that is best on the validation set."""

    round: int
    column: str
    value: float
    arrays: dict[str, Packed]

    def store(self, storage: Storage, group: h5py.Group) -> None:
        storage.set_attributes(group, {"round": self.round, "column": self.column, "value": self.value})
        for name, array in self.arrays.items():
            array.store(storage, group, name)
        sha256 = hashlib.sha256(group["weights"][()].data).hexdigest()
        storage.set_attributes(group, {"sha256": sha256})

    @classmethod
    def read(cls, group: h5py.Group) -> _Best:
        arrays = {name: Packed(values[()]) for name, values in group.items()}
        return cls(int(group.attrs["round"]), str(group.attrs["column"]), float(group.attrs["value"]), arrays)


class _Pace:
    """The time of the next write, and the longest time between two writes so far."""

    def __init__(self) -> None:
        self.longest_gap = 60.0  # seconds
        self._ended: float | None = None
        self._duration = 0.0

    def due(self) -> bool:
        return self._ended is None or monotonic() - self._ended >= max(1.0, 50 * self._duration)

    @contextmanager
    def writing(self) -> Iterator[None]:
        began = monotonic()
        if self._ended is not None:
            self.longest_gap = max(self.longest_gap, began - self._ended)
        try:
            yield
        finally:  # a failed write counts, too; otherwise, the next write would follow at once
            self._ended = monotonic()
            self._duration = self._ended - began


def check_writable(path: str | Path, overwrite: bool) -> None:
    """Check that `path` can become a results file, without writing anything.

    Args:
        path: the results file.
        overwrite: whether an existing file may be replaced.

    Raises:
        BadInput: the path exists and may not be overwritten, is a folder or a device, or its folder cannot be created
            or written.
    """
    if other := kind(Path(path)):
        raise BadInput(f"{path}: is {other}, not a file")
    target = Path(path).resolve()
    if target.exists() and not overwrite:
        raise BadInput(f"{path}: exists already; give --overwrite to replace it")
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise BadInput(f"{path}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"{path}: the folder {folder} cannot be written")


def _table(group: h5py.Group, round: int | None = None) -> Columns:
    """The rows of a table in a file up to a round; None: all rows."""
    table = Columns()
    if len(group):
        table.add({name: dataset[()] for name, dataset in columns(group).items()})
    return table if round is None else table.until(round)


def _records(columns: Mapping[str, NDArray]) -> NDArray:
    """Records [n] of columns [n, ...]."""
    kinds = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    records = np.empty(len(next(iter(columns.values()))), dtype=kinds)
    for name, values in columns.items():
        records[name] = values
    return records


def check_kept(name: str, arrays: Mapping[str, NDArray]) -> None:
    """Raise BadInput if a method cannot store these arrays as a group of this name (`Results.keep`)."""
    taken = {*_TABLES, *_OTHERS, _CONFUSION}
    allowed = f"a name without / that is not a group of fedmpi's own ({', '.join(sorted(taken))})"
    require(bool(name.strip(".")) and "/" not in name and name not in taken, "fed.keep: name", name, allowed)
    for array, values in arrays.items():
        require(bool(array.strip(".")) and "/" not in array, f"fed.keep: {name}: name", array, "a name without /")
        kind = np.asarray(values).dtype
        require(kind.kind in "biuf", f"fed.keep: {name}: {array}: type", kind, "of numbers")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def settled(accuracy: NDArray[np.float64]) -> float:
    """The number of epochs until a held-out client has converged; NaN if it has not.

    It has converged at the first epoch after which the next `SETTLED_EPOCHS` epochs gain less than `SETTLED_GAIN`.

    Args:
        accuracy: [epochs + 1], in [0, 1], before training and after each epoch.
    """
    for epoch in range(len(accuracy) - SETTLED_EPOCHS):
        if accuracy[epoch + 1 : epoch + 1 + SETTLED_EPOCHS].max() - accuracy[epoch] < SETTLED_GAIN:
            return epoch
    return math.nan
