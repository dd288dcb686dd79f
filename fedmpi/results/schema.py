"""The schema of results files, version 1, as data. A run has one HDF5 file, for h5py, h5dump, MATLAB and others.

The check (`python -m fedmpi.results check`), the axis labels of pictures and the document docs/results_file.md
(`python -m fedmpi.results schema`) use these descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Literal

from fedmpi.results.metrics import DEFAULTS, PERCENT, Direction, Metric, Metrics

SCHEMA = 1

# A held-out client has converged when the next SETTLED_EPOCHS epochs gain less accuracy than SETTLED_GAIN.
SETTLED_EPOCHS, SETTLED_GAIN = 3, 0.001

Status = Literal["running", "finished", "interrupted", "failed"]
#: Stand for names of metrics in names of datasets and attributes: of each metric, and of the main metric.
METRIC, MAIN = "METRIC", "MAIN"


#: Dimension scales by the names of axes in `Array.shape`.
AXES = {"rows": "round", "1": "round", "clients": "client", "classes": "class", "epochs + 1": "epoch"}


@dataclass(frozen=True)
class Array:
    """The description of a dataset of a group.

    Args:
        about: the meaning of the dataset.
        shape: names of the axes. Axes with the same name have the same length in the whole file. The exception is
            `rows`, whose length each group has for itself.
        kinds: NumPy's kind letters that the dataset's type may have; O for texts.
        optional: whether a file may lack the dataset.
        label: axis label in pictures, without the unit. Empty: the label is made from the name.
        unit: unit in which the numbers are shown. Numbers in % are stored as shares in [0, 1].
        better: which values are better; None: neither, or it depends on the experiment.
        is_metric: whether the numbers are those of the metric in the dataset's name. The unit is then that of the
            metric, and so is the direction if `better` is None.
        is_on_test: whether the numbers are measured on test samples. The best of several rounds is then optimistic
            if these numbers themselves decide which round is the best.
        named: names of the axes as HDF5 dimension scales; empty: those of `AXES`.
        is_axis: whether the dataset only names an axis of others, and has its coordinates.
    """

    about: str
    shape: tuple[str, ...] = ("rows",)
    kinds: str = "if"
    optional: bool = True
    label: str = ""
    unit: str = ""
    better: Direction | None = None
    is_metric: bool = False
    is_on_test: bool = False
    named: tuple[str, ...] = ()
    is_axis: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes as dimension scales, which are datasets of the group; empty: they have none."""
        known = tuple(AXES[axis] for axis in self.shape if axis in AXES)
        return self.named or (known if len(known) == len(self.shape) else ())

    def of(self, metric: Metric) -> Array:
        """The description for one metric, with its unit and its direction; the same if it is of no metric."""
        return replace(self, unit=metric.unit, better=self.better or metric.better) if self.is_metric else self

    @property
    def scale(self) -> int:
        """The factor from stored to shown values: 100 for shares, else 1."""
        return 100 if self.unit == PERCENT else 1

    def with_unit(self, text: str) -> str:
        """The text, followed by the unit in brackets, if there is one."""
        return f"{text} ({self.unit})" if self.unit else text

    def shown(self, value: float) -> str:
        """A stored value as text: shares in percent with two decimals, others with four digits; `-` for NaN."""
        if value != value:
            return "-"
        return f"{100 * value:.2f} %" if self.unit == PERCENT else f"{value:.4g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Group:
    """The description of a group, or of all groups whose names match a pattern that ends in *.

    Args:
        about: the meaning of the group.
        arrays: the datasets, by name.
        attributes: the meanings of the attributes that every file has, by name.
        more: the meanings of the attributes that some files have, by name.
        optional: whether a file may lack the group.
        is_open: whether methods may add columns, with one number per row.
        row: the meaning of a row, if the group is a table.
        coordinates: columns that say which row it is, in addition to `round`.
    """

    about: str
    arrays: Mapping[str, Array] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)
    optional: bool = True
    is_open: bool = False
    row: str = ""
    coordinates: tuple[str, ...] = ()

    def array(self, name: str) -> Array | None:
        """The description of a dataset by its name; None: the schema does not describe it."""
        found = self.arrays.get(name) or self.arrays.get(generic(name)) or self.arrays.get("*")
        return found or (COLUMN if self.is_open else None)


