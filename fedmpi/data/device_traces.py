"""Converts published measurements of devices to the CSV files of `--conditions Trace` and `--availability Intervals`.

The published files are those of FedScale (Lai et al.: FedScale: Benchmarking Model and System Performance of
Federated Learning at Scale. ICML 2022) and FLASH (Yang et al.: Characterizing Impacts of Heterogeneity in Federated
Learning upon Large-Scale Smartphone Data. WWW 2021).
"""

from __future__ import annotations

import csv
import json
import math
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from fedmpi.errors import BadInput
from fedmpi.options import shown

#: FedScale's time of a training step, in times of a forward pass.
TRAINING = 3
#: Bytes in a kilobit of FedScale, and in a kilobyte of FLASH.
KILOBIT, KILOBYTE = 1024 / 8, 1024
#: Events of FLASH that change whether a device is ready -> the state, and whether it then holds.
EVENTS = {
    "battery_charged_on": ("charging", True),
    "battery_charged_off": ("charging", False),
    "wifi": ("wifi", True),
    **dict.fromkeys(("unknown", "2g", "3g", "4g", "5g"), ("wifi", False)),
    "screen_lock": ("locked", True),
    "screen_unlock": ("locked", False),
}
SPEEDS = ("seconds_per_step", "download", "upload")
TIMES = ("client", "begin", "end")

Row = tuple[float, ...]


def fedscale_devices(path: Path, batch_size: float) -> list[Row]:
    """The speeds in FedScale's `client_device_capacity`: a pickled {id: {computation, communication}}.

    Args:
        batch_size: samples per step.
    """
    rows: list[Row] = []
    for name, device in _entries(path, _unpickled(path)):
        milliseconds, kilobits = (_number(path, name, device, key) for key in ("computation", "communication"))
        seconds, rate = TRAINING * batch_size * milliseconds / 1000, kilobits * KILOBIT
        rows.append((seconds, rate, rate))
    return rows


def fedscale_times(path: Path) -> tuple[list[Row], float]:
    """The times in FedScale's `client_behave_trace`: a pickled {id: {active, inactive, finish_time, ...}}.

    Returns: The rows, and the period after which they are repeated. Devices with another period than most are left
        out.
    """
    devices = _entries(path, _unpickled(path))
    periods = [_number(path, name, device, "finish_time") for name, device in devices]
    (period, _), *_ = Counter(periods).most_common(1)
    rows: list[Row] = []
    kept = [device for device, own in zip(devices, periods, strict=True) if own == period]
    for number, (name, device) in enumerate(kept):
        begins, ends = (device.get(key) for key in ("active", "inactive"))
        try:
            pairs = list(zip(map(float, begins), map(float, ends), strict=True))  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            _refuse(path, name, "must have the lists active and inactive, with as many numbers in each")
        rows += [(number, *pair) for pair in merged(pairs, period)]
    return rows, period


def flash_devices(path: Path, seconds_per_step: float) -> list[Row]:
    """The speeds in FLASH's `speed_distri.json`: {id: {down_u, up_u, ...}}, means in kilobytes per second.

    Args:
        seconds_per_step: of all devices, because the file has no speeds of computation.
    """
    devices = _entries(path, _loaded(path))
    rates = [[_number(path, name, device, key) * KILOBYTE for key in ("down_u", "up_u")] for name, device in devices]
    return [(seconds_per_step, *pair) for pair in rates]


def flash_times(path: Path) -> tuple[list[Row], float]:
    """The times in FLASH's `state_traces.json`: {id: {messages}}, with lines "time TAB event".

    A device is ready while it is locked, charges and has WiFi. Times are counted from the first midnight of the file.

    Returns: The rows, and the whole days of the file, in seconds.
    """
    devices = _entries(path, _loaded(path))
    events = [list(_events(path, name, device)) for name, device in devices]
    times = [time for one in events for time, _ in one]
    if not times:
        raise BadInput(f"{path}: must have at least one event")
    midnight = min(times).replace(hour=0, minute=0, second=0)
    period = 86400.0 * math.ceil(((max(times) - midnight).total_seconds() + 1) / 86400)
    rows: list[Row] = []
    for number, one in enumerate(events):
        seconds = [((time - midnight).total_seconds(), event) for time, event in one]
        rows += [(number, *pair) for pair in merged(_ready(seconds), period)]
    return rows, period


def merged(intervals: Iterable[Sequence[float]], period: float) -> list[tuple[float, float]]:
    """The intervals within [0, period), sorted. Those that overlap or touch become one; empty ones are left out."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted((max(begin, 0.0), min(end, period)) for begin, end in intervals):
        if begin < end and found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        elif begin < end:
            found.append((begin, end))
    return found


def write(path: Path, header: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a CSV file."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([f"{value:.10g}" for value in row] for row in rows)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


class _Plain(pickle.Unpickler):
    """Reads dictionaries, lists, numbers and texts only, because other pickled objects could run any code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"has an object of {module}.{name}: only dictionaries and numbers are read")


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Plain(file).load()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except Exception as error:  # damaged pickles raise errors of any kind
        raise BadInput(f"{path}: is not a pickle of FedScale ({shown(error)})") from None


def _loaded(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not a JSON file ({shown(error)})") from None


def _entries(path: Path, content: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(content, dict) or not content:
        raise BadInput(f"{path}: must be a dictionary of devices")
    for name, device in content.items():
        if not isinstance(device, dict):
            _refuse(path, name, "must be a dictionary")
    return [(str(name), device) for name, device in content.items()]


def _number(path: Path, name: str, device: Mapping[str, Any], key: str) -> float:
    value = device.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        _refuse(path, name, f"{key} = {shown(value)}: must be a number above 0")
    return float(value)


def _events(path: Path, name: str, device: Mapping[str, Any]) -> Iterator[tuple[datetime, str]]:
    """The time and name of each event."""
    messages = device.get("messages")
    if not isinstance(messages, str):
        _refuse(path, name, "must have the text messages")
    for line in filter(None, map(str.strip, messages.splitlines())):
        time, _, event = line.partition("\t")
        try:
            yield datetime.strptime(time.strip(), "%Y-%m-%d %H:%M:%S"), event.strip().lower()
        except ValueError:
            _refuse(path, name, f"{shown(line)}: must be a time as 2020-01-02 03:04:05, a tabulator and an event")


def _ready(events: Sequence[tuple[float, str]]) -> Iterator[tuple[float, float]]:
    """The intervals in which a device is ready; the last one ends with the last event."""
    states = dict.fromkeys(("charging", "wifi", "locked"), False)
    begin: float | None = None
    for time, event in events:
        if event in EVENTS:
            state, holds = EVENTS[event]
            states[state] = holds
        if all(states.values()):
            begin = time if begin is None else begin
        elif begin is not None:
            yield begin, time
            begin = None
    if begin is not None:
        yield begin, events[-1][0]


def _refuse(path: Path, name: object, reason: str) -> NoReturn:
    raise BadInput(f"{path}: device {shown(name)}: {reason}")
