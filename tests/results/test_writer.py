from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import fedmpi.results
from fedmpi.errors import BadInput
from fedmpi.results import Results
from fedmpi.results.writer import check_writable
from tests.results.made_runs import add_round, finished, started, weights


def child(code: str, path: Path) -> subprocess.Popen[str]:
    """A Python process that can import what this file can; stderr joins stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_the_layout_is_the_contract(tmp_path: Path) -> None:
    with h5py.File(finished(tmp_path / "run.h5")) as file:
        assert set(file) == {
            "environment",
            "confusion",
            "rounds",
            "clients",
            "ranks",
            "partition",
            "evaluation",
            "model",
        }
        assert file.attrs["schema"] == 1
        assert file.attrs["status"] == "finished"
        assert file.attrs["pid"] == os.getpid()
        assert {"fedmpi_version", "config", "algorithm", "dataset", "model", "seed"} <= set(file.attrs)
        assert {"started", "last_write", "write_interval", "host"} <= set(file.attrs)
        assert dict(file["environment"].attrs) == {"ranks": 3, "hosts": "ä\nb"}
        assert {len(column) for column in file["rounds"].values()} == {20}
        assert [file["rounds"][name].dtype for name in ("round", "bytes_up", "test_loss")] == [
            "<i8",
            "<i8",
            "<f8",
        ]
        assert file["clients/loss"].shape == (80,)
        assert file["partition/label_counts"].shape == (20, 10)
        assert file["evaluation/round"][:].tolist() == list(range(2, 21, 2))
        assert file["evaluation/client_accuracy"].shape == (10, 20)
        assert dict(file["evaluation"].attrs) == {"test_loss": 2.5, "test_accuracy": 0.1}
        assert file["model/weights"].dtype == "<f4"
        assert file["model/names"].asstr()[:].tolist() == ["weight", "bias"]
        assert file["model/shapes"][:].tolist() == [[3, 2], [3, -1]]
        assert file["model/offsets"][:].tolist() == [0, 6]
        assert file["model"].attrs["sha256"] == hashlib.sha256(weights().astype("<f4").tobytes()).hexdigest()


def test_arrays_that_are_kept(tmp_path: Path) -> None:
    """Oracle: h5py, which decompresses them; and the file's size. The last chunk is not full."""
    images = np.random.default_rng(0).integers(0, 2, (3000, 1, 28, 28), dtype=np.uint8)
    results = started(tmp_path / "run.h5")
    results.keep("synthetic", {"images": images, "labels": np.arange(3000)})
    results.write()
    results.finish("finished")
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["synthetic/images"].compression == "gzip"
        np.testing.assert_array_equal(file["synthetic/images"], images)
        np.testing.assert_array_equal(file["synthetic/labels"], np.arange(3000))
    assert (tmp_path / "run.h5").stat().st_size < images.nbytes / 3
    np.testing.assert_array_equal(fedmpi.results.open(tmp_path / "run.h5").synthetic["images"], images)


@pytest.mark.skipif(not shutil.which("h5dump"), reason="h5dump is not installed")
def test_h5dump_reads_the_file(tmp_path: Path) -> None:
    dump = subprocess.run(["h5dump", "-H", finished(tmp_path / "run.h5")], capture_output=True, text=True)
    assert dump.returncode == 0, dump.stderr
    assert 'DATASET "test_accuracy"' in dump.stdout


def test_weights_are_fetched_only_when_written(tmp_path: Path) -> None:
    calls = 0

    def counted() -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        return weights()

    results = started(tmp_path / "run.h5")
    results.set_model(["w"], [(9,)], [0], counted, {"centers": lambda: np.stack([weights(1), weights(2)])})
    add_round(results, 1)
    assert calls == 0
    results.write()
    assert calls == 1
    assert fedmpi.results.open(results.path).model["centers"].shape == (2, 9)


def test_a_configuration_may_be_long(tmp_path: Path) -> None:
    text = "# remark\n" * 20_000  # HDF5 keeps other attributes than texts below 64 KiB
    results = Results(tmp_path / "run.h5", {"config": text}, {"hosts": ["node"] * 20_000})
    results.write()
    assert fedmpi.results.open(results.path).config == text


