"""A run that was interrupted goes on to the same bits as if nothing had come between."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.every_method import SMALL, methods
from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.experiment.catalogue import BY_DATA, COMPONENTS
from fedmpi.experiment.checkpoint import Checkpoints
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.ownership import Lock
from fedmpi.experiment.resume import find
from fedmpi.federation.placement import OBSERVED, CostModel
from fedmpi.results.paths import checkpoint_beside
from fedmpi.results.settings import LATER, labels, same_but_seed
from tests.support.experiments import Alone
from tests.support.mpi import REPOSITORY, mpirun, succeed
from tests.support.same_bits import assert_same_bits

SOME = "--clients 4 --rounds 3 --local.epochs 1 --model LogisticRegression --algorithm SCAFFOLD"
#: Layers whose tensors files and vectors order differently; evaluated now and then.
LAYERS = (
    "--clients 4 --cohort 2 --model.norm batch --local.steps 2 --evaluate_every 2 --held_out 2 --held_out_epochs 1"
)
CASES = methods() | {
    "compressed": f"{SMALL} --algorithm SCAFFOLD --compression TopK --server_optimizer Yogi --evaluate_means both",
    "forgets": f"{SMALL} --compression TopK --compression.forget_after 1 --held_out 1 --held_out_epochs 1",
    "private": f"{SMALL} --model.norm none --weighting uniform --privacy CentralDP --server_optimizer Momentum",
    "validated": f"{SMALL} --rounds 3 --validation 0.2 --evaluate_fine_tuned 1 --metrics macro_f1",
    "drawn": f"{SMALL} --rounds 3 --cohort 2 --algorithm Ditto --sampler PowerOfChoice --evaluate_every 2",
    "mixture_of_the_cohort": f"{SMALL} --algorithm DistributionFusion --algorithm.mixture cohort",
    # From the second round on some of the components have no client in the cohort.
    "absent_components": f"{SMALL} --rounds 4 --sampler RoundRobin --clients 7 --cohort 3 --partition Shards"
    " --algorithm DistributionFusion --algorithm.fit_every 2",
    "backdoor": f"{SMALL} --attack Backdoor --attack.share 0.5 --attack.scale 2 --algorithm FedLC",
    "held_up": f"{SMALL} --algorithm FedProx --availability Markov --conditions Heterogeneous --attack ALIE"
    " --attack.share 0.5",
}
#: Keeps something that nobody knows of: the check must see that.
FORGETFUL = f"{SMALL} --algorithm tests.jobs.methods.Forgetful"


def go(options: str, path: Path, *more: str) -> int:
    """Run in this process; gives the exit status."""
    experiment, config = parse([*shlex.split(options), "--output", str(path), *more])
    return experiment.complete(Alone(), config)


def interrupt(options: str, path: Path, into: Path, after: int = 1) -> None:
    """Run to the end, with checkpoints; `into` gets the files as they are some time after this round."""
    arguments = [*shlex.split(options), "--output", str(path), "--checkpoint.every_rounds", "1"]
    experiment, config = parse(arguments)
    for outcome in experiment.outcomes(Alone(), config):
        if outcome.row["round"] == after + 1:
            for name in (path.name, f"{path.name}.checkpoint"):
                shutil.copy(path.with_name(name), into / name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of all cases; in its folder `broken` the same as they were when one round was left."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "broken").mkdir()
    for name, options in [*CASES.items(), ("forgetful", FORGETFUL)]:
        interrupt(options, folder / f"{name}.h5", folder / "broken")
    return folder


def keeps_one_model(path: Path) -> bool:
    """Whether it is all that a checkpoint holds of the method."""
    with zipfile.ZipFile(path) as archive:
        kept = [name for name in archive.namelist() if "/server/" in name or "/clients/" in name]
    return kept == ["rounds/server/0/weights.npy"]


@pytest.mark.further
def test_every_method_goes_on(unbroken: Path) -> None:
    """On other ranks than before, where what the server has is on one and what clients keep on another."""
    folder, lines = unbroken / "broken", unbroken / "lines"
    here = {name for name in CASES if keeps_one_model(folder / f"{name}.h5.checkpoint")}
    assert "FedAvg" in here
    assert len(here) < len(CASES) / 2
    missing = {name: results.open(unbroken / f"{name}.h5").attributes["missing"] for name in CASES}
    assert {name for name in CASES if not missing[name]} == here, "files hold a model, and say what they do not hold"
    for name in here:
        assert go(CASES[name], folder / f"{name}.h5", "--resume") == 0
    there = [(name, options) for name, options in CASES.items() if name not in here]
    assert go(f"{LAYERS} --rounds 1", folder / "layers.h5") == 0
    there.append(("layers", f"{LAYERS} --rounds 2"))
    lines.write_text("\n".join(f"{name} {options}" for name, options in [*there, ("forgetful", FORGETFUL)]))
    succeed(mpirun(2, REPOSITORY / "tests" / "jobs" / "goes_on.py", folder, lines))
    for name in CASES:
        one, run = (results.open(path / f"{name}.h5") for path in (unbroken, folder))
        assert "after 1" in run.attributes["resumed"], name
        assert_same_bits(run, one)
        assert not checkpoint_beside(run.path).exists()
    assert go(f"{LAYERS} --rounds 2", unbroken / "layers.h5") == 0
    one, run = (results.open(path / "layers.h5") for path in (unbroken, folder))
    assert run.weights_sha256 == one.weights_sha256
    one, run = (results.open(path / "forgetful.h5") for path in (unbroken, folder))
    assert run.weights_sha256 != one.weights_sha256


#: Methods that choose between models by small differences, or train a generator for many steps.
UNSTEADY = {"FedFTG", "FedDF", "GenFL", "FedMA"}


@pytest.mark.further
def test_every_method_side_by_side(unbroken: Path, tmp_path: Path) -> None:
    """Oracle: the same method with clients trained one by one, to rounding. Three of the methods are strangers'."""
    strangers = ("Extragradient", "Halfway", "Remembering")
    cases = methods() | {name: f"{SMALL} --algorithm tests.jobs.methods.{name}" for name in strangers}
    for name, options in cases.items():
        if name in strangers:
            assert go(options, tmp_path / f"alone-{name}.h5") == 0
        assert go(f"{options} --local.vectorize 3", tmp_path / f"{name}.h5") == 0
        alone = results.open(tmp_path / f"alone-{name}.h5" if name in strangers else unbroken / f"{name}.h5")
        run = results.open(tmp_path / f"{name}.h5")
        tolerance = 0.02 if name in UNSTEADY else 2e-4
        apart = np.linalg.norm(run.weights - alone.weights)
        assert apart <= tolerance * np.linalg.norm(alone.weights), (name, apart)
        loss = "test_loss"
        np.testing.assert_allclose(run.rounds[loss], alone.rounds[loss], rtol=10 * tolerance, err_msg=name)
        np.testing.assert_array_equal(run.clients["steps"], alone.clients["steps"], err_msg=name)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run of three rounds that was interrupted after the first."""
    (tmp_path / "broken").mkdir()
    interrupt(SOME, tmp_path / "run.h5", tmp_path / "broken")
    return tmp_path / "broken" / "run.h5"


def refusal(options: str, path: Path) -> str:
    """The line that says why a run cannot be resumed; nothing has changed then."""
    before = path.read_bytes()
    with pytest.raises(BadInput) as caught:
        go(options, path, "--resume")
    assert path.read_bytes() == before
    return str(caught.value)


def test_other_settings(interrupted: Path) -> None:
    """The first difference is named; what says nothing about the experiment may differ."""
    for changed, said in {
        "--local.lr 0.2": "--local.lr = 0.2: must be 0.1, as in the run that is resumed",
        "--algorithm FedProx": "--algorithm = FedProx: must be SCAFFOLD, as in the run that is resumed",
        "--local.steps 2": "--local.steps = 2: must be null, as in the run that is resumed",
        "--seed 1": "--seed = 1: must be 0, as in the run that is resumed",
        "--rounds 2": "--rounds = 2: must be at least 3, as in the run that is resumed",
    }.items():
        assert refusal(f"{SOME} {changed}", interrupted) == said
    free = f"{SOME} --rounds 4 --threads 2 --device cpu --checkpoint.keep true --output {interrupted} --resume"
    experiment, config = parse(free.split())
    checkpoints = Checkpoints(Alone(), interrupted, experiment.checkpoint, Lock())
    place = find(experiment, config, checkpoints)
    assert place
    assert (place.round, place.stage) == (1, None)


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    """Begun when settings had import paths, of files that lie elsewhere by now; oracle: the unbroken run."""
    (tmp_path / "broken").mkdir()
    experiment, config = parse(
        [*SOME.split(), "--output", str(tmp_path / "run.h5"), "--checkpoint.every_rounds", "1"]
    )
    older = re.sub(r"class_path: (\w+)", r"class_path: fedmpi.once.upon.\1", config)
    for option in LATER:
        older, count = re.subn(rf"^ *{option.rpartition('.')[2]}: .*\n", "", older, flags=re.MULTILINE)
        assert count == 1, "the older version did not have it"
    assert older.count("fedmpi.once.upon.") == len(set(COMPONENTS) - BY_DATA)
    for outcome in experiment.outcomes(Alone(), older):
        if outcome.row["round"] == 2:
            for name in ("run.h5", "run.h5.checkpoint"):
                shutil.copy(tmp_path / name, tmp_path / "broken")
    path = tmp_path / "broken" / "run.h5"
    assert go(SOME, path, "--resume") == 0
    run, whole = results.open(path), results.open(tmp_path / "run.h5")
    assert "fedmpi.once.upon.SCAFFOLD" in whole.config
    assert "class_path: SCAFFOLD" in run.config
    assert labels([run.settings, whole.settings]) == ["", ""], "compared, they are of the same settings"
    assert same_but_seed(run.settings) == same_but_seed(whole.settings)
    assert_same_bits(run, whole)


def test_more_rounds(tmp_path: Path) -> None:
    """A run that has finished can have more of them if its checkpoint was kept; oracle: the run that had them."""
    path, whole = tmp_path / "run.h5", tmp_path / "whole.h5"
    assert go(f"{SOME} --rounds 1 --checkpoint.keep true", path) == 0
    assert go(f"{SOME} --rounds 1 --checkpoint.keep true", path, "--resume") == 0
    assert checkpoint_beside(path).exists()
    assert go(SOME, path, "--resume") == 0
    assert not checkpoint_beside(path).exists()
    assert go(SOME, whole) == 0
    assert_same_bits(results.open(path), results.open(whole))
    assert refusal(f"{SOME} --rounds 4", path) == (
        f"--resume: {path} has finished after round 3; more rounds need the server's control (SCAFFOLD), the clients'"
        " control (SCAFFOLD), and only a checkpoint has that (--checkpoint.keep true)"
    )


def test_more_rounds_without_a_checkpoint(tmp_path: Path) -> None:
    """Where the global model is all that a method has; oracle: the run that had them from the start.

    What was the last round was evaluated, and stays so.
    """
    options = f"{LAYERS} --rounds"
    assert go(f"{options} 3", tmp_path / "run.h5") == 0
    assert go(f"{options} 5", tmp_path / "run.h5", "--resume") == 0
    assert go(f"{options} 5", tmp_path / "whole.h5") == 0
    run, whole = (results.open(tmp_path / f"{name}.h5") for name in ("run", "whole"))
    assert run.status == "finished"
    assert run.weights_sha256 == whole.weights_sha256
    np.testing.assert_array_equal(run.rounds["train_loss"], whole.rounds["train_loss"])
    for made, evaluated in ((run, [2, 3, 4, 5]), (whole, [2, 4, 5])):
        assert made.evaluation["round"].tolist() == evaluated
    both = ~np.isnan(whole.rounds["test_loss"])
    np.testing.assert_array_equal(run.rounds["test_loss"][both], whole.rounds["test_loss"][both])
    assert not np.isnan(run.held_out["accuracy"]).any()
    np.testing.assert_array_equal(run.held_out["accuracy"], whole.held_out["accuracy"])


@pytest.mark.further
def test_what_is_missing_without_a_checkpoint(unbroken: Path) -> None:
    """Oracle: by hand."""
    said = {name: str(results.open(unbroken / f"{name}.h5").attributes["missing"]) for name in CASES}
    assert said["FedDyn"].splitlines() == ["the server's drift (FedDyn)", "the clients' gradient (FedDyn)"]
    assert said["private"].splitlines() == ["the server's momentum (Momentum)", "the privacy budget spent so far"]
    assert "the clients' last model (SCAFFOLD)" in said["compressed"].splitlines()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ("--local.schedule cosine", "--local.schedule cosine"),
        ("--algorithm FLHC --algorithm.models 2", "--algorithm FLHC"),
        ("--algorithm tests.jobs.methods.LastRound", "--algorithm LastRound"),
        ("--local.schedule exponential", ""),
        ("--algorithm FLHC --algorithm.models 2 --algorithm.warmup 0", ""),
        ("--algorithm LocalOnly", ""),
    ],
)
def test_what_depends_on_the_number_of_rounds(changed: str, reason: str, tmp_path: Path) -> None:
    """There cannot be more of them; oracle where there can: the run that had them from the start."""
    options, path = f"{SOME} --algorithm FedAvg {changed} --checkpoint.keep true --rounds", tmp_path / "run.h5"
    assert go(f"{options} 1", path) == 0
    if reason:
        said = f"--rounds = 2: must be 1, because the run depends on the number of rounds ({reason})"
        assert refusal(f"{options} 2", path) == said
        checkpoint_beside(path).unlink()
        assert refusal(f"{options} 2", path) == said
        return
    assert go(f"{options} 2", path, "--resume") == 0
    assert go(f"{options} 2", tmp_path / "whole.h5") == 0
    assert results.open(path).weights_sha256 == results.open(tmp_path / "whole.h5").weights_sha256
    run, whole = (results.open(tmp_path / f"{name}.h5").rounds for name in ("run", "whole"))
    np.testing.assert_array_equal(run["test_loss"], whole["test_loss"])


def test_nothing_to_go_on_with(interrupted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Then the run starts anew and says so, so that a job script can always say --resume."""
    new = interrupted.with_name("new.h5")
    assert go(SOME, new, "--resume") == 0
    assert f"{new}: does not exist, starting a new run\n" in capfd.readouterr().out
    checkpoint_beside(interrupted).unlink()
    assert go(SOME, interrupted, "--resume") == 0
    assert f"{interrupted}: has no checkpoint yet, starting a new run\n" in capfd.readouterr().out
    assert_same_bits(results.open(interrupted), results.open(new))
    written = interrupted.stat().st_mtime_ns
    assert go(SOME, interrupted, "--resume") == 0
    assert capfd.readouterr().out == f"{interrupted}: the run has finished, nothing to do (--rounds adds rounds)\n"
    assert interrupted.stat().st_mtime_ns == written


