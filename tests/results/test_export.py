from __future__ import annotations

import csv
import math
import struct
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import fedmpi.results
from fedmpi.results.__main__ import main
from tests.results.made_runs import finished


def test_csv_has_all_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the columns of the files, read back as numbers."""
    files = [finished(tmp_path / f"{mu}.h5", mu=mu, rounds=4, clock=mu == 1.0) for mu in (0.01, 1.0)]
    output = tmp_path / "all.csv"
    assert main(["export", *map(str, files), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [row["method"] for row in rows] == ["FedProx (mu 0.01)"] * 4 + ["FedProx (mu 1.0)"] * 4
    assert [row["seed"] for row in rows] == ["7"] * 8
    for path in files:
        for name, values in fedmpi.results.open(path).rounds.items():
            found = [row[name] for row in rows if row["file"] == str(path)]
            assert found == ["" if math.isnan(value) else str(value) for value in values.tolist()]
    assert {row["virtual_seconds"] for row in rows[:4]} == {""}
    assert main(["export", str(files[0]), "-o", str(output), "--table", "evaluation"]) == 0
    assert (
        output.read_text()
        .splitlines()[0]
        .endswith(
            "seed,round,per_class_accuracy_0,"
            + ",".join(f"per_class_accuracy_{number}" for number in range(1, 10))
            + ","
            + ",".join(f"client_accuracy_{number}" for number in range(20))
        )
    )
    assert main(["export", str(files[0]), "-o", str(tmp_path / "missing" / "all.csv")]) == 2


def events(folder: Path) -> Iterator[Any]:
    """The events of the only file of a folder: records of 8 bytes of length, 4 of check, content, 4 of check."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (path,) = folder.glob("events.out.tfevents.*")
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_event_files_for_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the events, taken apart by hand."""
    pytest.importorskip("tensorboardX")
    (tmp_path / "a").mkdir()
    files = [finished(tmp_path / name, rounds=4, seed=seed) for seed, name in enumerate(("a/0.h5", "1.h5"))]
    board = tmp_path / "board"
    assert main(["export", *map(str, files), "-o", str(board)]) == 0
    run = fedmpi.results.open(files[0])
    found = [
        (event.step, event.wall_time, event.summary.value[0].simple_value)
        for event in events(board / "a" / "0")
        if event.summary.value and event.summary.value[0].tag == "test_accuracy"
    ]
    began = datetime.fromisoformat(run.attributes["started"]).timestamp()
    assert [step for step, _, _ in found] == [2, 4]
    assert [time for _, time, _ in found] == pytest.approx([began + 4, began + 8])
    assert [value for _, _, value in found] == pytest.approx([0.08, 0.16])
    assert {event.summary.value[0].tag for event in events(board / "1") if event.summary.value} == {
        *run.rounds.keys() - {"round"}
    }
    capsys.readouterr()
    assert main(["export", *map(str, files), "-o", str(board)]) == 2
    assert capsys.readouterr().err == f"{board}: exists already\n"