def _always(
    about: str,
    label: str = "",
    shape: tuple[str, ...] = ("rows",),
    kinds: str = "if",
    unit: str = "",
    better: Direction | None = None,
) -> Array:
    return Array(about, shape, kinds, False, label, unit, better)


def _accuracy(about: str) -> Array:
    return Array(about, unit=PERCENT, better="higher", is_on_test=True)


def _tested(about: str, better: Direction | None = None) -> Array:
    """A column of a metric on test samples."""
    return Array(about, better=better, is_metric=True, is_on_test=True)


def _seconds(about: str, label: str = "") -> Array:
    return Array(about, label=label, unit="s", better="lower")


_ROUND = {
    "round": _always("number of the round, from 1", kinds="i"),
    "seconds": _always("wall time at rank 0", "Time of a round", unit="s", better="lower"),
    "train_loss": _always(
        "weighted mean training loss of the cohort, without clients that did not train or diverged; NaN if none is "
        "left",
        "Training loss",
        better="lower",
    ),
    "train_seconds": _always(
        "training time, mean over the ranks that train", "Training in a round", unit="s", better="lower"
    ),
    "communication_seconds": _always(
        "transfer time, mean over the ranks that train", "Communication in a round", unit="s", better="lower"
    ),
    "evaluation_seconds": _always(
        "evaluation time, mean over the ranks that train; the remainder of `seconds` is waiting",
        "Evaluation in a round",
        unit="s",
        better="lower",
    ),
    "bytes_up": _always(
        "bytes that the round's clients send by the method's definition; not actual MPI traffic",
        "Upload of a round",
        unit="bytes",
        better="lower",
    ),
    "bytes_down": _always(
        "bytes that the round's clients receive, including clients whose updates are lost or not used",
        "Download of a round",
        unit="bytes",
        better="lower",
    ),
}

_NETWORK = {
    "weights": _always(
        "little-endian float32: every tensor row-major in its PyTorch shape, one after another, no padding",
        "",
        ("P",),
        "f",
    ),
    "names": _always("names of the tensors", "", ("T",), "O"),
    "shapes": _always("shapes of the tensors, padded with -1 to D dimensions", "", ("T", "D"), "i"),
    "offsets": _always("index in `weights` at which each tensor begins", "", ("T",), "i"),
}


def _axis(name: str, length: str, about: str) -> dict[str, Array]:
    """A dataset that names an axis of this length."""
    return {name: Array(about, (length,), "i", is_axis=True)}


_CLIENT = _axis("client", "clients", "numbers of the clients, from 0")
_CLASS = _axis("class", "classes", "numbers of the classes, from 0")
_COORDINATES = {
    "coordinates": "names of the columns that xarray takes as coordinates, as in the CF conventions of netCDF"
}

#: The description of a column that a method adds: it is empty.
COLUMN = Array("")

