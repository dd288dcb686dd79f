"""Energy of rounds, from the counters of processors (RAPL) and GPUs (NVML), where they can be read.

- Processors: the Linux kernel's /sys/class/powercap has a counter for each package and for its memory (`dram`). Only
  root can read it, unless the site allows more. A counter is for the whole node, including other jobs there.
- GPUs: NVIDIA's driver library counts the energy of a GPU since the driver was loaded (Volta and newer).

Only the energy of processors, memory and GPUs is measured, and not that of networks, disks, fans or power supplies.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from fedmpi.mpi.devices import gpu_uuid
from fedmpi.mpi.world import World

POWERCAP = Path("/sys/class/powercap")
#: Kinds of counters, and columns of the results.
CPU, GPU = "cpu_joules", "gpu_joules"
#: Seconds between two readings. A package's counter starts again at 0 after some minutes at full power.
PAUSE = 20.0


class Counter:
    """A counter of energy that may start again at 0.

    Args:
        read: the count now.
        unit: joules per count.
        span: the number of counts after which it starts again; 0: never.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, read: Callable[[], int], unit: float, span: int = 0) -> None:
        self._read = read
        self._unit = unit
        self._span = span
        self._lock = threading.Lock()
        self._last = read()
        self._counts = 0

    def joules(self) -> float:
        """Joules since the counter was made; NaN if it cannot be read any more."""
        try:
            with self._lock:
                now = self._read()
                gone = now - self._last
                self._counts += gone + self._span if gone < 0 else gone
                self._last = now
        except OSError:
            return math.nan
        return self._counts * self._unit


class Energy:
    """What the counters of this rank say. The constructor is a collective.

    The first rank of a node reads the counters of processors. The first of several ranks on a GPU reads the GPU's.

    Args:
        world: the ranks.
        device: the one that this rank computes on.

    Attributes:
        measured: the kinds that any rank measures.
        complete: the kinds that can be added up, because no node (or no GPU) of the job is missing, and the ranks
            that measure them.
    """

    def __init__(self, world: World, device: torch.device) -> None:
        uuid = gpu_uuid(device)
        mine = f"{world.node_of[world.rank]} {uuid or world.rank}" if device.type == "cuda" else ""
        holders = world.gather_text(mine)
        asked = {CPU: world.leads, GPU: bool(mine) and holders.index(mine) == world.rank}
        self._counters = {
            CPU: rapl(POWERCAP) if asked[CPU] else [],
            GPU: nvml(uuid) if asked[GPU] else [],
        }
        state = json.dumps([[asked[kind], bool(self._counters[kind])] for kind in (CPU, GPU)])
        states = [json.loads(text) for text in world.gather_text(state)]
        self.measured: list[str] = []
        self.complete: dict[str, list[int]] = {}
        for number, kind in enumerate((CPU, GPU)):
            asks, holds = ([rank for rank, state in enumerate(states) if state[number][k]] for k in (0, 1))
            if holds:
                self.measured.append(kind)
                self.complete |= {kind: holds} if holds == asks else {}
        self.begin()
        counters = [counter for some in self._counters.values() for counter in some]
        if counters:
            over = threading.Event()
            weakref.finalize(self, over.set)
            threading.Thread(target=_follow, args=(counters, over), daemon=True).start()

    def begin(self) -> None:
        """Begin a round."""
        self._before = self._joules()

    def spent(self) -> dict[str, float]:
        """Joules since the beginning of the round, by kind; NaN for what this rank does not measure."""
        return {kind: joules - self._before[kind] for kind, joules in self._joules().items()}

    def _joules(self) -> dict[str, float]:
        return {
            kind: math.fsum(counter.joules() for counter in counters) if counters else math.nan
            for kind, counters in self._counters.items()
        }


def rapl(folder: Path) -> list[Counter]:
    """The counters of this node's packages and of their memory; empty if there are none, or one cannot be read.

    `intel-rapl` is the kernel's name also for AMD's processors. `intel-rapl-mmio` has the same packages once more.
    """
    counters = []
    try:
        for zone in sorted(folder.glob("intel-rapl:*")):
            name = (zone / "name").read_text().strip()
            if re.fullmatch(r"package-\d+(-die-\d+)?|dram", name):
                span = int((zone / "max_energy_range_uj").read_text()) + 1
                counters.append(Counter(partial(_count, zone / "energy_uj"), 1e-6, span))
    except (OSError, ValueError):
        return []
    return counters


def _count(file: Path) -> int:
    return int(file.read_text())


def nvml(uuid: str) -> list[Counter]:
    """The counter of the GPU with this UUID; empty if it has none."""
    library = None
    with suppress(OSError):
        library = ctypes.CDLL("libnvidia-ml.so.1")
    if library is None or not uuid or library.nvmlInit_v2():
        return []
    device = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}".encode(), ctypes.byref(device)):
        return []

    def read() -> int:
        millijoules = ctypes.c_ulonglong()
        if library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            raise OSError("this GPU does not count its energy")
        return millijoules.value

    try:
        return [Counter(read, 1e-3)]
    except OSError:
        return []


def _follow(counters: list[Counter], over: threading.Event) -> None:
    """Read counters often enough to notice each time that one starts again."""
    while not over.wait(PAUSE):
        for counter in counters:
            counter.joules()
