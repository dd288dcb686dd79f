"""What is in a results file, schema 1, as data: one HDF5 file a run, for h5py, h5dump, MATLAB and all else.

The validator (`python -m fedmpi.results check`), the axis labels of pictures and the document
(`python -m fedmpi.results schema`, which is docs/results_file.md) all come from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

SCHEMA = 1

# A newcomer has settled where the next epochs gain less than this.
SETTLED_EPOCHS, SETTLED_GAIN = 3, 0.001

Status = Literal["running", "finished", "interrupted", "failed"]
#: Which values of a column are better.
Direction = Literal["higher", "lower"]
#: What a column [0, 1] is shown in.
PERCENT = "%"


@dataclass(frozen=True)
class Array:
    """A dataset of a group.

    Args:
        about: what it holds.
        shape: names of its axes; axes of one name are equally long in all of the file, but for `rows`, which are
            counted in each group by itself.
        kinds: NumPy's letters for what its numbers may be; O for texts.
        optional: whether a file may lack it.
        label: of an axis of a picture, without the unit; made of the name if left out.
        unit: of its numbers; those in % are stored as shares in [0, 1].
        better: which of its values are better; None: neither, or that is not for us to say.
    """

    about: str
    shape: tuple[str, ...] = ("rows",)
    kinds: str = "if"
    optional: bool = True
    label: str = ""
    unit: str = ""
    better: Direction | None = None


@dataclass(frozen=True)
class Group:
    """A group, or a kind of groups whose name ends in *.

    Args:
        about: what it holds.
        arrays: its datasets.
        attributes: name -> what it says.
        more: attributes that some files have.
        optional: whether a file may lack the group.
        is_open: methods may add columns, of one number a row.
        row: what a row is, if the group is a table.
    """

    about: str
    arrays: Mapping[str, Array] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)
    optional: bool = True
    is_open: bool = False
    row: str = ""

    def array(self, name: str) -> Array | None:
        """What is known of its dataset of this name; None: nothing."""
        return self.arrays.get(generic(name)) or self.arrays.get("*") or (COLUMN if self.is_open else None)


def _always(
    about: str,
    label: str = "",
    shape: tuple[str, ...] = ("rows",),
    kinds: str = "if",
    unit: str = "",
    better: Direction | None = None,
) -> Array:
    return Array(about, shape, kinds, False, label, unit, better)


def _accuracy(about: str, better: Direction = "higher") -> Array:
    return Array(about, unit=PERCENT, better=better)


def _seconds(about: str, label: str = "") -> Array:
    return Array(about, label=label, unit="s", better="lower")


_ROUND = {
    "round": _always("number of the round, from 1", kinds="i"),
    "seconds": _always("wall time at rank 0", "Time of a round", unit="s", better="lower"),
    "train_loss": _always(
        "mean loss of the cohort's local training, by its weights; without clients that did not train or diverged, "
        "and NaN if none is left",
        "Training loss",
        better="lower",
    ),
    "train_seconds": _always(
        "training, a mean over the ranks that train", "Training in a round", unit="s", better="lower"
    ),
    "communication_seconds": _always("transfers, likewise", "Communication in a round", unit="s", better="lower"),
    "evaluation_seconds": _always(
        "evaluation, likewise; what the three leave of `seconds` is waiting",
        "Evaluation in a round",
        unit="s",
        better="lower",
    ),
    "bytes_up": _always(
        "what the round's clients send by the method's definition, whatever MPI moves",
        "Upload of a round",
        unit="bytes",
        better="lower",
    ),
    "bytes_down": _always(
        "what they receive; those whose updates are lost or not used have received theirs",
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
    "names": _always("of the tensors", "", ("T",), "O"),
    "shapes": _always("of the tensors; one of fewer than D dimensions ends with -1", "", ("T", "D"), "i"),
    "offsets": _always("where they begin in `weights`, counted in values", "", ("T",), "i"),
}

#: A column that a method adds, of which no more is known.
COLUMN = Array("")

GROUPS: dict[str, Group] = {
    "/": Group(
        "The run.",
        attributes={
            "schema": f"{SCHEMA}",
            "fedmpi_version": "the version that wrote the file",
            "config": "all settings, as YAML",
            "algorithm": "name of the class",
            "dataset": "likewise",
            "model": "likewise",
            "seed": "whole number",
            "started": "ISO 8601, UTC",
            "last_write": "likewise",
            "write_interval": "seconds: the longest time between two writes so far, but at least one minute, and six "
            "minutes before the first round has ended",
            "status": "running, finished, interrupted (can be resumed) or failed. A killed run cannot change it, so "
            "readers call a running file killed when its process is gone (same host) or its last write is older than "
            "ten times `write_interval` (another host, or another container)",
            "host": "rank 0's",
            "pid": "rank 0's process",
        },
        more={
            "owner": "that process as a JSON object, with what tells it from a later one that has the same number",
            "data_sha256": "of the data set's arrays (`Arrays.checksum`): names, types, shapes and bytes",
            "proxy_sha256": "likewise of the proxy data set's, where the method has one",
            "resumed": "a line for each time that the run was resumed: when, and after which round",
            "user_code": "a JSON object: the SHA-256 of each file of the user's own classes, and of what they import",
            "input_files": "likewise of files that are read, such as `--sampler.file`",
            "missing": "a line for each thing that more rounds would need and that is only in a checkpoint",
            "depends_on_rounds": "the settings that make the number of rounds matter: there can be no more later",
            "texts_crc32": "checksum of all texts in the file: attributes and names of tensors",
        },
        optional=False,
    ),
    "environment": Group(
        "What the job ran on, as attributes: hosts, devices, ranks, threads, versions. A list is one text with one "
        "line per entry. `clients_at_once` is how many clients each rank trains side by side at the most, and "
        "`clients_at_once_reason` says why.",
        optional=False,
    ),
    "rounds": Group(
        "Row r is the state after round r.",
        {
            **_ROUND,
            "test_loss": Array(
                "of the model on the test set; NaN in rounds that are not evaluated",
                label="Test loss",
                better="lower",
            ),
            "test_accuracy": _accuracy(
                "likewise, in [0, 1]; of methods with several models, of each client's on its own test samples"
            ),
            "client_accuracy_mean": _accuracy("mean over clients of the accuracies on their own test samples"),
            "client_accuracy_std": _accuracy("their standard deviation", better="lower"),
            "client_accuracy_p10": _accuracy("their 10th percentile"),
            "client_accuracy_p50": _accuracy("their median"),
            "client_accuracy_p90": _accuracy("their 90th percentile"),
            "weighted_client_accuracy": _accuracy("their mean, weighted by the clients' training samples"),
            "leaky_client_accuracy": _accuracy("likewise, on nine tenths of their training samples"),
            "local_accuracy": _accuracy(
                "mean of what the round's clients trained, on their own test samples, unaveraged"
            ),
            "clients_trained": Array("how many clients have had a turn so far"),
            "cohort_mean_accuracy": _accuracy("of the mean of the round's local models, on the test set"),
            "clients_mean_accuracy": _accuracy("of the mean of all clients' last models, on the test set"),
            "global_accuracy": _accuracy("of the global model beside personal ones, on the test set"),
            "global_matched_accuracy": _accuracy("of each client's model on all test samples, by training samples"),
            "global_matched_accuracy_std": _accuracy("its standard deviation over clients", better="lower"),
            "with_previous_extractor_accuracy": _accuracy("feature fusion: with the extractor of the round before"),
            "with_self_extractor_accuracy": _accuracy("feature fusion: with the model's own extractor twice"),
            "cached_features": Array(
                "feature fusion: 1 if the frozen extractor's features are computed once a round"
            ),
            "cluster_size_N": Array("how many clients have model N"),
            "adjusted_rand_index": Array(
                "how well the clusters agree with the partition's groups, of the clients that have a model",
                label="Adjusted Rand index",
                better="higher",
            ),
            "mean_change_N": Array("CFL: length of the mean change of cluster N"),
            "largest_change_N": Array("CFL: length of its longest change"),
            "components_alive": Array("distribution fusion: how many virtual components have clients"),
            "effective_clients": Array("distribution fusion: 1 over the sum of the clients' squared weights"),
            "weights_l1": Array("distribution fusion: how far the weights are from those of FedAvg, summed"),
            "between_components": Array("distribution fusion: the share of their variance between components"),
            "label_l1": Array(
                "distribution fusion: how far the label mix of the round's clients, each with its weight, is from "
                "that of all clients: the sum of the absolute differences, from 0 to 2",
                better="lower",
            ),
            "left_out": Array("distribution fusion: clients whose statistics were not finite"),
            "twin_correlation": Array("distribution fusion: of the weights with those of a second inference"),
            "draws": Array("IFCA: how often the first models were drawn"),
            "server_updates": Array("FedCluster: how often the model was averaged"),
            "cas": _accuracy(
                "classification accuracy score of a generator: on all real samples, of a model trained on its "
                "images alone; the same in all rounds"
            ),
            "cas_test": _accuracy("likewise, on the test set"),
            "cas_compat": _accuracy("likewise, a mean over epochs"),
            "teacher_seconds": _seconds("what the ranks spent on answers as teachers, a mean", "Teachers"),
            "server_seconds": _seconds("what rank 0 spent on learning from them", "Server's learning"),
            "generator_resets": Array("how often a generator that had diverged was drawn anew"),
            "skipped_steps": Array("steps of the server's model that were not finite"),
            "rejected": Array("vectors that were not finite and were left out by a robust rule or a clustering"),
            "epsilon": Array(
                "privacy spent so far, at the chosen delta; NaN without dp-accounting", label="ε", better="lower"
            ),
            "diverged_clients": Array(
                "whose training ended in numbers that are not finite: nothing of them is used",
                label="Clients whose training diverged",
                better="lower",
            ),
            "virtual_seconds": _seconds("duration by the virtual clock", "Virtual time of a round"),
            "selected": Array("how many clients were asked"),
            "dropped": Array("how many of them lost the connection"),
            "late": Array(
                "updates after the deadline, after enough others, or partial where a method does not accept that"
            ),
            "stragglers": Array("how many got only a part of their training done"),
            "unavailable": Array("how many clients could not be reached"),
        },
        optional=False,
        is_open=True,
        row="a round",
    ),
    "clients": Group(
        "Who took part when. A client of the cohort that was not trained has -1 in columns of whole numbers, NaN in "
        "others.",
        {
            "round": _always("number of the round", kinds="i"),
            "client": _always("number of the client, from 0", kinds="i"),
            "rank": Array("that trained it; -1: none did", kinds="i"),
            "samples": Array("it trains on", kinds="i"),
            "steps": Array("it did, in all its trainings, and batches of passes for a gradient", kinds="i"),
            "seconds": Array("they took"),
            "loss": Array("mean over its samples"),
            "local_accuracy": Array("of what it trained, on its own test samples"),
            "virtual_seconds": Array("from the start of the round to the arrival of its update"),
            "diverged": Array("1 for a client whose training did, else 0"),
            "malicious": Array("1 for clients that attack, 0 for the others"),
            "selected": Array("Krum: 1 for those whose models became the new one"),
            "cluster": Array("number of the client's model after the round"),
            "component": Array("distribution fusion: the client's virtual component; -1: none"),
            "omega": Array("distribution fusion: the client's weight"),
        },
        optional=False,
        is_open=True,
        row="a participation (round, client)",
    ),
    "ranks": Group(
        "What every rank did.",
        {
            "round": _always("number of the round", kinds="i"),
            "rank": _always("number of the rank", kinds="i"),
            "busy_seconds": Array("training, evaluation, answers as a teacher, the server's own learning"),
            "wait_seconds": Array("for others"),
            "clients": Array("that it trained", kinds="i"),
            "client_seconds": Array("all it did with its clients"),
            "predicted_seconds": Array("what was expected of that by what the rounds before had taught"),
            "speed": Array("as learnt; the mean is 1; NaN before the first round was over"),
            "fixed_seconds": Array("for a client, as learnt; of clients side by side, for a step of all"),
            "step_seconds": Array("for a step of a client, as learnt"),
        },
        optional=False,
        row="a (round, rank)",
    ),
    "evaluation": Group(
        "What was measured class by class and client by client.",
        {
            "round": Array("number of the round", kinds="i"),
            "per_class_accuracy": Array("in [0, 1]", ("rows", "classes"), "f"),
            "client_accuracy": Array(
                "on the client's own test samples; NaN for one that has none", ("rows", "clients"), "f"
            ),
        },
        more={"test_loss": "of the initial model, if it was evaluated", "test_accuracy": "likewise"},
        optional=False,
        row="an evaluation",
    ),
    "confusion": Group(
        "Of the last evaluation: which classes the test samples were taken for.",
        {
            "round": _always("number of the round", "", ("1",), "i"),
            "counts": _always("samples of each class, by the predicted one", "", ("classes", "classes"), "i"),
        },
    ),
    "partition": Group(
        "What the clients hold.",
        {
            "label_counts": _always("training samples of each class", "", ("clients", "classes"), "i"),
            "samples": _always("training samples", "", ("clients",), "i"),
        },
        optional=False,
        row="a client",
    ),
    "clusters": Group(
        "Of methods with several models.",
        {
            "round": _always("number of the round", kinds="i"),
            "cluster": _always("number of each client's model; -1 before it has one", "", ("rows", "clients"), "i"),
        },
        row="a round from that on in which there are clusters",
    ),
    "newcomers": Group(
        "Clients that took part in no round, and train the final model alone.",
        {
            "accuracy": _always(
                "on its own test samples: of the global model, and after each epoch", "", ("rows", "epochs + 1"), "f"
            ),
            "epochs": _always("after which it has settled; NaN: it has not"),
        },
        row="a newcomer",
    ),
    "stages": Group("What a method trained with the same clients before the rounds; a group each."),
    "stages/*": Group("As /rounds.", {**_ROUND}, is_open=True, row="a round"),
    "synthetic": Group(
        "Images that a generator at the server made, compressed.",
        {
            "images": _always("pixels", "", ("n", "C", "H", "W"), "u"),
            "labels": _always("their classes", "", ("n",), "i"),
        },
    ),
    "model": Group(
        "The last global model.",
        {
            **_NETWORK,
            "*": Array("further models of the method, laid out like `weights`", ("M", "P"), "f"),
        },
        {"sha256": "of the bytes of `weights`"},
        {
            "inputs": "what the data set's arrays hold: images (uint8), features (float32) or tokens (int64)",
            "shape": "of one of them; images: channels, height, width",
            "classes": "how many",
            "mean": "per channel, on the scale 0..1, subtracted from images; absent: 0",
            "std": "per channel, by which they are divided then; absent: 1",
            "vocabulary": "how many tokens there are; absent: no text",
        },
    ),
    "model/frozen": Group(
        "Tensors of the model that training does not change, by their names: frozen parameters, constant buffers."
        " All models of the run share them, and nobody sends them. `weights` does not have them.",
        {"*": Array("row-major in its PyTorch shape", ("...",), "fiub")},
    ),
    "networks": Group("What else a method has at the server, such as a generator; a group each."),
    "networks/*": Group("As /model, `frozen` included.", _NETWORK, {"sha256": "of the bytes of `weights`"}),
}

#: Attributes that are numbers, wherever they are, with NumPy's letters for what these may be; those of them that are
#: lists; and those that are JSON objects. Others that are described above are texts.
NUMBERS = {"schema": "i", "seed": "i", "pid": "i", "write_interval": "if", "texts_crc32": "iu"}
NUMBERS |= {"ranks": "i", "threads": "i", "clients_at_once": "i", "test_loss": "if", "test_accuracy": "if"}
NUMBERS |= {"shape": "i", "classes": "i", "mean": "if", "std": "if", "vocabulary": "i"}
LISTS = ("shape", "mean", "std")
JSON = ("owner", "user_code", "input_files")


def group_of(name: str) -> Group | None:
    """What the schema says of a group; None: nothing."""
    return next((group for pattern, group in GROUPS.items() if fnmatch(name, pattern)), None)


def described(column: str) -> Array:
    """What is known of a column of /rounds; of one that the schema has not, neither unit nor direction."""
    return GROUPS["rounds"].arrays.get(generic(column), COLUMN)


def label(column: str) -> str:
    """What an axis says that shows a column of /rounds, with its unit."""
    return with_unit(described(column).label or column.replace("_", " ").capitalize(), column)


def with_unit(text: str, column: str) -> str:
    """The text, and in brackets the unit of a column of /rounds, if it has one."""
    unit = described(column).unit
    return f"{text} ({unit})" if unit else text


def scale(column: str) -> int:
    """How many times larger than stored a column of /rounds is shown: shares are, in percent."""
    return 100 if described(column).unit == PERCENT else 1


def generic(name: str) -> str:
    """A numbered column's name with N in place of the number."""
    return re.sub(r"_\d+$", "_N", name)