GROUPS: dict[str, Group] = {
    "/": Group(
        "The run.",
        attributes={
            "schema": f"{SCHEMA}",
            "fedmpi_version": "the version of fedmpi that wrote the file",
            "config": "all settings, as YAML",
            "algorithm": "name of the method's class",
            "dataset": "name of the data set's class",
            "model": "name of the model's class",
            "seed": "whole number",
            "started": "start time, ISO 8601, UTC",
            "last_write": "time of the last write, ISO 8601, UTC",
            "write_interval": "the longest time between two writes so far, in seconds. It is at least one minute, "
            "and six minutes until the first round has ended",
            "status": "running, finished, interrupted (can be resumed) or failed. A killed run cannot change its "
            "status. Readers therefore report `running` as killed if the process no longer exists (same host), or if "
            "the last write is older than ten times `write_interval` (another host, or another container)",
            "host": "host of rank 0",
            "pid": "process number of rank 0",
        },
        more={
            "owner": "the process of rank 0 as a JSON object, with what distinguishes it from a later process that "
            "has the same number",
            "data_sha256": "SHA-256 of the data set's arrays (`Arrays.checksum`): names, types, shapes and bytes",
            "proxy_sha256": "SHA-256 of the proxy data set's arrays, if the method has one",
            "resumed": "one line for each time that the run was resumed: the time, and the last round before it",
            "stopped_by": "why the run ended before all rounds were done: a `--stop` option, and what was reached",
            "user_code": "a JSON object: the SHA-256 of each file of the user's own classes, and of what they import",
            "input_files": "a JSON object: the SHA-256 of each file that settings name, such as `--sampler.file`",
            "missing": "the state that further rounds need and that only a checkpoint has, one item per line",
            "undeclared_state": "attributes of the user's own components that keep something between rounds, and "
            "that no checkpoint has; such a run cannot be resumed",
            "depends_on_rounds": "the settings by which results depend on the number of rounds; if there are any, no "
            "rounds can be added later",
            "task": f"name of the task's class; absent: {DEFAULTS['task']}",
            "main_metric": f"name of the main metric, by which runs are compared; absent: {DEFAULTS['main_metric']}",
            "metrics": "a JSON object: for each metric of the run, by name, which values are `better` (higher, lower "
            "or null: neither), and the `unit` in which they are shown (%: the numbers are shares in [0, 1]); "
            f"absent: `{DEFAULTS['metrics']}`",
            "texts_crc32": "checksum of all texts in the file: attributes and names of tensors",
        },
        optional=False,
    ),
    "environment": Group(
        "What the job ran on. If the run was resumed, it is the last job. A list is one text with one line per "
        "entry. Packages, command and folder are those of rank 0. The checksums of the data and of the user's code "
        "are attributes of /.",
        more={
            "ranks": "number of ranks",
            "hosts": "host of each rank",
            "devices": "device that each rank computes on: the name of the GPU, or cpu",
            "gpus": "GPU of each rank: its number in the process, and its UUID; an empty line for a rank without one",
            "cores": "CPU cores that each rank may use, such as 0-3, 8",
            "cpu": "name of the processor of rank 0",
            "threads": "CPU threads of each rank",
            "mkl_cbwr": "the environment variable MKL_CBWR",
            "command": "command line of the process; the launcher's own part is not known to it",
            "folder": "folder that the command was started in",
            "python": "version of Python; `torch`, `numpy`, `mpi4py` and `h5py` are those of the libraries",
            "torch": "version of PyTorch",
            "numpy": "version of NumPy",
            "mpi4py": "version of mpi4py",
            "h5py": "version of h5py",
            "packages": "installed Python packages, NAME==VERSION",
            "mpi": "name and version of the MPI library",
            "mpi_transport": "what can be seen of MPI's transport, one line per group of ranks that see the same. "
            "MPI does not tell which of several loaded transports it uses. `device`: of MPICH and related libraries. "
            "`loaded`: transport libraries, or components of Open MPI, which unloads those that it does not use. "
            "`open`: device files of networks. `set`: environment variables that choose a transport, such as "
            "FI_PROVIDER",
            "slurm_job_id": "number of the Slurm job",
            "git_revision": "revision of fedmpi's sources, if they are a git checkout",
            "clients_at_once": "largest number of clients that a rank trains in one batched call",
            "clients_at_once_reason": "why it is this number",
        },
        optional=False,
    ),
    "rounds": Group(
        "Metrics of each round. Row r is the state after round r.",
        {
            **_ROUND,
            "test_METRIC": _tested(
                "value of the metric on the test set; with several models, of each client's model on its own test "
                "samples; NaN in rounds that are not evaluated"
            ),
            "validation_METRIC": Array(
                "value of the metric on the validation samples, for the same models; NaN in rounds that are not "
                "evaluated; only with a validation set",
                is_metric=True,
            ),
            "client_MAIN_mean": _tested("mean over clients of the main metric on their own test samples"),
            "client_MAIN_std": _tested("standard deviation of these values over clients", better="lower"),
            "client_MAIN_p10": _tested("10th percentile of these values over clients"),
            "client_MAIN_p50": _tested("median of these values over clients"),
            "client_MAIN_p90": _tested("90th percentile of these values over clients"),
            "client_MAIN_worst10": _tested(
                "mean of these values over the tenth of the clients whose values are the worst, at least one client"
            ),
            "weighted_client_MAIN": _tested("mean of these values, weighted by the clients' training samples"),
            "leaky_client_accuracy": _accuracy(
                "mean of the clients' accuracies on nine tenths of their training samples, weighted by the number of "
                "training samples"
            ),
            "backdoor_success": Array(
                "Backdoor: share of the test samples of other classes that are predicted as the target class when "
                "they carry the trigger; with several models, by each client's model on its own test samples",
                label="Success of the backdoor",
                unit=PERCENT,
                better="lower",
                is_on_test=True,
            ),
            "local_MAIN": _tested(
                "mean over the cohort of the main metric of the local models on their own test samples, before "
                "aggregation"
            ),
            "fine_tuned_MAIN": _tested(
                "main metric over all test samples, each predicted by the model that its client has fine-tuned"
            ),
            "clients_trained": Array("number of distinct clients trained so far"),
            "cohort_mean_MAIN": _tested("main metric of the mean of the round's local models, on the test set"),
            "clients_mean_MAIN": _tested("main metric of the mean of all clients' last models, on the test set"),
            "global_MAIN": _tested(
                "main metric of the global model on the test set, for methods with personal models"
            ),
            "head_MAIN": _tested(
                "FedProto: main metric of the clients' models by their own last layers, on their own test samples"
            ),
            "own_share": Array("FedPAC: mean weight of a client's own head in the head that it gets back"),
            "uncalibrated_MAIN": _tested("CCVR: main metric of the base method's model, on the test set"),
            "global_matched_MAIN": _tested(
                "mean of the main metric of the clients' models on all test samples, weighted by training samples"
            ),
            "global_matched_MAIN_std": _tested(
                "standard deviation over clients of the main metric on all test samples", better="lower"
            ),
            "with_previous_extractor_accuracy": _accuracy(
                "feature fusion: accuracy with the extractor of the previous round"
            ),
            "with_self_extractor_accuracy": _accuracy(
                "feature fusion: accuracy with the model's own extractor in both places"
            ),
            "cached_features": Array(
                "feature fusion: 1 if the frozen extractor's features are computed once per round"
            ),
            "cluster_size_N": Array("number of clients that have model N"),
            "adjusted_rand_index": Array(
                "agreement of the clusters with the partition's groups, over the clients that have a model",
                label="Adjusted Rand index",
                better="higher",
            ),
            "mean_change_N": Array("CFL: L2 norm of the mean update of cluster N"),
            "largest_change_N": Array("CFL: largest L2 norm of an update in cluster N"),
            "extrapolation": Array("FedExP: factor of the mean change in the server's step"),
            "components_alive": Array("distribution fusion: number of virtual components that have clients"),
            "effective_clients": Array("distribution fusion: 1 over the sum of the clients' squared weights"),
            "weights_l1": Array("distribution fusion: L1 distance of the weights from those of FedAvg"),
            "between_components": Array(
                "distribution fusion: share of the weights' variance that lies between components"
            ),
            "label_l1": Array(
                "distribution fusion: L1 distance between the label mix of the round's clients, weighted as their "
                "models are, and that of all clients; from 0 to 2",
                better="lower",
            ),
            "left_out": Array("distribution fusion: number of clients whose statistics were not finite"),
            "twin_correlation": Array(
                "distribution fusion: correlation of the weights with those of a second inference"
            ),
            "draws": Array("IFCA: how often the initial models were drawn"),
            "server_updates": Array("FedCluster: how often the model was averaged"),
            "cas": _accuracy(
                "classification accuracy score of a generator: a model is trained on generated images only, and its "
                "accuracy is measured on all real samples; the same in all rounds"
            ),
            "cas_test": _accuracy("classification accuracy score, on the test set"),
            "cas_compat": _accuracy("classification accuracy score, mean over epochs"),
            "teacher_seconds": _seconds(
                "time to evaluate the clients' models as teachers, mean over the ranks", "Teachers"
            ),
            "server_seconds": _seconds("training time of the server (rank 0)", "Server's learning"),
            "generator_resets": Array("how often a diverged generator was re-initialised"),
            "skipped_steps": Array("steps of the server's model that were skipped because they were not finite"),
            "rejected": Array("number of vectors that a robust rule or a clustering left out as not finite"),
            "epsilon": Array(
                "privacy spent so far, at the chosen delta; NaN without dp-accounting", label="ε", better="lower"
            ),
            "diverged_clients": Array(
                "number of clients whose weights were not finite after training; their updates are not used",
                label="Clients whose training diverged",
                better="lower",
            ),
            "virtual_seconds": _seconds("duration on the virtual clock", "Virtual time of a round"),
            "selected": Array("number of clients that were asked"),
            "dropped": Array("number of asked clients that lost the connection"),
            "late": Array(
                "number of updates that were not used: they came after the deadline or after enough others, or were "
                "partial and the method does not accept partial work"
            ),
            "stragglers": Array("number of clients that did only a part of their training"),
            "unavailable": Array("number of clients that could not be reached"),
            "staleness_mean": Array("asynchronous methods: mean staleness of the round's updates", better="lower"),
            "staleness_max": Array("asynchronous methods: largest staleness of the round's updates", better="lower"),
            "version": Array("asynchronous methods: number of server updates so far"),
            "updates": Array("asynchronous methods: number of updates that arrived in the round"),
            "in_flight": Array("asynchronous methods: number of clients that train at the end of the round"),
            "versions_in_flight": Array("asynchronous methods: number of different versions they have started from"),
            "cpu_joules": Array(
                "energy of the processors of all nodes and of their memory, including other jobs there; absent if a "
                "node's counters cannot be read",
                label="Energy of the processors in a round",
                unit="J",
                better="lower",
            ),
            "gpu_joules": Array(
                "energy of the job's GPUs; absent if one has no counter",
                label="Energy of the GPUs in a round",
                unit="J",
                better="lower",
            ),
            "waves": Array("asynchronous methods: number of groups of clients that were trained one after another"),
            "discarded": Array("asynchronous methods: number of updates that were too stale to be used"),
        },
        optional=False,
        is_open=True,
        row="a round",
    ),
    "clients": Group(
        "Which clients took part in which round. A client of the cohort that was not trained has -1 in columns of "
        "whole numbers, and NaN in other columns.",
        {
            "round": _always("number of the round", kinds="i"),
            "client": _always("number of the client, from 0", kinds="i"),
            "rank": Array("rank that trained the client; -1: none", kinds="i"),
            "samples": Array("training samples of the client", kinds="i"),
            "steps": Array(
                "optimizer steps in all trainings of the client, plus batches of passes that only compute a gradient",
                kinds="i",
            ),
            "seconds": Array("training time in seconds"),
            "loss": Array("mean training loss over the client's samples"),
            "local_MAIN": Array("main metric of the client's model on its own test samples, before aggregation"),
            "virtual_seconds": Array(
                "virtual time from the start of the round (asynchronous methods: of the job) to the arrival of "
                "the update"
            ),
            "start_version": Array("asynchronous methods: the server's version that the client started from"),
            "staleness": Array("asynchronous methods: server updates between the client's start and its arrival"),
            "arrival": Array("asynchronous methods: place of the update in the order of arrival, from 0"),
            "arrived_at": Array("asynchronous methods: virtual time of the arrival since the start of the run, in s"),
            "diverged": Array("1 for a client whose training diverged, else 0"),
            "malicious": Array("1 for clients that attack, 0 for the others"),
            "selected": Array("Krum, Bulyan: 1 for clients whose models were selected"),
            "change": Array("FedExP: squared L2 norm of the client's change of the parameters"),
            "cluster": Array("number of the client's model after the round"),
            "others": Array("FedAMP, FedFomo: share of other clients' models in the client's mixture"),
            "component": Array("distribution fusion: the client's virtual component; -1: none"),
            "omega": Array("distribution fusion: the client's weight"),
        },
        optional=False,
        is_open=True,
        more=_COORDINATES,
        row="a participation (round, client)",
        coordinates=("client", "rank"),
    ),
    "ranks": Group(
        "Time and work of each rank.",
        {
            "round": _always("number of the round", kinds="i"),
            "rank": _always("number of the rank", kinds="i"),
            "busy_seconds": Array("time for training, evaluation, evaluating teachers, and the server's training"),
            "wait_seconds": Array("time waiting for other ranks"),
            "clients": Array("number of clients that the rank trained", kinds="i"),
            "client_seconds": Array("time for all work with the rank's clients"),
            "predicted_seconds": Array("`client_seconds` as predicted from the previous rounds"),
            "speed": Array("estimated speed of the rank; the mean over ranks is 1; NaN until a round has ended"),
            "fixed_seconds": Array(
                "estimated fixed time per client; with several clients in one batched call, fixed time per step of "
                "the call"
            ),
            "step_seconds": Array("estimated time per step of a client"),
            "cpu_joules": Array("energy of the processors of the rank's node; NaN for all but the node's first rank"),
            "gpu_joules": Array("energy of the rank's GPU; NaN for all but the first of the ranks on it"),
        },
        optional=False,
        more=_COORDINATES,
        row="a (round, rank)",
        coordinates=("rank",),
    ),
    "evaluation": Group(
        "Metrics per class and per client.",
        {
            "round": Array("number of the round", kinds="i"),
            "per_class_accuracy": Array(
                "accuracy on each class, in [0, 1]; only for Classification", ("rows", "classes"), "f"
            ),
            "client_MAIN": Array(
                "main metric on each client's own test samples; NaN for a client that has none; absent with more "
                "than 100,000 clients, unless `--every_client true` was given",
                ("rows", "clients"),
                "f",
            ),
            "fine_tuned_MAIN": Array(
                "the same after the client has fine-tuned the global model", ("rows", "clients"), "f"
            ),
            **_CLIENT,
            **_CLASS,
        },
        more={
            "test_METRIC": "value of the metric on the test set for the initial model, if it was evaluated",
            "validation_METRIC": "likewise on the validation set",
            "backdoor_success": "likewise on test samples with the trigger, under the attack Backdoor",
        },
        optional=False,
        row="an evaluation",
    ),
    "confusion": Group(
        "Confusion matrix of the last evaluation, for Classification.",
        {
            "round": _always("number of the round", "", ("1",), "i"),
            "counts": Array(
                "number of test samples; rows are true classes, columns predicted classes",
                ("classes", "classes"),
                "i",
                False,
                named=("true_class", "predicted_class"),
            ),
            **_axis("true_class", "classes", "numbers of the classes, from 0"),
            **_axis("predicted_class", "classes", "numbers of the classes, from 0"),
        },
    ),
    "partition": Group(
        "Training samples of the clients. Empty with more than 100,000 clients, unless `--every_client true` was "
        "given.",
        {
            "label_counts": Array(
                "training samples per client and class; for other tasks than Classification, per group of samples "
                "with similar targets, if the task has such groups",
                ("clients", "classes"),
                "i",
            ),
            "samples": _always("training samples per client", "", ("clients",), "i"),
            "validation": Array("validation samples per client; only with a validation set", ("clients",), "i"),
            **_CLIENT,
            **_CLASS,
        },
        optional=False,
        row="a client",
    ),
    "clusters": Group(
        "Clusters of clients, for methods with several models.",
        {
            "round": _always("number of the round", kinds="i"),
            "cluster": _always("number of each client's model; -1 before it has one", "", ("rows", "clients"), "i"),
            **_CLIENT,
        },
        row="a round; the first row is the first round that has clusters",
    ),
    "held_out": Group(
        "Held-out clients: they took part in no round, and fine-tune the final model alone.",
        {
            "MAIN": Array(
                "main metric on the client's own test samples: of the global model, then after each epoch",
                ("rows", "epochs + 1"),
                "f",
                False,
                named=("client", "epoch"),
            ),
            "epochs": Array(
                f"epochs until convergence: the next {SETTLED_EPOCHS} epochs improve the main metric by less than "
                f"{SETTLED_GAIN:g} (of accuracies {100 * SETTLED_GAIN:g} points); NaN: not converged",
                optional=False,
                named=("client",),
            ),
            **_axis("client", "rows", "numbers of the held-out clients, from 0"),
            **_axis("epoch", "epochs + 1", "number of epochs of fine-tuning, from 0"),
        },
        row="a held-out client",
    ),
    "stages": Group("Trainings with the same clients before the rounds, such as a generator's. One group per stage."),
    "stages/*": Group("Like /rounds.", {**_ROUND}, is_open=True, row="a round"),
    "synthetic": Group(
        "Images that a generator at the server made. They are stored compressed.",
        {
            "images": _always("pixels", "", ("n", "C", "H", "W"), "u"),
            "labels": _always("classes of the images", "", ("n",), "i"),
        },
    ),
    "model": Group(
        "The last global model.",
        {
            **_NETWORK,
            "*": Array("further models of the method, with the layout of `weights`", ("M", "P"), "f"),
        },
        {"sha256": "SHA-256 of the bytes of `weights`"},
        {
            "inputs": "kind of samples: images (uint8), features (float32) or tokens (int64)",
            "shape": "shape of a sample; images: channels, height, width",
            "classes": "number of classes",
            "mean": "mean per channel, on the scale 0..1, which is subtracted from images; absent: 0",
            "std": "standard deviation per channel, by which images are then divided; absent: 1",
            "vocabulary": "number of tokens; absent: no text",
            "frozen_values": "how many values training does not change; absent: none",
            "frozen_sha256": "SHA-256 of the names, types, shapes and bytes of these tensors, by name in order",
            "frozen_source": "where they came from",
        },
    ),
    "model/frozen": Group(
        "Tensors of the model that training does not change, by name: frozen parameters and constant buffers."
        " All models of the run share them, and they are never sent. They are not part of `weights`. Only with"
        " `--store_frozen true`.",
        {"*": Array("row-major in its PyTorch shape", ("...",), "fiub")},
    ),
    "best": Group(
        "The models of the evaluated round that is the best on the validation set, the earliest of several. The "
        "tensors are laid out as /model says. Only with a validation set.",
        {
            "weights": _always("global model, with the layout of /model/weights", "", ("P",), "f"),
            "*": Array("further models of the method, with the layout of `weights`", ("M", "P"), "f"),
        },
        {
            "round": "number of the round",
            "column": "column of /rounds by which it is the best, such as validation_accuracy",
            "value": "its value in this column",
            "sha256": "SHA-256 of the bytes of `weights`",
        },
    ),
    "networks": Group("Further networks at the server, such as a generator. One group per network."),
    "networks/*": Group(
        "Like /model, including `frozen`.", _NETWORK, {"sha256": "SHA-256 of the bytes of `weights`"}
    ),
}

