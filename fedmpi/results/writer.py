"""Rank 0's side of the results file: collect rows, and now and then put a complete new file in place.

The layout of the file is described in `fedmpi.results.schema`.
"""

from __future__ import annotations

import hashlib
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
from fedmpi.errors import BadInput
from fedmpi.results.columns import Columns
from fedmpi.results.files import unlocked
from fedmpi.results.owner import Owner
from fedmpi.results.paths import kind, replacing
from fedmpi.results.schema import SCHEMA, SETTLED_EPOCHS, SETTLED_GAIN, Status
from fedmpi.results.storage import Packed, Storage, image

_TABLES = ("rounds", "clients", "ranks", "evaluation", "partition")
# What else a file may have; all other groups are arrays that were kept.
_OTHERS = {"environment", "clusters", "held_out", "stages", "model", "networks"}
_FIRST_ROUND = 360.0  # seconds between two writes that readers should expect before a round has ended

Weights = Callable[[], NDArray[np.float32]]


class Results:
    """The results of one run, in memory, and their file, which any program can open at any moment.

    Every write makes a new file beside the old one and renames it over that, so a reader sees a complete
    state and never waits; nothing is written, and an old file stays, until the first `write`.

    Args:
        path: the file; missing folders are made at the first write.
        attributes: config (YAML text), algorithm, dataset, model, seed, ...; None is left out. What changes is given
            as a function, which is called at every write.
        environment: what the job runs on: numbers, texts, lists of texts; None is left out.
        overwrite: whether a file that exists may be replaced.
        confirm: called before every write, to make sure that the file is still this process's; None: no other run
            knows the file.

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
        self.path = Path(path).resolve()  # a link's target is replaced, not the link
        self._attributes = {
            "schema": SCHEMA,
            "fedmpi_version": __version__,
            "started": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "owner": Owner.here().text,
            **attributes,
        }
        self._environment = environment
        self._confirm = confirm
        self._status: Status = "running"
        self._tables = {name: Columns() for name in _TABLES}
        self._initial: dict[str, float] = {}
        self._inputs: dict[str, Any] = {}
        self._models: dict[str, _Model] = {}
        self._kept: dict[str, dict[str, Packed]] = {}
        self._pace = _Pace()
        # Of each table, how many rows the file has; and whether it lacks more than rows.
        self._written: dict[str, int] = {}
        self._lacks = True

    @property
    def started(self) -> str:
        """When the run began, before whatever interrupted it."""
        return str(self._attributes["started"])

    @property
    def held_out(self) -> NDArray[np.float64] | None:
        """What `set_held_out` was given last, perhaps before the run was interrupted; None: nothing."""
        table = self._tables.get("held_out")
        return None if table is None else np.array(dict(table.items())["accuracy"])

    def resume(
        self, started: str, round: int, is_over: bool = False, beyond: Mapping[str, NDArray] | None = None
    ) -> None:
        """Take over what the file has up to a round.

        Args:
            started: when the run began, by which a file is known that somebody has put in the place of the run's.
            is_over: whether no further round follows, so that what comes after the last one is taken over, too.
            beyond: what `beyond_file` gave after this round; the file may have some of it by now.

        Raises:
            OSError, BadInput: it cannot be read, is of another run, or ends before.
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
            after = ["held_out"] if is_over and "held_out" in file else []
            self._tables |= {name: _table(file[name]) for name in [*stages, *after]}
            for name in set(file) - {*_TABLES, *_OTHERS}:
                self.keep(name, {array: values[()] for array, values in file[name].items()})
        for name, rows in (beyond or {}).items():
            table = self._tables.setdefault(name, Columns())
            numbers = dict(table.items()).get("round", np.zeros(1))
            later = rows[rows["round"] > numbers.max(initial=0)]
            table.add({column: later[column] for column in later.dtype.names or ()})
        if self._tables["rounds"].rows != round:
            raise BadInput(f"{self.path}: ends before its checkpoint, which is after round {round}")

    def beyond_file(self) -> dict[str, NDArray]:
        """Rows that the file does not have, by table: [n] records of the table's columns.

        For a checkpoint, so that it need not wait for all rows to be written once more. The file is written before
        if that is due, or if it lacks anything else.
        """
        if self._lacks:
            self.write()
        else:
            self.write_if_due()
        written = {name: self._written.get(name, 0) for name in self._tables}
        tables = {name: table for name, table in self._tables.items() if table.rows > written[name]}
        return {name: _records(table.since(written[name])) for name, table in tables.items()}

    def add_round(self, values: Mapping[str, float]) -> None:
        """One row of /rounds: round, seconds, ... and whatever the algorithm logs."""
        self._tables["rounds"].add(values)

    def add_clients(self, table: Mapping[str, ArrayLike]) -> None:
        """Rows of /clients: columns [n] round, client, rank, samples, steps, seconds, loss, ..."""
        self._tables["clients"].add(table)

    def add_ranks(self, table: Mapping[str, ArrayLike]) -> None:
        """Rows of /ranks: columns [n] round, rank, busy_seconds, wait_seconds, clients."""
        self._tables["ranks"].add(table)

    def add_clusters(self, round: int, cluster: ArrayLike) -> None:
        """One row of /clusters: the number of every client's model [clients], -1 before it has one."""
        table = self._tables.setdefault("clusters", Columns())
        table.add({"round": np.array([round]), "cluster": np.asarray(cluster)[None]})

    def add_evaluation(
        self, round: int, per_class_accuracy: ArrayLike, client_accuracy: ArrayLike | None = None
    ) -> None:
        """One row of /evaluation: accuracies in [0, 1] of all classes [classes] and all clients [clients]."""
        row = {"round": np.array([round]), "per_class_accuracy": np.asarray(per_class_accuracy)[None]}
        if client_accuracy is not None:
            row["client_accuracy"] = np.asarray(client_accuracy)[None]
        self._tables["evaluation"].add(row)

    def set_confusion(self, round: int, counts: NDArray) -> None:
        """/confusion, of the last evaluation: [classes, classes] samples of each class taken for each class.

        The file has it later: another evaluation follows before the run is over.
        """
        self._kept["confusion"] = {"round": Packed(np.array([round])), "counts": Packed(counts)}

    def begin_stage(self, stage: str, round: int) -> None:
        """A stage goes on after this round, or begins after none: an earlier job's later ones are dropped."""
        self._lacks = True
        self._tables[f"stages/{stage}"] = self._tables.get(f"stages/{stage}", Columns()).until(round)

    def add_stage_round(self, stage: str, values: Mapping[str, float]) -> None:
        """One row of /stages/NAME: round, seconds, ... of what is trained before the rounds."""
        self._tables.setdefault(f"stages/{stage}", Columns()).add(values)

    def keep(self, name: str, arrays: Mapping[str, NDArray]) -> None:
        """A group of arrays, in place of an earlier one."""
        self._kept[name] = {array: Packed(values) for array, values in arrays.items()}
        self._lacks = True

    def set_initial(self, test_loss: float, test_accuracy: float) -> None:
        """How the model does before the first round."""
        self._initial = {"test_loss": test_loss, "test_accuracy": test_accuracy}
        self._lacks = True

    def set_partition(self, label_counts: ArrayLike, samples: ArrayLike) -> None:
        """How many samples of each class [clients, classes], and in all [clients], the clients hold."""
        partition = self._tables["partition"] = Columns()
        partition.add({"label_counts": label_counts, "samples": samples})
        self._lacks = True

    def set_held_out(self, accuracy: NDArray[np.float64]) -> None:
        """[held_out, epochs + 1] the accuracy of each on its own test samples, before and after each epoch."""
        held_out = self._tables["held_out"] = Columns()
        held_out.add({"accuracy": accuracy, "epochs": [settled(one) for one in accuracy]})
        self._lacks = True

    def set_model(
        self,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        offsets: Sequence[int],
        weights: Weights,
        others: Mapping[str, Weights] | None = None,
        frozen: Mapping[str, NDArray] | None = None,
    ) -> None:
        """Say how the model looks and where its weights come from.

        Args:
            names, shapes, offsets: of the T tensors in the canonical layout; offsets count values, not bytes.
            weights: gives the canonical weights [P]; called whenever the file is written, and only then.
            others: the same for further arrays, such as the [M, P] centers of a method with M models.
            frozen: by name, the network's tensors that training does not change.
        """
        arrays = {"weights": weights, **(others or {})}
        self._models["model"] = _Model(names, shapes, offsets, arrays, frozen or {})

    def set_inputs(
        self,
        inputs: str,
        shape: Sequence[int],
        classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        vocabulary: int | None = None,
    ) -> None:
        """Say what the model takes, so that it can be used without the data set: attributes of /model.

        Args:
            inputs: what the data set's arrays hold: uint8, float32 or int64.
            shape: of a sample, without the batch.
            mean, std, vocabulary: as of a `Dataset`.
        """
        numbers = {"shape": shape, "mean": mean, "std": std}
        arrays = {name: np.array(values) for name, values in numbers.items() if values is not None}
        self._inputs = {"inputs": inputs, "classes": classes, "vocabulary": vocabulary, **arrays}

    def set_network(
        self,
        name: str,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        offsets: Sequence[int],
        weights: Weights,
        frozen: Mapping[str, NDArray] | None = None,
    ) -> None:
        """The same for another network that the method has at the server."""
        self._models[f"networks/{name}"] = _Model(names, shapes, offsets, {"weights": weights}, frozen or {})

    def write_if_due(self) -> None:
        """Write if the last write is long enough ago that writing takes at most two percent of the run."""
        if self._pace.due():
            self.write()

    def finish(self, status: Status) -> None:
        """Set how the run ended and write."""
        self._status = status
        self.write()

    def write(self) -> None:
        """Put a new file in the old one's place.

        Raises:
            OSError: the file cannot be written (a full disk, a vanished folder); the old one is unharmed.
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
            group = file.create_group(name, track_order=True)  # readers list columns in the order they came
            for column, values in table.items():
                storage.add(group, column, values)
        storage.set_attributes(file["evaluation"], self._initial)
        for place, model in self._models.items():
            model.store(storage, file.create_group(place))
        if "model" in file:
            storage.set_attributes(file["model"], self._inputs)
        for place, arrays in self._kept.items():
            group = file.create_group(place)
            for name, packed in arrays.items():
                packed.store(storage, group, name)


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


class _Pace:
    """When to write next, and how long it was between two writes at most."""

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
        finally:  # a write that fails counts as well, or the next would follow at once
            self._ended = monotonic()
            self._duration = self._ended - began


def check_writable(path: str | Path, overwrite: bool) -> None:
    """Make sure, without writing anything, that `path` can become a results file.

    Raises:
        BadInput: it exists and may not be overwritten, is no file but a folder or a device, or its folder cannot be
            made or written.
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
    """What a file has up to a round; None: all."""
    columns = Columns()
    if len(group):
        columns.add({name: dataset[()] for name, dataset in group.items()})
    return columns if round is None else columns.until(round)


def _records(columns: Mapping[str, NDArray]) -> NDArray:
    """[n] records of columns [n, ...]."""
    kinds = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    records = np.empty(len(next(iter(columns.values()))), dtype=kinds)
    for name, values in columns.items():
        records[name] = values
    return records


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def settled(accuracy: NDArray[np.float64]) -> float:
    """The first epoch from which the next few gain less than a tenth of a point; NaN if there is none.

    Args:
        accuracy: [epochs + 1], before training and after each epoch.
    """
    for epoch in range(len(accuracy) - SETTLED_EPOCHS):
        if accuracy[epoch + 1 : epoch + 1 + SETTLED_EPOCHS].max() - accuracy[epoch] < SETTLED_GAIN:
            return epoch
    return math.nan
