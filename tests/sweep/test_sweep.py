"""Sweeps on this machine: real runs that are interrupted and continued, lists, the Slurm array, and refusals."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fedmpi import results
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.ownership import Lock
from fedmpi.sweep.__main__ import main
from fedmpi.sweep.plan import read
from tests.slurm.cluster import until
from tests.support.mpi import REPOSITORY, environment
from tests.test_jobs import JOBS
from tests.test_jobs import run as run_script

PROGRAMS = REPOSITORY / "tests" / "jobs"
GRID = """
options:
  algorithm.hold: {hold}  # a file; while it exists, rounds take 0.3 s
  algorithm: patient.Patient
  model: LogisticRegression
  local: {{epochs: 1}}
  clients: 8
  cohort: 4
  rounds: 6
  validation: 0.1
grid:
  local.lr: [0.01, 1e-1]
  partition.alpha: [0.1, 10]
seeds: [0, 3]
"""
NAMES = [f"lr_{lr}-alpha_{alpha}-{seed}" for lr, alpha, seed in product(("0.01", "1e-1"), ("0.1", "10"), (0, 3))]


def sweep(*words: str | Path, **variables: str) -> subprocess.Popen[str]:
    return started("-m", "fedmpi.sweep", *map(str, words), **variables)


def started(*words: str, **variables: str) -> subprocess.Popen[str]:
    """A Python program that finds the classes of tests/jobs."""
    around = {**os.environ, "PYTHONPATH": f"{environment()['PYTHONPATH']}{os.pathsep}{PROGRAMS}", **variables}
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=around)


def running(folder: Path) -> list[results.Run]:
    return [one for path in sorted(folder.glob("*.h5")) if (one := results.open(path)).status == "running"]


@pytest.mark.further
def test_interrupted_and_continued(tmp_path: Path) -> None:
    """One run is killed, later all are interrupted, and the same command continues.

    Oracles: each run alone, of FedAvg, whose weights are the same bits; and NumPy for the choice.
    """
    hold, folder = tmp_path / "hold", tmp_path / "runs"
    hold.touch()
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.format(hold=hold))
    command = grid, "--local", "2", "--output", folder
    process = sweep(*command)
    assert process.stdout
    assert (
        process.stdout.readline()
        == "settings: 4; seeds: 2; runs: 0 finished, 0 running, 8 to be started or continued\n"
    )
    until(lambda: bool(running(folder)))
    killed = running(folder)[0]
    os.kill(int(killed.attributes["pid"]), signal.SIGKILL)
    lines: list[str] = []
    while not {"failed", "finished"} <= {line.split()[2] for line in lines}:
        lines.append(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=480)
    assert process.returncode == 130
    assert f"{killed.path.stem}  failed (exit status -9), see {killed.path.with_suffix('.log')}\n" in "".join(lines)
    assert "SIGINT: " in rest
    assert "interrupted" in rest
    statuses = [results.open(path).status for path in folder.glob("*.h5")]
    assert set(statuses) <= {"finished", "killed", "interrupted"}
    assert "finished" in statuses
    assert len(statuses) < len(NAMES)

    hold.unlink()
    process = sweep(*command)
    printed, _ = process.communicate(timeout=480)
    assert process.returncode == 0, printed
    runs = {path.stem: results.open(path) for path in folder.glob("*.h5")}
    assert sorted(runs) == sorted(NAMES)
    options = ["--model", "LogisticRegression", "--local.epochs", "1"]
    options += ["--clients", "8", "--cohort", "4", "--rounds", "6", "--validation", "0.1"]
    for lr, alpha, seed in product(("0.01", "0.1"), ("0.1", "10"), ("0", "3")):
        own = ["--local.lr", lr, "--partition.alpha", alpha, "--seed", seed]
        alone = parse([*options, *own, "--output", str(tmp_path / f"{lr}-{alpha}-{seed}.h5")])[0].run()
        again = runs[f"lr_{lr.replace('0.1', '1e-1')}-alpha_{alpha}-{seed}"]
        assert again.weights_sha256 == alone.weights_sha256
        np.testing.assert_array_equal(again.rounds["test_accuracy"], alone.rounds["test_accuracy"])

    validation, test = (
        np.array([runs[name].rounds[f"{of}_accuracy"] for name in NAMES]).reshape(4, 2, 6)
        for of in ("validation", "test")
    )
    rounds = validation.argmax(2)[:, :, None]
    decisive, chosen = (np.take_along_axis(found, rounds, 2)[:, :, 0] for found in (validation, test))
    best = int(decisive.mean(1).argmax())
    rows = [line.split() for line in printed.splitlines()[-5:-1]]
    settings = product(("0.01", "1e-1"), ("0.1", "10"))
    for number, (row, (lr, alpha)) in enumerate(zip(rows, settings, strict=True)):
        texts = [
            f"{100 * two.mean():.2f} ± {100 * two.std(ddof=1):.2f}" for two in (decisive[number], chosen[number])
        ]
        assert row == [lr, alpha, "2", *texts[0].split(), *texts[1].split(), *["*"] * (number == best)]
        if number == best:
            said = f"best on validation: lr {lr}, alpha {alpha}: test accuracy {texts[1]} % (seeds: 2)"
            assert printed.splitlines()[-1] == said


def test_an_allocation_that_ends(tmp_path: Path) -> None:
    """A run that ends before the time limit is no failure. No other one is started, and no setting is the best."""
    folder, listed = tmp_path / "runs", tmp_path / "two.list"
    small = "--model LogisticRegression --clients 4 --local.epochs 1 --rounds 3"
    listed.write_text(f"one {small}\ntwo {small} --local.lr 0.2\n")
    command = listed, "--local", "1", "--ranks", "2", "--output", folder
    process = sweep(*command, SLURM_JOB_ID="1", SLURM_JOB_END_TIME=str(int(time.time()) + 15))
    printed, _ = process.communicate(timeout=240)
    assert printed.splitlines()[1:] == ["1/2  one-0  interrupted; the same command continues"]
    assert process.returncode == 85
    assert [path.name for path in folder.glob("*.h5")] == ["one-0.h5"]
    process = sweep(*command)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert results.open(folder / "one-0.h5").rounds["round"].tolist() == [1, 2, 3]


def test_runs_of_another_program(tmp_path: Path) -> None:
    """What another program runs or has run since the sweep began is left alone, and is no failure."""
    folder, listed = tmp_path / "runs", tmp_path / "four.list"
    holds = {name: tmp_path / name for name in ("one", "two")}
    small = "--model LogisticRegression --clients 4 --local.epochs 1 --rounds 99"
    patient = "--algorithm patient.Patient --algorithm.hold"
    lines = [f"{name} {small} {patient} {hold}" for name, hold in holds.items()]
    lines += [f"{name} {small} --local.lr {lr}" for name, lr in (("three", 0.1), ("four", 0.2))]
    listed.write_text("\n".join(lines))
    for hold in holds.values():
        hold.touch()
    process = sweep(listed, "--local", "1", "--output", folder)
    until(lambda: len(running(folder)) == 1)
    others = [
        started("-m", "fedmpi", *row.split()[1:], "--seed=0", f"--output={folder}/{row.split()[0]}-0.h5", "--resume")
        for row in listed.read_text().splitlines()[1:3]
    ]
    others[1].communicate(timeout=240)
    until(lambda: len(running(folder)) == 2)
    lock = Lock()
    lock.take(folder / "four-0.h5")  # as a run does before its file exists
    holds["one"].unlink()
    printed, _ = process.communicate(timeout=240)
    lock.release()
    said = [line.split("  ", 2) for line in printed.splitlines()[1:5]]
    assert said[0][2].startswith("finished in ")
    assert said[1:] == [
        ["2/4", "two-0", "running elsewhere"],
        ["3/4", "three-0", "finished elsewhere"],
        ["4/4", "four-0", "running elsewhere"],
    ]
    assert process.returncode == 1
    holds["two"].unlink()
    others[0].communicate(timeout=240)
    assert results.open(folder / "two-0.h5").status == "finished"


NOTE = """
import atexit
from fedmpi.algorithms import FedAvg
from fedmpi.errors import BadInput