#: Attributes that are numbers, in any group, with NumPy's kind letters that their types may have. `LISTS` names those
#: that are lists of numbers, and `JSON` names attributes that are JSON objects. All other attributes that are
#: described above are texts.
NUMBERS = {"schema": "i", "seed": "i", "pid": "i", "write_interval": "if", "texts_crc32": "iu"}
NUMBERS |= {"ranks": "i", "threads": "i", "clients_at_once": "i", "round": "i", "test_METRIC": "if", "value": "f"}
NUMBERS |= {"shape": "i", "classes": "i", "mean": "if", "std": "if", "vocabulary": "i", "frozen_values": "i"}
LISTS = ("shape", "mean", "std")
JSON = ("owner", "user_code", "input_files")


def of_metrics(metrics: Metrics) -> dict[str, Group]:
    """The groups of the schema for one file, in which METRIC and MAIN are the names of the file's metrics."""

    def names(key: str) -> dict[str, Metric]:
        known = metrics.all if METRIC in key else {metrics.main: metrics.all[metrics.main]}
        return {key.replace(METRIC, name).replace(MAIN, name): metric for name, metric in known.items()}

    def named(group: Group) -> Group:
        arrays = {
            name: array.of(metric) for key, array in group.arrays.items() for name, metric in names(key).items()
        }
        more = {name: about for key, about in group.more.items() for name in names(key)}
        return replace(group, arrays=arrays, more=more)

    return {name: named(group) for name, group in GROUPS.items()}


