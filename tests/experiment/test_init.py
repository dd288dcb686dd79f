"""A run can start from the last global model of another run (`--init`)."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.results import Run
from fedmpi.results.check import problems
from tests.experiment.test_checkpoint import go, interrupt, refusal
from tests.support.mpi import REPOSITORY, fedmpi, mpirun, succeed
from tests.support.same_bits import assert_same_bits

OPTIONS = "--clients 4 --cohort 2 --local.steps 5 --model MLP --model.hidden '[9]' --model.norm batch"
FROZEN = "--clients 4 --cohort 2 --local.steps 5 --model tests.jobs.networks.HalfFrozen --model.floor true"
#: Methods that evaluate the global model, or each client's own one, or one of several.
METHODS = (
    "FedAvg",
    "SCAFFOLD",
    "MOON",
    "FedBN",
    "FedBABU",
    "FedALA",
    "FedPer",
    "Ditto",
    "LocalOnly",
    "CFL",
    "FeSEM",
    "FLHC",
    "Centralized",
)


def made(options: str, path: Path) -> Run:
    assert go(options, path) == 0
    return results.open(path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(f"{OPTIONS} --rounds 2", tmp_path_factory.mktemp("first") / "first.h5")


def test_on_one_rank_and_on_three(tmp_path: Path) -> None:
    """With tensors that training does not change, of which another seed draws others; and a convolution."""
    cases = {"frozen": FROZEN, "layers": "--clients 4 --cohort 2 --local.steps 2 --model.norm batch"}
    firsts = {name: made(f"{options} --rounds 2", tmp_path / f"{name}.h5") for name, options in cases.items()}
    for part in ("one", "three"):
        (tmp_path / part).mkdir()
        lines = [
            f"{n} {o} --rounds 2 --seed 1 --init {firsts[n].path} --evaluate_means clients" for n, o in cases.items()
        ]
        (tmp_path / part / "lines").write_text("\n".join(lines))
    succeed(mpirun(4, REPOSITORY / "tests" / "jobs" / "runs.py", tmp_path, "one:0:1", "three:1:3"))
    for name, before in firsts.items():
        one, three = (results.open(tmp_path / part / f"{name}.h5") for part in ("one", "three"))
        assert_same_bits(three, one)
        assert not problems(three.path)
        for column in ("test_loss", "test_accuracy"):
            assert three.initial[column] == before.rounds[column][-1]
        assert three.settings["init"] == str(before.path)
        found, sha256 = json.loads(three.attributes["input_files"]), hashlib.sha256(before.path.read_bytes())
        assert found == {f"--init = {before.path}": sha256.hexdigest()}
        assert three.frozen.keys() == before.frozen.keys()
        for tensor, values in before.frozen.items():
            assert three.frozen[tensor].tobytes() == values.tobytes()
    assert sorted(firsts["frozen"].frozen) == ["extractor.1.bias", "extractor.1.weight", "extractor.4.floor"]
    drawn = made(f"{FROZEN} --rounds 1 --seed 1", tmp_path / "drawn.h5")
    assert (drawn.frozen["extractor.1.weight"] != firsts["frozen"].frozen["extractor.1.weight"]).any()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_from_it(method: str, first: Run, tmp_path: Path) -> None:
    """Oracle: the file's last evaluation, for clients' test samples are the whole test set together."""
    run = made(f"{OPTIONS} --algorithm {method} --rounds 1 --init {first.path}", tmp_path / "run.h5")
    assert run.initial["test_accuracy"] == first.rounds["test_accuracy"][-1]
    assert run.rounds["test_loss"][-1] != run.initial["test_loss"]


def test_resumed(first: Run, tmp_path: Path) -> None:
    """From the same file, or not at all."""
    (tmp_path / "broken").mkdir()
    initial, path = tmp_path / "initial.h5", tmp_path / "broken" / "run.h5"
    initial.write_bytes(first.path.read_bytes())
    options = f"{OPTIONS} --rounds 3 --init {initial} --algorithm Ditto"
    interrupt(options, tmp_path / "run.h5", path.parent)
    assert refusal(f"{OPTIONS} --rounds 3 --algorithm Ditto", path) == (
        f"--init = null: must be {initial}, as in the run that is resumed"
    )
    initial.write_bytes(first.path.read_bytes() + b" ")
    assert refusal(options, path).startswith(f"--resume: --init = {initial} has changed since {path} was begun; ")
    initial.write_bytes(first.path.read_bytes())
    assert go(options, path, "--resume") == 0
    assert_same_bits(results.open(path), results.open(tmp_path / "run.h5"))


def test_another_network(first: Run, tmp_path: Path) -> None:
    """The first difference is named. Oracle: by hand."""
    frozen = made(f"{FROZEN} --rounds 1", tmp_path / "frozen.h5").path
    for options, path, said in (
        (f"{OPTIONS} --model.hidden '[8]'", first.path, "classifier.weight is float32 [10, 9], and float32 [10, 8]"),
        (f"{OPTIONS} --model.norm none", first.path, "extractor.2.weight is float32 [9], and missing"),
        (f"{FROZEN} --model.floor false", frozen, "extractor.4.weight is missing, and float32 [17, 33]"),
        (f"{FROZEN} --model.norm layer", frozen, "extractor.2.running_mean is float32 [33], and missing"),
    ):
        with pytest.raises(BadInput) as caught:
            go(f"{options} --init {path}", tmp_path / "run.h5")
        assert str(caught.value) == f"--init = {path}: its tensor {said} in the network of this run"
    assert not (tmp_path / "run.h5").exists()


def test_bad_files(first: Run, tmp_path: Path) -> None:
    said = {
        "missing": "No such file or directory",
        "text": "not an HDF5 file, or a damaged one",
        "damaged": "/model/weights: is damaged",
        "nan": "its model has values that are not finite",
        "running": "the run has not ended",
    }
    files, whole = {name: tmp_path / f"{name}.h5" for name in said}, first.path.read_bytes()
    files["text"].write_text("no results")
    files["damaged"].write_bytes(whole.replace(first.weights.tobytes()[:64], bytes(64)))
    files["nan"].write_bytes(whole)
    with h5py.File(files["nan"], "r+") as file:
        file["model/weights"][3] = np.nan
    (tmp_path / "others").mkdir()
    interrupt(f"{OPTIONS} --rounds 2", tmp_path / "others" / "running.h5", tmp_path)
    for name, path in files.items():
        with pytest.raises(BadInput) as caught:
            go(f"{OPTIONS} --init {path}", tmp_path / "run.h5")
        assert str(caught.value) == f"--init = {path}: {said[name]}"
    result = fedmpi(3, *shlex.split(OPTIONS), "--init", files["missing"], "--output", tmp_path / "run.h5")
    assert result.returncode == 2
    assert result.stderr == f"fedmpi: error: --init = {files['missing']}: No such file or directory\n"
    assert not (tmp_path / "run.h5").exists()


def test_what_it_cannot_be_combined_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options, said in {
        "--init a.h5 --algorithm IFCA": "--init = a.h5: must be null with IFCA, whose initial models must differ",
        f"--init a.h5 --output {tmp_path}/a.h5 --overwrite": "--init = a.h5: must be another file than the output",
    }.items():
        with pytest.raises(BadInput) as caught:
            parse(options.split())
        assert str(caught.value) == said
