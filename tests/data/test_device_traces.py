"""Published measurements of devices become files that runs read; small files of the same form."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from fedmpi.data import device_traces
from fedmpi.data.__main__ import main
from fedmpi.policies import Intervals
from fedmpi.policies.clock import TICKS
from fedmpi.policies.conditions import Trace

CAPACITY = {1: {"computation": 162.0, "communication": 5648.0}, 2: {"computation": 40, "communication": 1024}}
BEHAVIOUR = {
    1: {
        "active": [12788, 100044],
        "inactive": [65881, 133574],
        "finish_time": 172800,
        "duration": 86623,
        "model": "A",
    },
    2: {"active": [5, 10, 90], "inactive": [20, 15, 180000], "finish_time": 172800, "duration": 1, "model": "B"},
    3: {"active": [1], "inactive": [2], "finish_time": 86400, "duration": 1, "model": "C"},
}
STATES = {
    "17": {
        "guid": "x",
        "model": "SM-A300FU",
        "messages": "2020-01-02 22:00:00\tscreen_lock\n2020-01-02 22:30:00\tWIFI\n2020-01-02 23:00:00\t87.0%\n"
        "2020-01-02 23:30:00\tbattery_charged_on\n2020-01-03 01:00:00\tscreen_on\n"
        "2020-01-03 06:00:00\tscreen_unlock\n2020-01-03 06:10:00\tscreen_lock\n2020-01-03 07:00:00\t4G\n",
    },
    "18": {
        "guid": "y",
        "model": "NX",
        "messages": "2020-01-02 10:00:00\twifi\n2020-01-02 11:00:00\tbattery_charged_on\n"
        "2020-01-02 12:00:00\tscreen_lock\n\n2020-01-02 13:00:00\tbattery_okay\n",
    },
}
SPEEDS = {"x": {"down_u": 100.0, "down_sigma": 3.0, "up_u": 50, "up_sigma": 1.0}}


def convert(*arguments: str | Path) -> int:
    return main(["traces", *map(str, arguments)])


def test_speeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracles: FedScale's and FLASH's formulas by hand; the files are read as a run reads them."""
    source, made = tmp_path / "client_device_capacity", tmp_path / "devices.csv"
    source.write_bytes(pickle.dumps(CAPACITY))
    assert convert("fedscale-devices", source, made, "--batch_size", "20") == 0
    assert made.read_text() == "seconds_per_step,download,upload\n9.72,722944,722944\n2.4,131072,131072\n"
    profile = Trace(path=made).profile(np.arange(50), 50, 0)
    assert set(profile.seconds_per_step) == {9.72, 2.4}
    source.write_text(json.dumps(SPEEDS))
    assert convert("flash-devices", source, made, "--seconds_per_step", "0.2") == 0
    assert made.read_text() == "seconds_per_step,download,upload\n0.2,102400,51200\n"
    assert capsys.readouterr().out == f"{made}: 2 devices\n{made}: 1 device\n"


def test_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracles: by hand. Overlaps become one, an end behind the period is cut, another period is left out."""
    source, made = tmp_path / "client_behave_trace", tmp_path / "times.csv"
    source.write_bytes(pickle.dumps(BEHAVIOUR))
    assert convert("fedscale-times", source, made) == 0
    lines = ["0,12788,65881", "0,100044,133574", "1,5,20", "1,90,172800"]
    assert made.read_text().splitlines() == ["client,begin,end", *lines]
    model = Intervals(made, 172800.0, "draw")
    assert set(model.present(TICKS * (172800 + 60), 40, 0)) == {False}
    assert set(model.present(TICKS * (172800 + 12788), 40, 0)) == {True}
    source.write_text(json.dumps(STATES))
    assert convert("flash-times", source, made) == 0
    lines = ["0,84600,108000", "0,108600,111600", "1,43200,46800"]
    assert made.read_text().splitlines() == ["client,begin,end", *lines]
    Intervals(made, 172800.0).check(2)
    said = f"{made}: 4 intervals of 2 devices; --availability.period 172800\n"
    assert capsys.readouterr().out == said + said.replace("4 intervals", "3 intervals")


class Dangerous:
    """Makes a folder when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, trap = tmp_path / "pickle", tmp_path / "trap"
    source.write_bytes(pickle.dumps({1: Dangerous(trap)}))
    assert convert("fedscale-devices", source, tmp_path / "made.csv") == 2
    assert not trap.exists()
    assert not (tmp_path / "made.csv").exists()
    line = capsys.readouterr().err
    assert line.startswith(f"error: {source}: is not a pickle of FedScale (has an object of posix.mkdir")


BAD = {
    "no pickle": ("fedscale-devices", b"client,speed\n", "is not a pickle of FedScale"),
    "no dictionary": ("fedscale-devices", pickle.dumps([1, 2]), "must be a dictionary of devices"),
    "no speed": (
        "fedscale-devices",
        pickle.dumps({7: {"computation": 1.0}}),
        "device 7: communication = null: must be",
    ),
    "negative": (
        "fedscale-devices",
        pickle.dumps({7: {"computation": -1.0, "communication": 1}}),
        "device 7: computation = -1.0: must be a number above 0",
    ),
    "no list": (
        "fedscale-times",
        pickle.dumps({7: {"finish_time": 9, "active": 3, "inactive": [4]}}),
        "device 7: must have the lists active and inactive, with as many numbers in each",
    ),
    "no JSON": ("flash-devices", b"{", "is not a JSON file"),
    "no messages": ("flash-times", b'{"a": {"guid": "b"}}', "device a: must have the text messages"),
    "no time": ("flash-times", b'{"a": {"messages": "noon\\twifi"}}', "device a: noon wifi: must be a time as 2020-"),
    "no event": ("flash-times", b'{"a": {"messages": ""}}', "must have at least one event"),
    "never there": (
        "flash-times",
        b'{"a": {"messages": "2020-01-02 10:00:00\\twifi"}}',
        "no device is ever available",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, content, said = BAD[name]
    source = tmp_path / "source"
    source.write_bytes(content)
    assert convert(kind, source, tmp_path / "made.csv") == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {source}: {said}")
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "made.csv").exists()


def test_options_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("fedscale-devices", tmp_path / "none", tmp_path / "made.csv") == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: No such file or directory\n"
    assert convert("fedscale-devices", tmp_path / "none", tmp_path / "made.csv", "--batch_size", "0") == 2
    assert capsys.readouterr().err == "error: argument --batch_size: 0: must be a number above 0\n"
    assert convert("flash", tmp_path / "none", tmp_path / "made.csv") == 2
    assert "invalid choice" in capsys.readouterr().err
    assert device_traces.merged([(3, 9), (9, 12), (-4, 1), (30, 50)], 40) == [(0, 1), (3, 12), (30, 40)]
