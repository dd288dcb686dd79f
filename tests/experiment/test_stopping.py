"""A run that `--stop` ends is, bit for bit, one that had no more rounds, also if it was killed and resumed."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.evaluated import Evaluated
from fedmpi.experiment.settings import REQUEUE
from fedmpi.experiment.stopping import Stopping, reason_to_stop
from fedmpi.federation.evaluation import Evaluator
from fedmpi.results import Run
from fedmpi.results.check import problems
from fedmpi.results.paths import checkpoint_beside
from fedmpi.tasks import Classification
from fedmpi.tasks.measures import described, named_metrics
from tests.experiment.test_checkpoint import go, refusal
from tests.experiment.test_interruption import Job, signal_at
from tests.support.mpi import REPOSITORY, fedmpi, mpirun, succeed
from tests.support.same_bits import assert_same_bits

EVERY = 2  # rounds from one evaluation to the next
PLANNED = 31
OPTIONS = (
    f"--clients 8 --cohort 4 --local.steps 4 --local.lr 0.5 --model LogisticRegression --evaluate_every {EVERY}"
    " --conditions Heterogeneous --held_out 2 --held_out_epochs 1"
)
PATIENCE = "--stop.metric test_accuracy --stop.patience 2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All rounds, which nothing ends early."""
    path = tmp_path_factory.mktemp("whole") / "whole.h5"
    assert go(f"{OPTIONS} --rounds {PLANNED}", path) == 0
    return results.open(path)


METRICS = described(Classification(), named_metrics(Classification(), ()))


def settled(losses: list[float], patience: int) -> int | None:
    """The number of evaluations after which a textbook's early stopping ends."""
    best, bad = float("inf"), 0
    for number, loss in enumerate(losses, 1):
        best, bad = (loss, 0) if loss < best else (best, bad + 1)
        if bad == patience:
            return number
    return None


def last_of_patience(whole: Run) -> int:
    """The last round with the options PATIENCE."""
    evaluations = settled((-whole.rounds["test_accuracy"][EVERY - 1 :: EVERY]).tolist(), 2)
    assert evaluations
    return EVERY * evaluations