def group_of(name: str, groups: Mapping[str, Group]) -> Group | None:
    """The description of a group by its name; None: the schema does not describe it."""
    return next((group for pattern, group in groups.items() if fnmatch(name, pattern)), None)


def generic(name: str) -> str:
    """The name of a numbered column with N instead of the number."""
    return re.sub(r"_\d+$", "_N", name)


def document() -> str:
    """The whole schema as a page of Markdown."""
    lines = [_INTRODUCTION]
    for name, group in GROUPS.items():
        path = "/" if name == "/" else f"/{name}".replace("*", "NAME")
        lines.append(f"## {path}\n")
        row = f" One row is {group.row}." if group.row else ""
        may_lack = " Not in every file." if group.optional else ""
        lines.append(f"{group.about}{row}{may_lack}\n")
        if group.attributes or group.more:
            lines += ["| attribute | meaning |", "| --- | --- |"]
            lines += [f"| `{key}` * | {about} |" for key, about in group.attributes.items()]
            lines += [f"| `{key}` | {about} |" for key, about in group.more.items()]
            lines.append("")
        if group.arrays:
            lines += ["| dataset | shape | type | meaning |", "| --- | --- | --- | --- |"]
            lines += [_line(key, array) for key, array in group.arrays.items()]
            lines.append("")
        if group.is_open:
            lines.append("A method may add its own columns here, with one number per row.\n")
    return "\n".join(lines).rstrip()


