from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedmpi.results
from fedmpi.results.__main__ import main
from fedmpi.results.watch import progress, sparkline
from tests.results.made_runs import add_round, finished, started

RUN = """
import sys, time
from pathlib import Path
from tests.results.made_runs import add_round, started
time.sleep(0.2)
results = started(Path(sys.argv[1]))
for round in range(1, 21):
    add_round(results, round)
    results.write()
    time.sleep(0.02)
results.finish("finished")
"""


def test_a_run_is_watched_until_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process writes the file all the time, from before it is there; every look finds a whole state."""
    path = tmp_path / "run.h5"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", RUN, str(path)], env=environment) as writer:
        assert main(["watch", str(path), "--interval", "0.02"]) == 0
        assert writer.wait() == 0
    first, *looks = capsys.readouterr().out.split(f"{path}  ")
    assert first.startswith(f"{path}: does not exist yet\n")
    assert looks[0].startswith("running, last write ")
    assert looks[-1].splitlines() == [
        "finished",
        "FedProx (mu 0.01), Linear, Digits, seed 7",
        "[####################] round 20 of 20, 2 s per round",
        "test accuracy  ▁▂▃▃▄▅▆▆▇█ 80.00 %",
        "               best on test 80.00 % (round 20, optimistic)",
        "training loss  █▄▃▂▂▂▂▂▁▁▁▁▁▁▁▁▁▁▁▁ 0.05",
    ]


def test_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = started(tmp_path / "run.h5")
    for round in range(1, 6):
        add_round(results, round)
    results.write()
    bar = progress(fedmpi.results.open(results.path)).splitlines()[2]
    assert bar == "[#####...............] round 5 of 20, 2 s per round, about 30 s left"
    results.finish("failed")
    (tmp_path / "text.h5").write_text("no HDF5")
    files = [results.path, finished(tmp_path / "other.h5"), tmp_path / "text.h5"]
    assert main(["watch", *map(str, files)]) == 1
    assert capsys.readouterr().out.endswith(f"{files[-1]}: not an HDF5 file, or a damaged one\n")


def test_sparklines() -> None:
    assert sparkline(np.array([0.0, 1.0, 0.5])) == "▁█▅"
    assert sparkline(np.array([3.0, 3.0])) == "▁▁"
    assert sparkline(np.arange(80.0), width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.empty(0)) == ""