def test_patience() -> None:
    """Oracle: a counter that each improvement resets, for random walks with a diverged model; then by hand."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        losses = (3 - rng.random(30) - np.linspace(0, 1, 30)).round(1)
        losses[rng.integers(30)] = np.nan
        patience = int(rng.integers(1, 8))
        stop = Stopping(patience=patience, metric="test_loss")
        rows = ({"round": np.arange(1, n + 1), "test_loss": losses[:n]} for n in range(1, 31))
        found = next(
            (n for n, rounds in enumerate(rows, 1) if reason_to_stop(stop, Evaluated(1), rounds, METRICS)), None
        )
        assert found == settled(np.nan_to_num(losses, nan=np.inf).tolist(), patience)
    stop = Stopping(patience=1, metric="test_accuracy")
    rounds = {"round": np.arange(1, 7), "test_accuracy": np.array([np.nan, 0.5, np.nan, 0.7, 0.9, 0.8])}
    assert reason_to_stop(stop, Evaluated(2), rounds, METRICS) is None, (
        "round 5 was evaluated as a former last round only"
    )
    rounds["test_accuracy"][3] = 0.8
    assert (
        reason_to_stop(stop, Evaluated(2), rounds, METRICS)
        == "patience: test_accuracy has not improved for 1 evaluation since round 4"
    )


@pytest.mark.further
def test_where_runs_stop(whole: Run, tmp_path: Path) -> None:
    """On one rank and on three. Oracles: the rows of the whole run, and for each a run that had no more rounds."""
    accuracy, loss = (whole.rounds[column][EVERY - 1 :: EVERY] for column in ("test_accuracy", "test_loss"))
    high, low, patient = np.median(accuracy), np.median(loss), last_of_patience(whole)
    reached, fallen = (accuracy >= high).argmax(), (loss <= low).argmax()
    traffic = (whole.rounds["bytes_up"] + whole.rounds["bytes_down"]).cumsum() / 1e9
    clock = whole.rounds["virtual_seconds"].cumsum()
    cases = {
        f"{PATIENCE} --stop.seconds 1e6": (
            patient,
            f"patience: test_accuracy has not improved for 2 evaluations since round {patient - 2 * EVERY}",
        ),
        f"--stop.metric test_accuracy --stop.target {high}": (
            EVERY * (reached + 1),
            f"target: test_accuracy is {accuracy[reached]:.6g} after round {EVERY * (reached + 1)}, and the target is"
            f" {high:.6g}",
        ),
        f"--stop.metric test_loss --stop.target {low} --stop.patience 9": (
            EVERY * (fallen + 1),
            f"target: test_loss is {loss[fallen]:.6g} after round {EVERY * (fallen + 1)}, and the target is"
            f" {low:.6g}",
        ),
        f"--stop.gigabytes {traffic[6]}": (
            8,
            f"gigabytes: clients have exchanged {traffic[7]:.6g} GB, and the limit is {traffic[6]:.6g} GB",
        ),
        f"--stop.virtual_seconds {clock[8]}": (
            10,
            f"virtual_seconds: the virtual clock is at {clock[9]:.6g} s, and the limit is {clock[8]:.6g} s",
        ),
        "--stop.seconds 1e-9": (EVERY, "seconds: the rounds have taken "),
        f"--stop.gigabytes {traffic[-1]} --stop.seconds 1e6": (PLANNED, ""),
    }
    for part in ("one", "three"):
        (tmp_path / part).mkdir()
        lines = [f"{number} {OPTIONS} --rounds {PLANNED} {options}" for number, options in enumerate(cases)]
        (tmp_path / part / "lines").write_text("\n".join(lines))
    said = succeed(mpirun(4, REPOSITORY / "tests" / "jobs" / "runs.py", tmp_path, "one:0:1", "three:1:3"))
    for number, (last, reason) in enumerate(cases.values()):
        one, three = (results.open(tmp_path / part / f"{number}.h5") for part in ("one", "three"))
        assert one.rounds["round"].tolist() == list(range(1, last + 1))
        assert go(f"{OPTIONS} --rounds {last}", tmp_path / "short.h5", "--overwrite") == 0
        assert_same_bits(one, results.open(tmp_path / "short.h5"))
        assert_same_bits(three, one)
        assert not problems(three.path)
        assert three.attributes.get("stopped_by", "").startswith(reason)
        assert f"\nstopped by {three.attributes.get('stopped_by', reason)}" in said or last == PLANNED
        assert ("stopped_by" in three.attributes) == (last < PLANNED)


def test_by_the_validation_set(tmp_path: Path) -> None:
    """Its main metric is looked at unless another one is named. Oracle: the rows of a run that nothing ends early."""
    options = f"{OPTIONS} --held_out 0 --validation 0.2 --rounds {PLANNED}"
    assert go(options, tmp_path / "whole.h5") == 0
    values = results.open(tmp_path / "whole.h5").rounds["validation_accuracy"][EVERY - 1 :: EVERY]
    evaluations = settled((-values).tolist(), 2)
    assert evaluations
    assert go(f"{options} --stop.patience 2", tmp_path / "run.h5") == 0
    run, best = results.open(tmp_path / "run.h5"), EVERY * (evaluations - 2)
    assert run.rounds["round"][-1] == EVERY * evaluations
    said = f"patience: validation_accuracy has not improved for 2 evaluations since round {best}"
    assert run.attributes["stopped_by"] == said
    assert run.statistics().best_round == best


def test_without_evaluations(tmp_path: Path) -> None:
    """Every round can be the last one."""
    options = f"{OPTIONS} --evaluate_every 0 --rounds 9 --stop.seconds 1e-9"
    assert go(options, tmp_path / "run.h5") == 0
    assert results.open(tmp_path / "run.h5").rounds["round"].tolist() == [1]


def test_killed(whole: Run, tmp_path: Path) -> None:
    """Twice, on some ranks, and then resumed on others; what counts has happened in all three jobs."""
    path, last = tmp_path / "run.h5", last_of_patience(whole)
    options = f"{OPTIONS} --rounds {PLANNED} {PATIENCE} --checkpoint.every_rounds 3"
    for ranks in (3, 0):
        job = Job(ranks, options, path)
        assert job.read(4)
        job.kill()
    assert Job(2, options, path).end() == 0
    run = results.open(path)
    assert len(run.attributes["resumed"].splitlines()) == 2
    assert run.rounds["round"][-1] == last
    assert go(f"{OPTIONS} --rounds {last}", tmp_path / "short.h5") == 0
    assert_same_bits(run, results.open(tmp_path / "short.h5"))
    seconds, traffic = run.rounds["seconds"].sum(), run.rounds["bytes_up"].sum() + run.rounds["bytes_down"].sum()
    for limit in (f"--stop.seconds {seconds / 2}", f"--stop.gigabytes {traffic / 2e9}"):
        assert go(f"{OPTIONS} --rounds {PLANNED} {limit}", path, "--resume") == 0, "the jobs count together"
        assert results.open(path).rounds["round"][-1] == last


def test_interrupted_after_the_last_round(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal while the first of the held-out clients is trained: no round follows when the run is resumed."""
    path, options, last = tmp_path / "run.h5", f"{OPTIONS} --rounds {PLANNED} {PATIENCE}", last_of_patience(whole)
    with monkeypatch.context() as patch:
        signal_at(patch, Evaluator, "value_of_client")
        assert go(options, path) == REQUEUE
    run = results.open(path)
    assert run.status == "interrupted"
    assert np.isnan(run.held_out["accuracy"]).any(1).tolist() == [False, True]
    assert go(options, path, "--resume") == 0
    assert go(f"{OPTIONS} --rounds {last}", tmp_path / "short.h5") == 0
    assert_same_bits(results.open(path), results.open(tmp_path / "short.h5"))


