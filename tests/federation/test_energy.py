"""Energy of rounds. Oracles: counters that are files, and a driver library that counts as it is told."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fedmpi import results
from fedmpi.federation import energy
from fedmpi.federation.energy import Counter, rapl
from fedmpi.results.check import problems
from fedmpi.results.summary import summarize
from tests.support.mpi import REPOSITORY, mpirun, succeed

#: What stands for NVIDIA's library: one GPU, whose counter is a file that NVML_FAKE names.
NVML = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = &nvmlInit_v2;
    return strcmp(uuid, "GPU-a1");
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    FILE *file = fopen(getenv("NVML_FAKE"), "r");
    if (!file || device != (void *)&nvmlInit_v2) return 3;
    int found = fscanf(file, "%llu", millijoules);
    fclose(file);
    return found != 1;
}
"""
SHOW = """
import os, pathlib
from fedmpi.federation.energy import nvml
file = pathlib.Path(os.environ["NVML_FAKE"])
file.write_text("5000")
(counter,) = nvml("a1")
file.write_text("7500")
print(counter.joules(), nvml("GPU-a1")[0].joules(), nvml("b2"), nvml(""))
file.unlink()
print(counter.joules(), nvml("a1"))
"""


def zone(folder: Path, number: str, name: str, microjoules: int, span: int = 999_999) -> Path:
    """A zone of powercap; returns the file with its counter."""
    (folder / number).mkdir(parents=True)
    for file, content in {"name": name, "energy_uj": microjoules, "max_energy_range_uj": span}.items():
        (folder / number / file).write_text(f"{content}\n")
    return folder / number / "energy_uj"


def test_processors(tmp_path: Path) -> None:
    """Packages and their memory count once; a core's share and the second name of a package do not count."""
    package, memory = zone(tmp_path, "intel-rapl:0", "package-0", 100), zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    core, again = zone(tmp_path, "intel-rapl:0:0", "core", 0), zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    counters = rapl(tmp_path)
    for file, microjoules in {package: 400_100, memory: 50_000, core: 9000, again: 400_000}.items():
        file.write_text(str(microjoules))
    assert [counter.joules() for counter in counters] == pytest.approx([0.4, 0.05])


def test_a_counter_starts_again(tmp_path: Path) -> None:
    """Counts 0 to 999,999, then 0 again; each reading notices one new start."""
    file = zone(tmp_path, "intel-rapl:0", "package-0-die-1", 900_000)
    (counter,) = rapl(tmp_path)
    for microjoules, joules in [(950_000, 0.05), (50_000, 0.15), (40_000, 1.14), (40_000, 1.14)]:
        file.write_text(str(microjoules))
        assert counter.joules() == pytest.approx(joules, abs=1e-12)
    file.unlink()
    assert math.isnan(counter.joules())


def test_counters_that_cannot_be_read(tmp_path: Path) -> None:
    """None of them counts, or the sum would be that of a part."""
    assert rapl(tmp_path / "nowhere") == []
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    zone(tmp_path, "intel-rapl:1", "package-1", 1).unlink()
    assert rapl(tmp_path) == []


def test_counters_are_read_during_long_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two new starts between two rounds' ends are noticed by the readings in between."""
    monkeypatch.setattr(energy, "PAUSE", 0.0)
    values, over = iter([0, 70, 40, 10]), threading.Event()  # at first, then twice by the thread, then at the end

    def read() -> int:
        value = next(values)
        if value == 40:
            over.set()
        return value

    counter = Counter(read, 1.0, 100)
    energy._follow([counter], over)
    assert counter.joules() == 210


@pytest.mark.further
def test_nodes(tmp_path: Path) -> None:
    """Four ranks on two nodes: in the sum only if no node is missing; of each node at its first rank."""
    for both in (True, False):
        folder = tmp_path / str(both)
        for node in range(1 + both):
            zone(folder / str(node), "intel-rapl:0", "package-0", 0, span=10**12)
            zone(folder / str(node), "intel-rapl:1", "package-1", 0, span=10**12)
        succeed(mpirun(4, "-m", "mpi4py", REPOSITORY / "tests" / "jobs" / "energy.py", folder))
        run = results.open(folder / "run.h5")
        assert problems(folder / "run.h5") == []
        joules = run.ranks["cpu_joules"].reshape(2, 4)
        # A round reads each counter twice: at its beginning, and at its end, when it has counted a joule more.
        np.testing.assert_array_equal(joules, [[2, np.nan, 2 if both else np.nan, np.nan]] * 2)
        assert ("cpu_joules" in run.rounds) == both
        if both:
            assert run.rounds["cpu_joules"].tolist() == [4, 4]
            assert "\nenergy      0.008 kJ by processors and their memory\n" in summarize(run)
        assert "gpu_joules" not in {*run.rounds, *run.ranks}


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_gpus(tmp_path: Path) -> None:
    """In a process of its own, which finds the stand-in under the library's name."""
    (tmp_path / "nvml.c").write_text(NVML)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "libnvidia-ml.so.1", "nvml.c"], cwd=tmp_path, check=True)
    own = {"LD_LIBRARY_PATH": str(tmp_path), "NVML_FAKE": str(tmp_path / "count"), "PYTHONPATH": str(REPOSITORY)}
    made = subprocess.run([sys.executable, "-c", SHOW], env={**os.environ, **own}, capture_output=True, text=True)
    assert made.stdout.splitlines() == ["2.5 0.0 [] []", "nan []"], made.stderr