atexit.register(print, "good", "bye")


class Leaving(FedAvg):
    def setup(self, fed):
        raise BadInput("no licence")
"""


def test_the_reason_of_a_failure(tmp_path: Path) -> None:
    """It is the line of the error, whatever the log has after it and had before."""
    (tmp_path / "note_of_the_sweep.py").write_text(NOTE)
    listed, folder = tmp_path / "one.list", tmp_path / "runs"
    listed.write_text("bad --model LogisticRegression --clients 4 --algorithm note_of_the_sweep.Leaving\n")
    folder.mkdir()
    (folder / "bad-0.log").write_text("fedmpi: error: of another time\n")
    process = sweep(listed, "--local", "1", "--output", folder, PYTHONPATH=f"{REPOSITORY}{os.pathsep}{tmp_path}")
    printed, _ = process.communicate(timeout=240)
    assert printed.splitlines()[1] == f"1/1  bad-0  failed (fedmpi: error: no licence), see {folder}/bad-0.log"
    assert (folder / "bad-0.log").read_text().splitlines()[-1] == "good bye"


def test_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What would be run: commands of an existing list, with the files of its Slurm array; nothing is written."""
    lines = (JOBS / "papers" / "genfl.list").read_text().splitlines()[:7]  # the others are like these
    listed = tmp_path / "genfl.list"
    listed.write_text("\n".join(lines))
    monkeypatch.chdir(REPOSITORY)
    assert main([str(listed), "--seeds", "1", "4", "--local", "2", "--ranks", "3", "--dry_run"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert len(rows) > 2
    assert len(commands) == 2 * len(rows)
    for (name, config, *options), seed, words in zip(
        (row for row in rows for _ in range(2)), [1, 4] * len(rows), commands, strict=True
    ):
        at = words.index("fedmpi")
        assert words[1:3] == ["-n", "3"]
        assert words[at + 1 :] == [
            *("--config", config, *options),
            *(f"--seed={seed}", f"--output=runs/genfl/{name}-{seed}.h5", "--resume"),
        ]
    assert not Path("runs/genfl").exists()


def test_a_run_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named with its reason, the other one is run all the same, here on two ranks, and the table has both."""
    listed, folder = tmp_path / "two.list", tmp_path / "runs"
    small = "--model LogisticRegression --clients 4 --rounds 1"
    listed.write_text(f"bad {small} --dataset MNIST --dataset.root {tmp_path}\ngood {small}\n")
    assert main([str(listed), "--local", "1", "--ranks", "2", "--output", str(folder)]) == 1
    _, bad, good, head, *rows, last = capsys.readouterr().out.splitlines()
    assert bad.startswith(f"1/2  bad-0  failed (fedmpi: error: {tmp_path}/MNIST/raw/")
    assert bad.endswith(f"), see {folder}/bad-0.log")
    assert good.startswith("2/2  good-0  finished in ")
    run = results.open(folder / "good-0.h5")
    accuracy = f"{100 * run.rounds['test_accuracy'][-1]:.2f}"
    assert good.endswith(f", test accuracy {accuracy} %")
    assert head.split() == ["setting", "seeds", "test", "accuracy", "(%)", "best"]
    assert [row.split() for row in rows] == [["bad", "0", "-"], ["good", "1", accuracy, "*"]]
    assert last == f"best on test, optimistic: setting good: test accuracy {accuracy} % (seeds: 1)"
    assert run.environment["ranks"] == 2


# A program that writes down what it is given.
SBATCH = """#!/usr/bin/env bash
printf '%s\n' "$@" >"$TOLD"
echo Submitted batch job 4711
"""


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a make-believe Slurm: one array, of the runs that have not finished, whose tasks are these runs."""
    (tmp_path / "jobs").symlink_to(JOBS)
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    grid = tmp_path / "two.yaml"
    grid.write_text(
        "options: {model: LogisticRegression, clients: 8, rounds: 1}\n"
        "grid: {cohort: [2, 4], partition: [IID, {class_path: Dirichlet, init_args: {alpha: 0.3}}]}\nseeds: [1, 2]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    command = [str(grid), "--slurm", "--ranks", "5", "--", "--time=01:00:00", "--array=0-3%2"]
    options = ["--model", "LogisticRegression", "--clients", "8", "--rounds", "1", "--cohort", "2"]
    options += ["--partition", "IID", "--seed", "1", "--output", "runs/two/cohort_2-IID-1.h5"]
    parse(options)[0].run()
    assert main(command) == 0
    told = (tmp_path / "told").read_text().splitlines()
    assert told[:-1] == [
        *("--job-name=two", "--array=0-6", "--output=runs/two/slurm-%A_%a.log", "--ntasks-per-node=5"),
        *("--time=01:00:00", "--array=0-3%2", "jobs/slurm_array.sbatch"),
    ]
    listed = Path(told[-1])
    names = [line.split()[0] for line in listed.read_text().splitlines()]
    assert (
        names
        == [
            f"cohort_{cohort}-{partition}-{seed}"
            for cohort, partition, seed in product((2, 4), ("IID", "Dirichlet_alpha_0.3"), (1, 2))
        ][1:]
    )
    granted = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "4715", "SLURM_ARRAY_TASK_ID": "6"}
    run_script("slurm_array.sbatch", listed, path=None, folder=tmp_path, **granted)
    made = results.open(tmp_path / "runs" / "two" / f"{names[6]}.h5")
    assert (made.status, made.settings["seed"], made.settings["cohort"]) == ("finished", 2, 4)
    assert made.settings["partition"]["init_args"]["alpha"] == 0.3


GOOD = "grid: {local.lr: [0.1, 0.2]}"


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("grid: {local.lr: [0.1, -1]}", [], "setting lr_-1: --local.lr = -1.0: must be"),
        ("grid: {local.learning_rate: [0.1]}", [], "setting learning_rate_0.1: --local.learning_rate"),
        (f"options: {{rounds: 0}}\n{GOOD}", [], "--rounds = 0: must be"),
        (f"options: {{help: all}}\n{GOOD}", [], "must hold settings only"),
        ("local.lr: [0.1]", [], "must hold a grid"),
        ("", [], "must hold a grid"),
        ("grid: [", [], "is not YAML (line 2"),
        (f"{GOOD}\nseed: [0]", [], "unknown key seed: must be one of options, grid, seeds"),
        ("grid: {}", [], "grid = {}: must hold at least one option"),
        ("grid: {local.lr: 0.1}", [], "grid: local.lr = 0.1: must be a list of values"),
        ("grid: {local.lr: []}", [], "grid: local.lr = []: must be a list of values"),
        ("grid: {local.lr: [0.1, 0.1]}", [], "grid: local.lr: lr_0.1 is given twice"),
        ("grid: {local.lr: [0.1, 1e-1]}", [], "the settings lr_0.1 and lr_1e-1 are the same experiment"),
        (f"options: {{local.lr: 0.1}}\n{GOOD}", [], "local.lr: must be either in options or in grid"),
        (f"options: 3\n{GOOD}", [], "options = 3: must hold options"),
        ("options: {local.epochs: 3}\ngrid: {local: [{lr: 1}, {epochs: 2}]}", [], "local.epochs: is given twice"),
        (f"options: {{local: {{lr: 1}}}}\n{GOOD}", [], "local.lr: is given twice"),
        ("grid: {local: [{lr: 1}, {epochs: 2}], local.lr: [1]}", [], "local.lr: is given twice"),
        (
            "options: {algorithm.mu: 1}\ngrid: {algorithm: [{class_path: FedProx, init_args: {mu: 2}}]}",
            [],
            "algorithm.mu: is given twice",
        ),
        (f"options: {{local: a.yaml}}\n{GOOD}", [], "local = a.yaml: must hold options, because local.lr is given"),
        ('grid: {text: ["a b", "a,b"]}', [], "grid: text: a b and a,b would have the same file name text_a_b"),
        ("grid: {text: [a b, a b]}", [], "grid: text: text_a_b is given twice"),
        ("grid: {local.vectorize: [off, on]}", [], "setting vectorize_on: --local.vectorize = on: must be"),
        ("grid: {local.lr: [1], local.lr: [2]}", [], "is not YAML (line 1: local.lr is given twice)"),
        (f"options: {{1: 2}}\n{GOOD}", [], "options = {1: 2}: must hold options"),
        ("grid: {seed: [0, 1]}", [], "grid: seed cannot be given here: use the sweep's seeds"),
        (f"options: {{output: a.h5}}\n{GOOD}", [], "options: output cannot be given here"),
        (f"{GOOD}\nseeds: 3", [], "seeds = 3: must be a list of whole numbers"),
        (f"{GOOD}\nseeds: []", [], "seeds = []: must be a list of whole numbers"),
        (f"{GOOD}\nseeds: [0, 0]", [], "seeds: 0 is given twice"),
        (f"{GOOD}\nseeds: [-1]", [], "seeds = [-1]: must be a list of whole numbers from 0"),
        (GOOD, ["--seeds", "1", "1"], "seeds: 1 is given twice"),
        (GOOD, ["--seeds", "x"], "argument --seeds: invalid int value"),
        (GOOD, ["--local", "0"], "argument --local: 0 must be a whole number, at least 1"),
        (GOOD, ["--slurm"], "not allowed with argument"),
        (GOOD, ["--", "--time=1"], "need --slurm"),
        (GOOD, ["--output", "/dev/null"], "/dev/null is a file, not a folder"),
        (GOOD, ["--output", "x" * 300], "a name has 300 bytes"),
    ],
)
def test_refusals(
    text: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is run: one line, and exit status 2."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(text)
    assert main([str(grid), "--local", "1", "--output", str(tmp_path / "runs"), *words]) == 2
    assert message in refused(capsys)
    assert list(tmp_path.iterdir()) == [grid]


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The message, which must be one line."""
    prefix, error = "fedmpi.sweep: error: ", capsys.readouterr().err
    assert error.startswith(prefix)
    assert error.endswith("\n")
    assert error.count("\n") == 1
    return error.removeprefix(prefix)


def test_words_of_a_grid(tmp_path: Path) -> None:
    """Off, no, on and yes are words that options take, as on the command line and in other files; 1e-2 is 0.01."""
    grid = tmp_path / "words.yaml"
    grid.write_text(
        "options: {partition.min_samples: 1, local.compile: off}\n"
        "grid: {local.vectorize: [off, 8], evaluate_local: [on, no], local.lr: [1e-2]}\n"
    )
    plan = read(grid, None, tmp_path)
    made = [job.settings for (job,) in plan.jobs()]
    chosen = [(one["local"]["vectorize"], one["evaluate_local"], one["local"]["lr"]) for one in made]
    assert chosen == [("off", True, 0.01), ("off", False, 0.01), (8, True, 0.01), (8, False, 0.01)]
    assert [setting.values for setting in plan.settings][:2] == [
        {"vectorize": "off", "evaluate_local": "on"},
        {"vectorize": "off", "evaluate_local": "no"},
    ]


def test_refusals_of_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text, message in (
        ("a.list", "# nothing\n", "a.list: has no line"),
        ("a.list", "one\none\n", "a.list: two lines have the name one"),
        ("a.list", "one --seed=3\n", "a.list: one: seed cannot be given here"),
        ("a.list", "one missing.yaml\n", "a.list, setting one: --config = missing.yaml: No such file"),
        ("a.txt", "", "a.txt: must end in .yaml, .yml (a grid) or .list"),
    ):
        (tmp_path / name).write_text(text)
        assert main([name, "--local", "1"]) == 2
        assert refused(capsys).startswith(message)
    assert main(["none.list", "--local", "1"]) == 2
    assert refused(capsys) == "none.list: No such file or directory\n"


def test_refusals_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Job scripts or programs that are missing, and a value that a list cannot hold."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    grid = tmp_path / "grid.yaml"
    grid.write_text(GOOD)
    assert main(["grid.yaml", "--slurm"]) == 2
    assert refused(capsys).startswith("--slurm: jobs/slurm_array.sbatch is missing")
    (tmp_path / "jobs").symlink_to(JOBS)
    assert main(["grid.yaml", "--slurm"]) == 2
    assert refused(capsys) == "--slurm: sbatch was not found\n"
    assert main(["grid.yaml", "--slurm", "--output", "two words"]) == 2
    assert refused(capsys).startswith("--slurm: --output=two words/lr_0.1-0.h5: must have no spaces")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.yaml", "jobs"]


def test_files_of_another_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A grid that was changed does not take the results of the grid before, unless only rounds are added."""
    grid, folder = tmp_path / "grid.yaml", tmp_path / "runs"
    options = ["--model", "LogisticRegression", "--clients", "4", "--rounds", "1", "--local.lr", "0.1"]
    parse([*options, "--output", str(folder / "lr_0.1-0.h5")])[0].run()
    text = "options: {{model: {}, clients: 4, rounds: {}}}\ngrid: {{local.lr: [0.1]}}"
    grid.write_text(text.format("MLP", 1))
    assert main([str(grid), "--report", "--output", str(folder)]) == 2
    assert refused(capsys) == (
        f"{folder}/lr_0.1-0.h5: --model = MLP: must be LogisticRegression, as in the run that is resumed; another "
        "--output starts a new sweep\n"
    )
    grid.write_text(text.format("LogisticRegression", 2))
    assert main([str(grid), "--local", "1", "--dry_run", "--output", str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main([str(grid), "--report", "--output", str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "no run has finished"
    grid.write_text(text.format("LogisticRegression", "1, stop.seconds: 9"))
    assert main([str(grid), "--report", "--output", str(folder)]) == 2
    assert "/lr_0.1-0.h5: --stop: must be as in the run that has finished; another" in refused(capsys)
    grid.write_text(text.format("LogisticRegression", 1))
    assert main([str(grid), "--report", "--output", str(folder)]) == 0


def test_code_that_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep does not add runs of other code to those that have finished. It still reports them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mine = tmp_path / "own_of_the_sweep.py"
    mine.write_text("from fedmpi.algorithms import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n")
    grid = tmp_path / "grid.yaml"
    options = "{algorithm: own_of_the_sweep.Mine, model: LogisticRegression, clients: 4, rounds: 1}"
    grid.write_text(f"options: {options}\ngrid: {{local.lr: [0.1]}}")
    assert main(["grid.yaml", "--local", "1"]) == 0
    mine.write_text(mine.read_text() + "    weighting = 'uniform'\n")
    capsys.readouterr()
    assert main(["grid.yaml", "--local", "1", "--seeds", "0", "1"]) == 2
    changed = (
        "own_of_the_sweep.py has changed since runs/grid/lr_0.1-0.h5 was made; another --output starts a new sweep"
    )
    assert changed in refused(capsys)
    assert main(["grid.yaml", "--report"]) == 0