def test_resumed_after_its_end(whole: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is done while the reason holds. With other options more rounds follow, to those of the whole run."""
    path, options = tmp_path / "run.h5", f"{OPTIONS} --rounds {PLANNED}"
    assert go(f"{options} {PATIENCE}", path) == 0
    reason = results.open(path).attributes["stopped_by"]
    written = path.stat().st_mtime_ns
    for same in (PATIENCE, "--stop.metric test_accuracy --stop.patience 1", f"{PATIENCE} --rounds {PLANNED + 5}"):
        capfd.readouterr()
        assert go(f"{options} {same}", path, "--resume") == 0
        said = capfd.readouterr().out
        assert said.startswith(f"{path}: the run has finished, nothing to do (stopped by patience: test_accuracy ")
        assert (reason in said) == (same != "--stop.metric test_accuracy --stop.patience 1")
    assert path.stat().st_mtime_ns == written
    assert go(f"{options} --stop.gigabytes 1", path, "--resume") == 0
    assert "stopped_by" not in results.open(path).attributes
    assert_same_bits(results.open(path), whole)
    assert go(f"{options} {PATIENCE}", path, "--resume") == 0
    assert capfd.readouterr().out.endswith(f"{path}: the run has finished, nothing to do (--rounds adds rounds)\n")


def test_what_a_stopped_run_needs_to_go_on(tmp_path: Path) -> None:
    """A method that keeps more than a model needs its checkpoint, as after the last of all rounds."""
    options, path = f"{OPTIONS} --held_out 0 --algorithm SCAFFOLD --rounds 5", tmp_path / "run.h5"
    assert go(f"{options} --stop.seconds 1e-9", path) == 0
    assert refusal(options, path) == (
        f"--resume: {path} has finished after round 2; more rounds need the server's control (SCAFFOLD), the clients'"
        " control (SCAFFOLD), and only a checkpoint has that (--checkpoint.keep true)"
    )
    assert go(f"{options} --stop.seconds 1e-9 --checkpoint.keep true", path, "--overwrite") == 0
    assert go(options, path, "--resume") == 0
    assert go(options, tmp_path / "whole.h5") == 0
    assert_same_bits(results.open(path), results.open(tmp_path / "whole.h5"))


def test_a_metric_that_the_run_does_not_have(whole: Run, tmp_path: Path) -> None:
    """Found at the first evaluation: one line on all ranks, and no round is lost."""
    path, options = tmp_path / "run.h5", f"{OPTIONS} --rounds {PLANNED}"
    wrong = f"{options} --stop.patience 2 --stop.metric global_accuracy --output {path}"
    result = fedmpi(3, *shlex.split(wrong))
    assert result.returncode == 2
    assert result.stderr.startswith(
        "fedmpi: error: --stop.metric needs the column global_accuracy, and this run's are"
    )
    assert "test_accuracy" in result.stderr
    assert result.stderr.endswith("; --resume continues with other options\n")
    assert result.stderr.count("\n") == 1
    run = results.open(path)
    assert (run.status, run.rounds["round"].tolist()) == ("failed", [1, 2])
    assert checkpoint_beside(path).exists()
    assert go(options, path, "--resume") == 0
    assert "after 2" in results.open(path).attributes["resumed"]
    assert_same_bits(results.open(path), whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            "--stop.patience 5",
            "--stop.metric = null: must be a column of /rounds, because there is no validation set; with a column of"
            " the test set, such as test_accuracy, the test set chooses the model that it measures",
        ),
        (
            "--stop.metric drift --stop.target 1",
            "--stop.metric = drift: must be a column of /rounds of which it is known which values are better, such as"
            " test_accuracy",
        ),
        ("--stop.metric test_loss", "--stop.metric = test_loss: must be null without patience and target"),
        ("--stop.patience 0", "--stop.patience = 0: must be at least 1"),
        (f"{PATIENCE} --stop.target .nan", "--stop.target = nan: must be a finite number"),
        ("--stop.seconds 0", "--stop.seconds = 0.0: must be above 0"),
        ("--stop.gigabytes -1", "--stop.gigabytes = -1.0: must be above 0"),
    ],
)
def test_bad_input(options: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(shlex.split(options))
    assert str(caught.value) == said
