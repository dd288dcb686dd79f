"""Files of measured devices: speeds and times of availability, on a virtual clock; and what is wrong with a file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import randomness, results
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.policies import FixedList, Intervals, Uniform
from fedmpi.policies.clock import TICKS
from fedmpi.policies.conditions import Trace
from fedmpi.training.settings import LocalTraining
from tests.experiment.test_checkpoint import go, interrupt, refusal
from tests.support.experiments import SEED, Cut, run
from tests.support.mpi import REPOSITORY, mpirun, succeed
from tests.support.same_bits import assert_same_bits

MODEL = 4 * (64 * 10 + 10)  # bytes of logistic regression on digits
SPEEDS = "client,seconds_per_step,download,upload\n"
#: The three clients take 4, 8 and 12 steps: 5, 7 and 26 virtual seconds, as in test_conditions.py.
THREE = f"2,1,{MODEL / 10},{MODEL / 4}\n0,0.5,{MODEL},{MODEL / 2}\n1,0.5,{MODEL / 2},{MODEL}\n"
TIMES = "client,begin,end\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def test_speeds_of_a_file(file: Path, tmp_path: Path) -> None:
    """Oracles: times computed by hand; and the same clients under ideal conditions, bit for bit."""
    file.write_text(f"# measured in March\n{SPEEDS}\n{THREE}")
    few: dict[str, Any] = {
        "clients": 3,
        "partition": Cut(20, 40, 60),
        "local": LocalTraining(epochs=2, batch_size=10),
    }
    made = run(tmp_path / "run.h5", conditions=Trace(path=file), **few)
    assert made.clients["virtual_seconds"].tolist() == [5, 7, 26]
    assert made.rounds["virtual_seconds"].tolist() == [26]
    assert made.weights_sha256 == run(tmp_path / "ideal.h5", **few).weights_sha256
    late = run(tmp_path / "late.h5", conditions=Trace(path=file, deadline=20), **few)
    assert late.clients["client"].tolist() == [0, 1]


def test_dealt_devices(file: Path) -> None:
    """Oracle: each client's own random number; a client's device does not depend on how many others there are."""
    file.write_text("upload,download,seconds_per_step\n" + "".join(f"{n},{2 * n},{3 * n}\n" for n in range(1, 8)))
    profile = Trace(path=file).profile(np.arange(500), 500, SEED)
    lines = np.floor(randomness.uniform(SEED, "device", 0, np.arange(500)) * 7) + 1
    assert profile.upload.tolist() == lines.tolist()
    assert profile.download.tolist() == (2 * lines).tolist()
    assert profile.seconds_per_step.tolist() == (3 * lines).tolist()
    assert set(lines) == set(range(1, 8))
    some = Trace(path=file).profile(np.array([7, 3]), 9, SEED)
    assert some.upload.tolist() == lines[[7, 3]].tolist()


@pytest.mark.parametrize("period", [None, 50.0])
@pytest.mark.parametrize("assign", ["client", "draw"])
def test_intervals(period: float | None, assign: str, file: Path) -> None:
    """Oracle: every line of the file, asked one after another at random times, at begins and at ends."""
    rng = np.random.default_rng(0)
    rows: list[tuple[int, float, float]] = []
    for device in (0, 2, 3, 5, 11):
        ends = np.sort(rng.choice(50 * 8, 2 * int(rng.integers(1, 9)), replace=False)) / 8
        rows += [(device, begin, end) for begin, end in ends.reshape(-1, 2).tolist()]
    rows = [rows[place] for place in rng.permutation(len(rows))]
    file.write_text(TIMES + "".join(f"{device},{begin},{end}\n" for device, begin, end in rows))
    clients, devices = 20, np.array([0, 2, 3, 5, 11])
    model = Intervals(file, period, assign)  # type: ignore[arg-type]
    model.check(clients)
    own = np.arange(clients)
    if assign == "draw":
        own = devices[(randomness.uniform(SEED, "device times", 0, own) * 5).astype(int)]

    def there(client: int, time: float) -> bool:
        local = time if period is None else time % period
        return any(device == own[client] and begin <= local < end for device, begin, end in rows)

    moments = {0.0, 49.999, 50.0, 120.0, *(edge for _, *edges in rows for edge in edges), *rng.random(40) * 110}
    for moment in sorted(moments):
        tick = round(moment * TICKS)
        expected = [there(client, tick / TICKS) for client in range(clients)]
        assert model.present(tick, clients, SEED).tolist() == expected
        waiting = rng.random(clients) < 0.4
        later = model.next_arrival(tick, waiting, SEED)
        repeats = [0.0] if period is None else [0.0, period, 2 * period, 3 * period]
        begins = [
            round((begin + repeat) * TICKS)
            for client in np.flatnonzero(waiting)
            for device, begin, _ in rows
            for repeat in repeats
            if device == own[client]
        ]
        assert later == min((begin for begin in begins if begin > tick), default=None)


def test_rounds_by_the_clock(file: Path, tmp_path: Path) -> None:
    """Oracle: by hand. Rounds take 26 s, or 7 s without client 2; one begins when somebody comes."""
    speeds = tmp_path / "speeds.csv"
    speeds.write_text(SPEEDS + THREE)
    file.write_text(f"{TIMES}0,0,1\n1,0,30\n2,0,25\n2,40,41\n")
    few: dict[str, Any] = {
        "clients": 3,
        "partition": Cut(20, 40, 60),
        "local": LocalTraining(epochs=2, batch_size=10),
    }
    everybody = {**few, "conditions": Trace(path=speeds), "availability": Intervals(file)}
    made = run(tmp_path / "run.h5", rounds=5, **everybody)
    # 0 s: all. 26 s: client 1. 33 s: nobody till client 2 comes at 40 s. 66 s: nobody any more.
    assert made.clients["client"].tolist() == [0, 1, 2, 1, 2]
    assert made.rounds["virtual_seconds"].tolist() == [26, 7, 7 + 26, 0, 0]
    assert made.rounds["unavailable"].tolist() == [0, 2, 2, 3, 3]
    (tmp_path / "list").write_text("0 1 2\n1\n2\n")
    ideal = run(tmp_path / "ideal.h5", rounds=3, sampler=FixedList(tmp_path / "list"), **few)
    assert made.weights_sha256 == ideal.weights_sha256


@pytest.mark.further
def test_the_clock_of_a_resumed_run(file: Path, tmp_path: Path) -> None:
    """Oracles: an unbroken run; the same on 1 and on 3 ranks; a changed file; a finished run without a checkpoint."""
    speeds = tmp_path / "speeds.csv"
    speeds.write_text("seconds_per_step,download,upload\n0.1,1e5,1e4\n0.5,2e4,1e4\n0.02,1e6,1e6\n")
    file.write_text(TIMES + "".join(f"{device},{device},{device + 4}\n" for device in range(8)))
    options = (
        "--clients 12 --cohort 4 --rounds 4 --local.epochs 1 --model LogisticRegression"
        f" --conditions Trace --conditions.path {speeds} --conditions.dropout 0.1"
        f" --availability Intervals --availability.path {file} --availability.period 15 --availability.assign draw"
    )
    for part in ("one", "three"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "lines").write_text(f"run {options}\n")
    succeed(mpirun(3, REPOSITORY / "tests" / "jobs" / "runs.py", tmp_path, "one:0:1", "three:0:3"))
    one, three = (results.open(tmp_path / part / "run.h5") for part in ("one", "three"))
    assert_same_bits(one, three)
    assert len(set(one.rounds["unavailable"])) > 1
    (tmp_path / "broken").mkdir()
    interrupt(options, tmp_path / "run.h5", tmp_path / "broken", after=2)
    path = tmp_path / "broken" / "run.h5"
    for changed, option in ((file, "availability"), (speeds, "conditions")):
        before = changed.read_text()
        changed.write_text(f"{before}# changed\n")
        assert refusal(options, path).startswith(f"--resume: --{option}.path = {changed} has changed since {path}")
        changed.write_text(before)
    assert go(options, path, "--resume") == 0
    assert_same_bits(results.open(path), one)
    said = refusal(f"{options} --rounds 5", path)
    assert said.endswith(
        "more rounds need the virtual clock, and only a checkpoint has that (--checkpoint.keep true)"
    )


HEADER = "must be client, seconds_per_step, download, upload"
#: A file of devices -> what is said after its name.
DEVICES = {
    "": ": must have a header line with client, seconds_per_step, download, upload",
    "# nothing\n\n": ": must have a header line with client, seconds_per_step, download, upload",
    "seconds_per_step,download\n1,1\n": ", line 1: the header has no column upload",
    "# speeds\nseconds_per_step,download,upload,cpu\n": f", line 2: unknown column cpu: {HEADER}",
    "seconds_per_step,download,upload,upload\n": ", line 1: the column upload must be there once",
    SPEEDS: ": must have at least one line below the header",
    f"{SPEEDS}0,1,1\n": ", line 2: has 3 values: must be 4, as in the header",
    f"{SPEEDS}0,1,1,1,1\n": ", line 2: has 5 values: must be 4, as in the header",
    f'{SPEEDS}0,"1,1,1\n': ", line 2: unexpected end of data",
    f"{SPEEDS}\n0,1,fast,1\n": ", line 3: download = fast: must be a number",
    f"{SPEEDS}0,1,,1\n": ", line 2: download = : must be a number",
    f"{SPEEDS}0,1,nan,1\n": ", line 2: download = nan: must be a number up to 1099511627776",
    f"{SPEEDS}0,1,1,inf\n": ", line 2: upload = inf: must be a number up to 1099511627776",
    f"{SPEEDS}0,0,1,1\n": ", line 2: seconds_per_step = 0: must be above 0",
    f"{SPEEDS}0,1,1,1\n1,1,-2.5,1\n": ", line 3: download = -2.5: must be above 0",
    f"{SPEEDS}-1,1,1,1\n": ", line 2: client = -1: must be a whole number of at least 0",
    f"{SPEEDS}1.0,1,1,1\n": ", line 2: client = 1.0: must be a whole number of at least 0",
    f"{SPEEDS}0,1,1,1\n3,1,1,1\n": ", line 3: client = 3: must be below the number of clients, 3",
    f"{SPEEDS}0,1,1,1\n1,1,1,1\n0,2,2,2\n": ", line 4: client = 0: must be on one line only",
    f"{SPEEDS}0,1,1,1\n2,1,1,1\n": ": client 1 is missing: must have all 3 clients",
}
#: A file of intervals -> what is said after its name.
INTERVALS = {
    "begin,end\n0,1\n": ", line 1: the header has no column client",
    f"{TIMES}0,-1,3\n": ", line 2: begin = -1: must be at least 0",
    f"{TIMES}0,3,3\n": ", line 2: end = 3: must be above begin",
    f"{TIMES}0,3,2\n": ", line 2: end = 2: must be above begin",
    f"{TIMES}0,3,101\n": ", line 2: end = 101: must be at most the period, 100",
    f"{TIMES}0,5,9\n1,5,9\n0,2,6\n": ", line 2: begin = 5: must be at least the end of the same client's interval"
    " before",
    f"{TIMES}0,5,9\n0,5,9\n": ", line 3: begin = 5: must be at least the end of the same client's interval before",
    f"{TIMES}0,5,9\n3,5,9\n": ", line 3: client = 3: must be below the number of clients, 3",
}


def refused(options: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse(shlex.split(f"--clients 3 {options}"))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("text", DEVICES)
def test_files_of_speeds_that_are_refused(text: str, file: Path) -> None:
    file.write_text(text)
    said = refused(f"--conditions Trace --conditions.path {file}")
    assert said == f"--conditions.path = {file}{DEVICES[text]}"


@pytest.mark.parametrize("text", INTERVALS)
def test_files_of_times_that_are_refused(text: str, file: Path) -> None:
    file.write_text(text)
    options = f"--availability Intervals --availability.path {file} --availability.period 100"
    said = refused(f"--conditions Heterogeneous {options}")
    assert said == f"--availability.path = {file}{INTERVALS[text]}"


def test_other_refusals(file: Path) -> None:
    """A file that is not there or no text, a clock that is missing; half-open intervals may touch."""
    assert refused(f"--conditions Trace --conditions.path {file}").endswith(": No such file or directory")
    file.write_bytes(b"\xff\xfe\x00")
    assert (
        refused(f"--conditions Trace --conditions.path {file}") == f"--conditions.path = {file}: is not a text file"
    )
    file.write_text(f"{TIMES}0,5,9\n0,9,12\n1,1,3\n")
    options = f"--availability Intervals --availability.path {file}"
    clock = "--availability = Intervals: needs a virtual clock, as that of --conditions Heterogeneous"
    assert refused(options) == clock
    parse(shlex.split(f"--clients 3 {options} --conditions Heterogeneous"))
    file.write_text(f"{TIMES}77,5,9\n")
    parse(shlex.split(f"--clients 3 {options} --availability.assign draw --conditions Heterogeneous"))


def test_the_two_traces_are_told_apart(file: Path, tmp_path: Path) -> None:
    """Oracle: the settings; the class of the name depends on the option."""
    rounds = tmp_path / "rounds.txt"
    rounds.write_text("0 1\n2\n")
    file.write_text("\ufeff" + SPEEDS + THREE, encoding="utf-8")
    both = f"--availability Trace --availability.file {rounds} --conditions Trace --conditions.path {file}"
    experiment, config = parse(shlex.split(f"--clients 3 --sampler Uniform {both}"))
    assert isinstance(experiment.conditions, Trace)
    assert not isinstance(experiment.availability, Trace)
    again, _ = parse(["--config", str(_written(tmp_path / "again.yaml", config or experiment.config))])
    assert type(again.availability) is type(experiment.availability)
    assert isinstance(again.conditions, Trace)
    assert refused(f"{both} --conditions.dropout 2") == "--conditions.dropout = 2.0: must be between 0 and 1"
    assert isinstance(again.sampler, Uniform)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