def document() -> str:
    """All of this as a page of Markdown."""
    lines = [_INTRODUCTION]
    for name, group in GROUPS.items():
        path = "/" if name == "/" else f"/{name}".replace("*", "NAME")
        lines.append(f"## {path}\n")
        row = f" One row is {group.row}." if group.row else ""
        may_lack = " Not in every file." if group.optional else ""
        lines.append(f"{group.about}{row}{may_lack}\n")
        if group.attributes or group.more:
            lines += ["| attribute | |", "| --- | --- |"]
            lines += [f"| `{key}` * | {about} |" for key, about in group.attributes.items()]
            lines += [f"| `{key}` | {about} |" for key, about in group.more.items()]
            lines.append("")
        if group.arrays:
            lines += ["| dataset | shape | numbers | |", "| --- | --- | --- | --- |"]
            lines += [_line(key, array) for key, array in group.arrays.items()]
            lines.append("")
        if group.is_open:
            lines.append("A method may add columns of its own here, of one number a row.\n")
    return "\n".join(lines).rstrip()


_TYPES = {"i": "int64", "f": "float64", "if": "int64 or float64", "O": "UTF-8", "u": "uint8", "fiub": "of any type"}
_INTRODUCTION = f"""\
# The results file

This is schema {SCHEMA}, as `python -m fedmpi.results schema` prints it. `python -m fedmpi.results check FILE...`
compares files with it.

Rank 0 writes a new file beside the old one and renames it over that, so any program that reads HDF5 can open a file
at any moment, also while the run goes on: it sees a complete earlier state. Each dataset of a table is one column;
one that has no value in some row is float64, with NaN there. What is marked with a star is in every file, columns
from the first round on; all else is there where it applies. N stands for a number.

Files are in the format of HDF5 1.10 (2016), with checksums: HDF5 refuses to read a dataset that is damaged, and the
check names it. Only texts have none of HDF5's own; the check compares them with `texts_crc32`.

Commands show a column in the unit that is named here, and know which of its values are better; of a column of a
method of your own they know neither (`--direction higher`).

A group, a column or an attribute may be added without a new schema; what is here keeps its name and meaning. A
reader of schema {SCHEMA} refuses files of another one.
"""


def _line(name: str, array: Array) -> str:
    numbers = "float32" if array.kinds == "f" and "P" in array.shape else _TYPES[array.kinds]
    shown = "others" if name == "*" else f"`{name}`"
    facts = [array.about]
    if array.unit:
        facts.append(f"shown in {array.unit}")
    if array.better:
        facts.append(f"{array.better} is better")
    return f"| {shown}{'' if array.optional else ' *'} | {', '.join(array.shape)} | {numbers} | {'; '.join(facts)} |"