_TYPES = {"i": "int64", "f": "float64", "if": "int64 or float64", "O": "UTF-8", "u": "uint8", "fiub": "of any type"}
_INTRODUCTION = f"""\
# The results file

This is schema {SCHEMA}, as `python -m fedmpi.results schema` prints it. `python -m fedmpi.results check FILE...`
compares files with it.

Rank 0 writes a new file next to the old one, and then renames it to the old one's name. So any program that reads
HDF5 can open the file at any time, also during the run. It sees a complete earlier state.

Each dataset of a table is one column. Missing values are NaN (the column is then float64). A star (\\*) marks what
every file has; columns with a star exist from the first round on. Everything else exists only if it applies to the
run. N stands for a number.

METRIC stands for the name of each metric that the run computes, and MAIN for the name of its main metric. The root
attributes `metrics` and `main_metric` name them.

| task | MAIN | columns |
| --- | --- | --- |
| Classification | accuracy | `test_accuracy`, `test_loss`, `client_accuracy_mean`, ... |
| Regression | rmse | `test_rmse`, `test_loss`, `client_rmse_mean`, ... |
| MultiLabel | map | `test_map`, `test_loss`, `client_map_mean`, ... |
| Segmentation | mean_iou | `test_mean_iou`, `test_loss`, `client_mean_iou_mean`, ... |
| LanguageModel | perplexity | `test_perplexity`, `test_loss`, `client_perplexity_mean`, ... |

Files use the format of HDF5 1.10 (2016), with checksums. HDF5 refuses to read a damaged dataset, and the check names
it. Texts have no checksums in HDF5, so the check compares them with `texts_crc32`.

Axes have names, as HDF5 dimension scales. The columns of a table are attached to its column `round`, so a round may
have several rows there. Datasets that are marked as an axis have the coordinates of another axis, and are no columns.
Files of version 0.2 and older have no such names. xarray opens one table at a time:

    xarray.open_dataset("runs/fmnist.h5", group="rounds", engine="h5netcdf")

Commands show each column in the unit that is given here. They also use the direction that is given here, which says
which values are better. Columns of a metric have the unit and the direction that `metrics` gives. A column that your
own method adds has neither; give `--direction higher` or `lower`.

Groups, columns and attributes may be added without a new schema. Those described here keep their names and meanings.
A reader of schema {SCHEMA} refuses files of another schema.
"""


def _line(name: str, array: Array) -> str:
    numbers = "float32" if array.kinds == "f" and "P" in array.shape else _TYPES[array.kinds]
    numbers = "int32" if array.is_axis else numbers
    shown = "others" if name == "*" else f"`{name}`"
    facts = [array.about]
    if array.is_metric:
        facts.append("shown in the metric's unit")
    if array.is_axis:
        facts.append("an axis")
    if array.unit:
        facts.append(f"shown in {array.unit}")
    if array.better:
        facts.append(f"{array.better} is better")
    return f"| {shown}{'' if array.optional else ' *'} | {', '.join(array.shape)} | {numbers} | {'; '.join(facts)} |"