def test_checkpoints_that_do_not_fit(interrupted: Path, tmp_path: Path) -> None:
    beside = checkpoint_beside(interrupted)
    good = beside.read_bytes()
    beside.write_bytes(good[: len(good) // 2])
    said = f"--resume: {beside} is damaged (it is no archive, or ends early); --overwrite instead of --resume "
    assert refusal(SOME, interrupted) == f"{said}starts again"
    beside.write_bytes(good)
    assert go(SOME, tmp_path / "other.h5") == 0
    shutil.copy(beside, checkpoint_beside(tmp_path / "other.h5"))
    assert "belongs to another run than" in refusal(f"{SOME} --rounds 4", tmp_path / "other.h5")
    interrupted.write_bytes(b"no results")
    assert refusal(SOME, interrupted).startswith(f"--resume: {interrupted}: not an HDF5 file")


def test_overwriting(interrupted: Path) -> None:
    """What --overwrite replaces goes with its checkpoint, and is nothing to go on with."""
    assert go(SOME, interrupted, "--overwrite") == 0
    assert not checkpoint_beside(interrupted).exists()
    for options, said in {
        f"--output {interrupted} --resume --overwrite": "--overwrite and --resume cannot be combined",
        "--resume": "--output = null: must be given with resume",
        "--checkpoint.every_minutes 0": "--checkpoint.every_minutes = 0.0: must be above 0",
        "--checkpoint.every_rounds 0": "--checkpoint.every_rounds = 0: must be at least 1",
    }.items():
        with pytest.raises(BadInput) as caught:
            parse(options.split())
        assert str(caught.value) == said


def test_full_disk(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint is unharmed, and nothing is left of the new one."""
    before, fsync = checkpoint_beside(interrupted).read_bytes(), os.fsync

    def full(number: int) -> None:
        if zipfile.is_zipfile(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        go(f"{SOME} --checkpoint.every_rounds 1", interrupted, "--resume")
    assert checkpoint_beside(interrupted).read_bytes() == before
    assert {path.name for path in interrupted.parent.iterdir()} == {"run.h5", "run.h5.checkpoint"}
    run = results.open(interrupted)
    assert run.status == "failed"
    assert run.rounds["round"].tolist() == [1, 2]
    monkeypatch.undo()
    assert go(SOME, interrupted, "--resume") == 0
    assert_same_bits(results.open(interrupted), results.open(interrupted.parent.parent / "run.h5"))


def test_what_the_placement_has_learnt() -> None:
    """Oracle: the model that went on; of other ranks, one that takes as long as they did on average."""
    books = np.ones((2, len(OBSERVED)))
    books[1, OBSERVED.index("seconds")] = 3
    model, same, other = CostModel(2), CostModel(2), CostModel(3)
    model.learn(books)
    same.learnt, other.learnt = model.learnt, model.learnt
    model.learn(books)
    same.learn(books)
    for name, learnt in model.learnt.items():
        np.testing.assert_array_equal(same.learnt[name], learnt)
    assert other.is_fitted
    placed, seconds = other.place(np.array([5, 5, 5]))
    assert sorted(placed) == [0, 1, 2]
    np.testing.assert_allclose(seconds, other.fixed_cost + 5 * other.step_cost)
