"""The reader's side of the results file: `open(path)` gives a `Run` of plain NumPy arrays."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.schema import SCHEMA, Direction, described
from fedmpi.results.settings import DATA

if TYPE_CHECKING:
    import pandas

    from fedmpi.results.network import Network

Table = dict[str, NDArray[Any]]


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
        weights_sha256: of the bytes of the last global model, or None before it is known.
        status: running, finished, interrupted, failed or killed.
    """

    #: Names of the tables that `table` and `to_pandas` know.
    TABLES = ("rounds", "clients", "ranks", "evaluation", "clusters", "partition", "newcomers")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with opened(self.path) as file:
            self.attributes: dict[str, Any] = dict(file.attrs)
            self.config = str(self.attributes["config"])
            self.status = _status(self.attributes)
            self.environment: dict[str, Any] = dict(file["environment"].attrs)
            self.initial: dict[str, float] = dict(file["evaluation"].attrs)
            self.rounds = _read_table(file["rounds"])
            self.evaluation = _read_table(file["evaluation"])
            self.weights_sha256 = str(file["model"].attrs["sha256"]) if "model" in file else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The run's configuration, parsed."""
        import yaml  # here, because it takes as long as reading ten files

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one, where there is one, is ten times as fast
        settings: dict[str, Any] = yaml.load(self.config, loader) or {}
        return settings

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
    def newcomers(self) -> Table:
        """accuracy [newcomers, epochs + 1] and epochs [newcomers]; empty if there were none."""
        return self._read("newcomers")

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
        """The last global model in the canonical layout, [P]."""
        return self.model["weights"]

    def network(self, which: int | str | None = None) -> Network:
        """The trained network, ready to use: built from the stored settings, with the stored weights, for evaluation.

        It takes batches as the data set's arrays hold them, and gives logits [B, classes]: images as uint8
        [B, C, H, W], which it normalises by the data set's mean and std; features as float32 [B, ...]; tokens as
        whole numbers [B, L]. What a partition changes for single clients (`Permuted`, `Rotated`, `SwappedLabels`) is
        not done. `FeatureFusion` gives what the network does with its own extractor twice.

        Args:
            which: None: the global model, or, of a method with several, the one that most clients have; a number: of
                such a method that model, as /clusters counts them; a name: that vector of /model, such as
                "pretrained".

        Raises:
            BadInput: there is no such model, the file does not say how it is built, or it cannot be built as it was,
                such as where a class of one's own cannot be imported (its folder must be on PYTHONPATH) or is another
                one now.
        """
        from fedmpi.results.network import load  # here, because it imports torch

        return load(self, which)

    def tensors(self, name: str) -> dict[str, NDArray[np.float32]]:
        """The tensors by name of another network that the method had at the server, such as a generator."""
        place = f"networks/{name}"
        return {**_tensors(self._read(place)), **self._read_frozen(place)}

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the network takes: the attributes of /model."""
        with opened(self.path) as file:
            return dict(file["model"].attrs) if "model" in file else {}

    def state_dict(self, weights: NDArray[np.float32] | None = None) -> dict[str, NDArray[np.float32]]:
        """The tensors of `weights` [P] (the last global model if left out) by name, as views in their shapes.

        With those that are frozen, which all models of the run share. For other programs than `network`, which also
        knows how the module is built and what it takes: a network is right only with samples that are normalised as
        in training (`inputs`).
        """
        return {**_tensors(self.model if weights is None else {**self.model, "weights": weights}), **self.frozen}

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

    def _read_frozen(self, network: str) -> Table:
        found: Table = {}
        with opened(self.path) as file:
            if f"{network}/frozen" in file:
                file[f"{network}/frozen"].visititems(
                    lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {})
                )
        return {name: np.asarray(tensor) for name, tensor in found.items()}

    def _read(self, name: str) -> Table:
        with opened(self.path) as file:
            return _read_table(file[name]) if name in file else {}


def open(path: str | Path) -> Run:
    """Read a run's results file.

    Raises:
        BadInput: it is missing, damaged, no results file, or of another schema.
    """
    return Run(path)


def flat(table: Table) -> Table:
    """The same with columns [n] only: a column [n, m] becomes m columns name_0, name_1, ..."""
    columns: Table = {}
    for name, values in table.items():
        if values.ndim == 1:
            columns[name] = values
        else:
            columns.update({f"{name}_{i}": values[:, i] for i in range(values.shape[1])})
    return columns


def traffic(run: Run) -> NDArray[np.float64]:
    """[rounds] GB that the clients sent and received, by the method's definition."""
    return (run.rounds["bytes_up"] + run.rounds["bytes_down"]) / 1e9


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """A results file, to be read only.

    Raises:
        BadInput: as `open`.
    """
    try:
        path.open("rb").close()  # HDF5 itself is wordy about missing files
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    try:
        with unlocked(path) as file:
            schema = file.attrs.get("schema")
            if schema is None:
                raise BadInput(f"{path}: not a results file of fedmpi")
            if schema != SCHEMA:
                raise BadInput(f"{path}: has schema {schema}, this version of fedmpi reads schema {SCHEMA}")
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise BadInput(f"{path}: {os.strerror(error.errno)}") from None
        raise BadInput(f"{path}: not an HDF5 file, or a damaged one") from None


@contextmanager
def unlocked(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, to be read only, whoever has locked it: results files are replaced, never changed.

    Raises:
        OSError: it cannot be read, or is no HDF5 file.
    """
    with ExitStack() as stack:
        try:
            file = h5py.File(path, "r", locking=False)
        except BlockingIOError:  # HDF5_USE_FILE_LOCKING says TRUE, which goes before what we say
            file = h5py.File(stack.enter_context(path.open("rb")), "r")
        yield stack.enter_context(file)


def _read_table(group: h5py.Group) -> Table:
    return {
        name: dataset.asstr()[()] if h5py.check_string_dtype(dataset.dtype) else dataset[()]
        for name, dataset in group.items()
        if isinstance(dataset, h5py.Dataset)
    }


def _tensors(model: Table) -> dict[str, NDArray[np.float32]]:
    """By name, as views of a model's weights."""
    tensors = {}
    for name, padded, offset in zip(*(model[key] for key in ("names", "shapes", "offsets")), strict=True):
        shape = padded[padded >= 0]
        tensors[name] = model["weights"][offset : offset + shape.prod()].reshape(shape)
    return tensors


def _status(attributes: dict[str, Any]) -> str:
    status = str(attributes["status"])
    if status == "running" and not _is_alive(attributes):
        return "killed"
    return status


def _is_alive(attributes: dict[str, Any]) -> bool:
    if attributes["host"] == socket.gethostname():
        try:
            os.kill(int(attributes["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True  # somebody else's process, but there
        return not _is_zombie(int(attributes["pid"]))
    age = datetime.now(timezone.utc) - datetime.fromisoformat(attributes["last_write"])
    return bool(age.total_seconds() < 10 * attributes["write_interval"])


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be asked how; on Linux, elsewhere it counts as alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
