"""Results files that somebody has made to harm whoever reads them: a line for each, and nothing else happens."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.results.__main__ import main
from fedmpi.results.files import MOST_ATTRIBUTES, MOST_NUMBERS, MOST_OBJECTS
from tests.results.made_runs import finished

SECRET = "what another file holds"
LAUGHS = "a: &a [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

#: YAML that is none of a run.
CONFIGS = (
    "[1, 2]",
    "algorithm: [1]",
    "rounds: many",
    f"seed: {'9' * 25}",
    f"seed: 0x{'f' * 1500}",
    "local: {1: 2}",
    f"a: {'[' * 60}{']' * 60}",
    '"a\\e[2J": 1',
    "algorithm: {class_path: a.B, init_args: [1]}",
    "seed: &a [*a]",
    "seed: *b",
)

Change = Callable[[h5py.File, Path], object]


def column(**how: Any) -> Change:
    """Another dataset in the place of /rounds/seconds."""

    def change(file: h5py.File, other: Path) -> None:
        del file["rounds/seconds"]
        file.create_dataset("rounds/seconds", **how)

    return change


def in_place(name: str, make: Callable[[h5py.File, Path], Any]) -> Change:
    """Something else of this name."""

    def change(file: h5py.File, other: Path) -> None:
        if name in file:
            del file[name]
        file[name] = make(file, other)

    return change


def external(file: h5py.File, other: Path) -> None:
    del file["rounds/seconds"]
    file.create_dataset("rounds/seconds", shape=(20,), dtype="f8", external=[(os.fsencode(other), 0, 160)])


def virtual(file: h5py.File, other: Path) -> None:
    del file["rounds/seconds"]
    layout = h5py.VirtualLayout((20,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "rounds/seconds", shape=(20,))
    file.create_virtual_dataset("rounds/seconds", layout)


def larger_chunk(file: h5py.File, other: Path) -> None:
    """One that is far larger than the column, and that HDF5 makes in memory as a whole."""
    del file["rounds/seconds"]
    file.create_dataset("rounds/seconds", (20,), "f8", maxshape=(None,), chunks=(1 << 28,), compression="gzip")
    file["rounds/seconds"].id.write_direct_chunk((0,), zlib.compress(bytes(160)))


def deflated_twice(file: h5py.File, other: Path) -> None:
    """So a byte of the file can stand for a million."""
    del file["rounds/seconds"]
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_chunk((20,))
    plan.set_deflate(9)
    plan.set_deflate(9)
    h5d.create(file["rounds"].id, b"seconds", h5t.NATIVE_DOUBLE, h5s.create_simple((20,)), plan)
    file["rounds/seconds"][:] = 1


def many_attributes(file: h5py.File, other: Path) -> None:
    for number in range(MOST_ATTRIBUTES):
        file.attrs[f"mine {number}"] = number


def many_groups(file: h5py.File, other: Path) -> None:
    group = file.create_group("g")
    for number in range(MOST_OBJECTS):
        group[str(number)] = group


def attribute(group: str, name: str, value: Any) -> Change:
    return lambda file, _: file[group].attrs.__setitem__(name, value)


HOSTILE: dict[str, Change] = {
    "a soft link": in_place("rounds/x", lambda file, other: h5py.SoftLink("/rounds/seconds")),
    "a dangling link": in_place("rounds/x", lambda file, other: h5py.SoftLink("/nowhere")),
    "links in a circle": in_place("a", lambda file, other: h5py.SoftLink("/a")),
    "a group in itself": in_place("rounds/x", lambda file, other: file["/"]),
    "a column of another file": in_place("rounds/x", lambda file, other: h5py.ExternalLink(other, "/rounds/seconds")),
    "a group of another file": in_place("rounds", lambda file, other: h5py.ExternalLink(other, "/rounds")),
    "data of another file": external,
    "data of another HDF5 file": virtual,
    "a petabyte": column(shape=(1 << 50,), dtype="f8"),
    "a petabyte in chunks": column(shape=(1 << 50,), dtype="f8", chunks=(1 << 16,)),
    "a quarter of a gigabyte in a quarter of a megabyte": column(
        data=np.zeros(1 << 25), compression="gzip", compression_opts=9, chunks=(1 << 22,)
    ),
    "a chunk of two gigabytes": larger_chunk,
    "compressed twice": deflated_twice,
    "many groups": many_groups,
    "many attributes": many_attributes,
    "many texts": in_place(
        "rounds/note", lambda file, other: np.full(MOST_OBJECTS + 1, "x", dtype=h5py.string_dtype())
    ),
    "a type": in_place("rounds/type", lambda file, other: np.dtype("f8")),
    "long numbers": column(data=np.ones(20, np.longdouble)),
    "groups in groups": lambda file, other: file.create_group("/".join("a" * 1000)),
    "a filter of others": column(data=np.ones(20), compression="lzf", chunks=(20,)),
    "a dataset for a group": in_place("rounds", lambda file, other: np.arange(3)),
    "a group for a dataset": lambda file, other: (
        file.__delitem__("rounds/round"),
        file.create_group("rounds/round"),
    ),
    "texts for numbers": column(data=["x"] * 20, dtype=h5py.string_dtype()),
    "references": in_place(
        "rounds/seconds", lambda file, other: np.array([file["clients"].ref] * 20, dtype=h5py.ref_dtype)
    ),
    "pairs": column(data=np.zeros(20, dtype=[("a", "f8"), ("b", "i4")])),
    "other dimensions": column(data=np.ones((2, 3, 4))),
    "a number for a text": attribute("/", "config", 7),
    "a text for a number": attribute("/", "pid", "x"),
    "a text of two megabytes": attribute("/", "host", "y" * (1 << 21)),
    "a table for a number": attribute("/", "pid", np.ones((2, 2))),
    "a list of pairs": attribute("/", "mine", np.zeros(3, dtype=[("a", "f8"), ("b", "i4")])),
    "a long list": attribute("/", "mine", np.zeros(MOST_NUMBERS + 1, np.uint8)),
    "a reference": lambda file, other: file.attrs.__setitem__("mine", file["rounds"].ref),
    "an attribute's name that moves the cursor": attribute("/", "a\x1b[2J", 1),
    "a name that moves the cursor": in_place("rounds/a\x1b[2J", lambda file, other: np.ones(20)),
    "a billion laughs": attribute("/", "config", LAUGHS),
    "brackets": attribute("/", "config", f"a: {'[' * 3000}{']' * 3000}"),
    "YAML that calls": attribute("/", "config", "algorithm: !!python/object/apply:os.system [ls]"),
    **{f"a config: {text}"[:40]: attribute("/", "config", text) for text in CONFIGS},
}
#: Of those that more than one check would refuse, but later, or not always: what is said by the one for them.
SAID = {
    "a petabyte": "/rounds/seconds claims to be (1125899906842624,), and has 0 bytes",
    "a quarter of a gigabyte in a quarter of a megabyte": "claims to hold 256 MiB, in a file of ",
    "data of another HDF5 file": "/rounds/seconds lies in other files",
    "many groups": f"has more than {MOST_OBJECTS} groups and datasets",
    "many texts": f"/rounds/note claims to be ({MOST_OBJECTS + 1},) texts",
    "a filter of others": "/rounds/seconds has a compression that results files do not use",
    "a billion laughs": "its config has aliases that stand for far more than the text",
    f"a config: seed: 0x{'f' * 1500}"[:40]: "its config has a number of more than 1000 digits",
    f"a config: a: {'[' * 60}"[:40]: "its config has lists or mappings in one another, more than 50 deep",
}
#: What `status` does not look at.
UNREAD = (
    "a billion laughs",
    "brackets",
    "YAML that calls",
    *(kind for kind in HOSTILE if kind.startswith("a config")),
)
COMMANDS = (
    "summary FILE",
    "table FILE",
    "rounds FILE --targets 0.5",
    "compare FILE GOOD",
    "plot FILE -o FOLDER/plot.png",
    "export FILE -o FOLDER/table.csv",
    "check FILE",
    "status FILE",
)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: one line that names the file, no exception, and an exit status that is not 0."""
    good = finished(tmp_path / "good.h5")
    bad = tmp_path / "bad.h5"
    finished(bad)
    (tmp_path / "other.h5").write_bytes(good.read_bytes())
    with h5py.File(bad, "r+") as file:
        HOSTILE[kind](file, tmp_path / "other.h5")
    for command in COMMANDS:
        words = {"FILE": str(bad), "GOOD": str(good)}
        status = main([words.get(word, word.replace("FOLDER", str(tmp_path))) for word in command.split()])
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() + said.out.splitlines() if "bad.h5" in line]
        if kind in UNREAD and command.startswith("status"):
            assert (status, said.out) == (0, "finished\n")
            continue
        assert status, command
        assert lines, command
        assert command != COMMANDS[0] or SAID.get(kind, "") in lines[0]
        assert len(lines) == 1 or command.startswith("check"), (command, said)
        assert all(len(line) < 400 + len(str(bad)) and line.isprintable() for line in lines), command
        assert "Traceback" not in said.err
    with pytest.raises(BadInput, match=r"bad\.h5"):
        _ = results.open(bad).settings


def test_texts_without_end(tmp_path: Path) -> None:
    """All may be the same one, so that a small file stands for as many as may be claimed; oracle: the line."""
    bad = finished(tmp_path / "bad.h5", rounds=1)
    with h5py.File(bad, "r+") as file:
        del file["model/names"]
        file["model/names"] = np.full(2, "x" * (1 << 20), dtype=h5py.string_dtype())
    with pytest.raises(BadInput, match=r"bad\.h5: /model/names holds texts of more than 1 MiB"):
        results.open(bad).state_dict()