def test_a_reader_of_the_old_file_sees_it_whole(tmp_path: Path) -> None:
    results = started(tmp_path / "run.h5")
    add_round(results, 1)
    results.write()
    with h5py.File(results.path, locking=False) as old:
        add_round(results, 2)
        results.write()
        assert old["rounds/round"][:].tolist() == [1]
        assert old["clients/client"][:].tolist() == [0, 1, 2, 3]
    assert fedmpi.results.open(results.path).rounds["round"].tolist() == [1, 2]


def test_nothing_is_written_before_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.h5"
    results = started(path)
    assert not path.parent.exists()
    results.write()
    assert os.listdir(path.parent) == ["run.h5"]


def test_an_old_file_stays_until_the_first_write(tmp_path: Path) -> None:
    path = finished(tmp_path / "run.h5")
    results = started(path, overwrite=True)
    assert len(fedmpi.results.open(path).rounds["round"]) == 20
    results.write()
    assert not fedmpi.results.open(path).rounds


def test_a_link_keeps_pointing_to_the_file(tmp_path: Path) -> None:
    link = tmp_path / "link.h5"
    link.symlink_to(tmp_path / "run.h5")
    finished(link)
    assert link.is_symlink()
    assert fedmpi.results.open(tmp_path / "run.h5").status == "finished"


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(BadInput, match="exists already; give --overwrite"):
        check_writable(file, overwrite=False)
    with pytest.raises(BadInput, match="is a folder"):
        check_writable(tmp_path, overwrite=True)
    with pytest.raises(BadInput, match="is a file, not a folder"):
        check_writable(file / "below" / "run.h5", overwrite=True)
    check_writable(file, overwrite=True)
    check_writable(tmp_path / "a" / "b" / "run.h5", overwrite=False)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(BadInput, match="cannot be written"):
        check_writable(tmp_path / "run.h5", overwrite=False)
    assert os.listdir(tmp_path) == ["file"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fedmpi.results.writer.monotonic", clock)
    return clock


def written_rounds(results: Results) -> int:
    return len(fedmpi.results.open(results.path).rounds.get("round", ()))


@pytest.mark.parametrize(("duration", "pause"), [(0.001, 1.0), (0.1, 5.0)])
def test_writes_keep_their_distance(tmp_path: Path, clock: Clock, duration: float, pause: float) -> None:
    def slow_weights() -> NDArray[np.float32]:
        clock.now += duration
        return weights()

    results = started(tmp_path / "run.h5")
    results.set_model(["w"], [(9,)], [0], slow_weights)
    results.write_if_due()  # the first one is always due
    add_round(results, 1)
    clock.now += 0.99 * pause
    results.write_if_due()
    assert written_rounds(results) == 0
    clock.now += 0.02 * pause
    results.write_if_due()
    assert written_rounds(results) == 1


def test_the_write_interval_is_the_longest_so_far(tmp_path: Path, clock: Clock) -> None:
    def interval() -> float:
        results.write()
        return float(fedmpi.results.open(results.path).attributes["write_interval"])

    results = started(tmp_path / "run.h5")
    assert interval() == 360  # nobody knows how long a round takes
    add_round(results, 1)
    assert interval() == 60
    clock.now += 100
    assert interval() == 100
    clock.now += 50
    assert interval() == 100


WRITE_ON_AND_ON = """
import sys
from itertools import count
from pathlib import Path
from tests.results.made_runs import add_round, started
results = started(Path(sys.argv[1]), overwrite=True)
for round in count(1):
    add_round(results, round)
    results.write()
    print(round, flush=True)
"""


def test_a_killed_writer_leaves_every_round_it_wrote(tmp_path: Path) -> None:
    chance = random.Random(0)
    path = tmp_path / "run.h5"
    for _ in range(15):
        writer = child(WRITE_ON_AND_ON, path)
        assert writer.stdout
        with writer.stdout:
            assert writer.stdout.readline() == "1\n"
            time.sleep(chance.uniform(0, 0.05))
            writer.kill()
            writer.wait()
            written = len(writer.stdout.readlines()) + 1
        run = fedmpi.results.open(path)
        rounds = len(run.rounds["round"])
        assert written <= rounds <= written + 1  # the last one may have ended between its write and its print
        assert run.rounds["round"].tolist() == list(range(1, rounds + 1))
        assert len(run.clients["client"]) == 4 * rounds
        assert run.weights.tolist() == weights().tolist()
        assert run.status == "killed"


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from tests.results.made_runs import add_round, started
results = started(Path(sys.argv[1]))
add_round(results, 1)
results.write()
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
add_round(results, 2)
try:
    results.write()
except OSError as error:
    print(error)
"""


def test_a_full_disk_costs_only_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    writer = child(FILL_THE_DISK, path)
    output, _ = writer.communicate()
    assert output == f"[Errno 27] File too large: '{path}'\n"
    assert writer.returncode == 0
    assert fedmpi.results.open(path).rounds["round"].tolist() == [1]
    assert os.listdir(tmp_path) == ["run.h5"]


def test_collecting_is_cheap_and_long_runs_are_written_fast(tmp_path: Path) -> None:
    results = started(tmp_path / "run.h5")
    began = time.perf_counter()
    for round in range(1, 1001):
        add_round(results, round)
    assert time.perf_counter() - began < 1  # takes about 0.1 s
    million = np.arange(1_000_000)
    results.add_clients(dict.fromkeys(("round", "client", "loss"), million))
    began = time.perf_counter()
    results.write()
    assert time.perf_counter() - began < 2  # takes about 0.1 s


def test_what_a_checkpoint_carries(tmp_path: Path, clock: Clock) -> None:
    """The rows since the last write, and no write until one is due; together with the file, all of them.

    Oracle: the file of a run that has written everything. The file that is resumed may have some of the rows.
    """
    results = started(tmp_path / "run.h5")
    for round in range(1, 4):
        add_round(results, round)
    assert not results.beyond_file(), "there is no file so far"
    behind, written = results.path.read_bytes(), results.path.stat().st_ino
    for round in range(4, 8):
        add_round(results, round)
        rows = results.beyond_file()
        assert rows["rounds"]["round"].tolist() == list(range(4, round + 1))
        assert len(rows["clients"]) == 4 * (round - 3)
    assert results.path.stat().st_ino == written
    begun = results.started
    results.write()
    files = {"behind": behind, "level": results.path.read_bytes()}
    add_round(results, 8)
    clock.now += 2
    assert not results.beyond_file(), "a write was due"
    files["ahead"] = results.path.read_bytes()
    for name, content in files.items():
        path = tmp_path / f"{name}.h5"
        path.write_bytes(content)
        resumed = started(path, overwrite=True)
        resumed.resume(begun, 7, beyond=rows)
        add_round(resumed, 8)
        resumed.finish("finished")
        one, other = (fedmpi.results.open(each) for each in (path, results.path))
        for table in ("rounds", "clients", "ranks", "evaluation"):
            np.testing.assert_equal(one.table(table), other.table(table))
    path.write_bytes(behind)
    short = started(path, overwrite=True)
    with pytest.raises(BadInput, match="ends before its checkpoint, which is after round 7"):
        short.resume(begun, 7)


def test_the_best_model_of_rounds_that_do_not_come_again(tmp_path: Path) -> None:
    """A killed job had a better round than those after which the resumed run stops."""
    results = started(tmp_path / "run.h5")
    for round in range(1, 4):
        add_round(results, round)
    results.keep_if_best(3, "validation_accuracy", 0.5, "higher")
    results.write()
    for rounds, is_kept in ((2, False), (3, True)):
        resumed = started(results.path, overwrite=True)
        resumed.resume(results.started, rounds)
        resumed.set_stopped("seconds")
        resumed.path = tmp_path / f"{rounds}.h5"
        resumed.finish("finished")
        run = fedmpi.results.open(resumed.path)
        assert run.attributes["stopped_by"] == "seconds"
        assert bool(run.best) == is_kept
