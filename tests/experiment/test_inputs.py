"""A run is resumed with the code, the files and the data with which it has begun, or not at all."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.experiment import environment, inputs, resume
from fedmpi.results.paths import checkpoint_beside
from tests.experiment.test_checkpoint import go, interrupt, refusal
from tests.support.same_bits import assert_same_bits

OPTIONS = "--clients 4 --rounds 3 --local.epochs 1 --model LogisticRegression"
#: A package with a method, which imports two of its modules, and one from beside it when it trains; a data set.
SOURCES = {
    "own/__init__.py": "",
    "own/method.py": """
        from fedmpi.algorithms.fedavg import FedAvg
        from . import numbers

        class Own(FedAvg):
            def __init__(self, factor: float = 1.0, root: str = "here") -> None:
                self.factor = factor

            def round(self, fed, cohort):
                import late
                super().round(fed, cohort)
        """,
    "own/numbers.py": "from own.deep import HALF\n",
    "own/deep.py": "HALF = 0.5\n",
    "own/never.py": "that is imported\n",
    "late.py": "LATE = True\n",
    "table.py": """
        from pathlib import Path
        import numpy as np
        from fedmpi.data import Arrays, Dataset

        class Table(Dataset):
            classes = 2

            def __init__(self, root: Path) -> None:
                self.root = root

            def read(self, progress):
                rows = np.loadtxt(Path(self.root) / "rows.csv", delimiter=",", dtype=np.float32)
                x, y = rows[:, :2], rows[:, 2].astype(np.int64)
                return Arrays(x[:40], y[:40], x[40:], y[40:])
        """,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With the sources, which can be imported from there."""
    import textwrap

    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    (tmp_path / "broken").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("own", "late", "table")]:
        del sys.modules[name]
    gc.collect()  # so that no other test finds the classes


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_code(folder: Path) -> None:
    """Every module that matters, and none that does not; oracle: by hand."""
    options, path = f"{OPTIONS} --algorithm own.method.Own", folder / "broken" / "run.h5"
    interrupt(options, folder / "run.h5", folder / "broken")
    names = [name for name in SOURCES if name not in ("own/never.py", "table.py")]
    known = json.loads(results.open(path).attributes["user_code"])
    assert known == {name: sha256(folder / name) for name in names}
    (folder / "own/never.py").write_text("something else")
    for name in names:
        before = (folder / name).read_text()
        (folder / name).write_text(before + "\n# changed\n")
        assert refusal(options, path) == (
            f"--resume: {name} has changed since {path} was begun; --overwrite instead of --resume starts again"
        )
        (folder / name).write_text(before)
    assert go(options, path, "--resume") == 0
    assert_same_bits(results.open(path), results.open(folder / "run.h5"))
    (folder / "late.py").write_text("LATE = False\n")
    assert "late.py has changed" in refusal(options, path), "of a finished run, too"
    assert go(options, path, "--overwrite") == 0
    known["late.py"] = sha256(folder / "late.py")
    assert json.loads(results.open(path).attributes["user_code"]) == known


def test_what_starts_anew_has_nothing_to_compare(folder: Path) -> None:
    """Without a checkpoint no round is of the old code, and a job script may always say --resume."""
    options, path = f"{OPTIONS} --algorithm own.method.Own", folder / "broken" / "run.h5"
    interrupt(options, folder / "run.h5", folder / "broken")
    checkpoint_beside(path).unlink()
    (folder / "late.py").write_text("LATE = 3\n")
    assert go(options, path, "--resume") == 0


def test_classes_of_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the class counts, and what the script imports: the call that resumes is in the script itself."""
    script = sys.modules["__main__"]
    for name, text in {"Mine": "class Mine: pass\n", "Other": "class Mine: x = 1\n"}.items():
        monkeypatch.setattr(inputs.inspect, "getsource", lambda cls, text=text: text)
        mine = type("Mine", (), {"__module__": "__main__"})
        monkeypatch.setattr(script, "Mine", mine, raising=False)
        config = "algorithm: {class_path: __main__.Mine}"
        found = json.loads(inputs.describe(config)["user_code"])
        assert found["class Mine"] == hashlib.sha256(text.encode()).hexdigest(), name


def test_files(folder: Path) -> None:
    """A list of cohorts that has changed, with the same name."""
    rounds = folder / "rounds.txt"
    rounds.write_text("0 1\n2 3\n")
    options, path = f"{OPTIONS} --sampler FixedList --sampler.file {rounds}", folder / "broken" / "run.h5"
    interrupt(options, folder / "run.h5", folder / "broken")
    rounds.write_text("0 1\n1 2\n")
    assert refusal(options, path).startswith(
        f"--resume: --sampler.file = {rounds} has changed since {path} was begun"
    )


def test_data(folder: Path) -> None:
    """Other rows are refused; the same ones go on wherever they lie."""
    rows = np.random.default_rng(0).normal(size=(60, 3)).round(3)
    rows[:, 2] = rows[:, 0] > 0
    for name in ("data", "moved", "changed"):
        (folder / name).mkdir()
        np.savetxt(folder / name / "rows.csv", rows, delimiter=",")
        rows[7, 1] += name == "moved"
    options, path = f"{OPTIONS} --partition IID --dataset table.Table --dataset.root", folder / "broken" / "run.h5"
    interrupt(f"{options} {folder / 'data'}", folder / "run.h5", folder / "broken")
    assert refusal(f"{options} {folder / 'changed'}", path) == (
        f"--dataset = Table: has other samples than when {path} was begun;"
        " --overwrite instead of --resume starts again"
    )
    assert go(f"{options} {folder / 'moved'}", path, "--resume") == 0
    assert_same_bits(results.open(path), results.open(folder / "run.h5"))


def test_options_that_are_called_as_fedmpi_calls_its_own(folder: Path) -> None:
    """A method's own `root` is a setting like any other."""
    options, path = f"{OPTIONS} --algorithm own.method.Own --algorithm.root", folder / "broken" / "run.h5"
    interrupt(f"{options} here", folder / "run.h5", folder / "broken")
    assert (
        refusal(f"{options} there", path) == "--algorithm.root = there: must be here, as in the run that is resumed"
    )


def test_libraries(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Another version is a warning, and none where it is the same."""
    interrupt(OPTIONS, folder / "run.h5", folder / "broken")
    path = folder / "broken" / "run.h5"
    run, now = results.open(path), environment.libraries()
    capfd.readouterr()
    inputs.check(run, run.config)
    assert capfd.readouterr().out == ""
    monkeypatch.setattr(environment, "libraries", lambda: now | {"numpy": "9.9"})
    inputs.check(run, run.config)
    said = (
        f"warning: numpy was {now['numpy']} when {path} was begun, and is now 9.9; results may not be bit-identical\n"
    )
    assert capfd.readouterr().out == said


def test_another_fedmpi(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused, whether a checkpoint is there or not."""
    path = folder / "run.h5"
    assert go(f"{OPTIONS} --rounds 1 --checkpoint.keep true", path) == 0
    monkeypatch.setattr(resume, "__version__", "9.9")
    for _ in range(2):
        with pytest.raises(BadInput, match=r"(to|by) fedmpi 0\.\d+"):
            go(OPTIONS, path, "--resume")
        checkpoint_beside(path).unlink(missing_ok=True)
