"""Networks that are built again from results files, by a process that knows nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from fedmpi import results
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from tests.results.made_runs import finished
from tests.support.experiments import Alone, read
from tests.support.mpi import mpirun, succeed

SETTINGS = "--clients 6 --cohort 6 --rounds 2 --local.epochs 1 --partition IID --device cpu --seed 5"
RUNS = {
    "digits": "",  # LeNet, with batch normalisation
    "coloured": "--dataset tests.jobs.colours.Coloured --model LeNet --model.norm group",
    "text": "--dataset tests.jobs.texts.Places --model BiLSTM --model.hidden 8 --local.lr 0.5",
    "own": "--dataset tests.jobs.colours.Coloured --model tests.jobs.colours.Own --model.width 9",
    "extended": "--algorithm FeatureFusion --algorithm.evaluated_with self --algorithm.operator conv",
    "several": "--algorithm FeSEM --algorithm.models 2 --model MLP --partition Rotated --partition.over IID",
}
# Of each file how many test samples the network recognises; of methods with several models, each client's on its own.
COUNT = """
import json, sys
import numpy as np
import torch
from fedmpi import results
from fedmpi.experiment.command_line import parse
found = {}
for path in sys.argv[1:]:
    run = results.open(path)
    experiment, _ = parse(["--dataset", run.settings["dataset"]["class_path"]])
    arrays = experiment.dataset.read(lambda line: None)
    with torch.no_grad():
        hits = run.network()(arrays.test_x).argmax(1).numpy() == arrays.test_y
    found[path] = int(hits.sum()), len(hits)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, results.Run]:
    folder = tmp_path_factory.mktemp("runs")
    for name, options in RUNS.items():
        experiment, config = parse([*SETTINGS.split(), *options.split(), "--output", f"{folder}/{name}.h5"])
        experiment.run(Alone(), config)
    return {name: results.open(folder / f"{name}.h5") for name in RUNS}


def test_the_stored_accuracy_is_the_networks(trained: dict[str, results.Run]) -> None:
    """To the sample, in a process of its own, from nothing but the file and the data set's arrays as they are."""
    runs = {str(run.path): run for name, run in trained.items() if name != "several"}
    found = json.loads(succeed(mpirun(0, "-c", COUNT, *runs)))
    for path, (hits, samples) in found.items():
        assert hits / samples == runs[path].statistics().last, path
        assert hits / samples > 0.15, f"{path}: better than chance"


def test_each_of_several_models(trained: dict[str, results.Run]) -> None:
    """Oracle: the weights that the file has of it, and the outputs of what is built by hand."""
    run = trained["several"]
    images = read(Digits()).test_x[:20]
    for number in (0, 1):
        network = run.network(number)
        state = run.state_dict(run.model["centers"][number])
        for name, tensor in network.network.named_parameters():
            np.testing.assert_array_equal(tensor.detach(), state[name])
        assert network(images).shape == (20, 10)
    assert any(torch.equal(run.network()(images), run.network(number)(images)) for number in (0, 1)), (
        "the one that most clients have"
    )
    for which in (2, -1, "centers", "nothing"):
        with pytest.raises(BadInput, match=r"no model .*, but 0 to 1, 'origin', 'weights'"):
            run.network(which)


def test_the_best_on_the_validation_set(trained: dict[str, results.Run], tmp_path: Path) -> None:
    """Oracle: half of the last weights, stored as the best ones; a file without them is refused."""
    last, copied = trained["digits"], tmp_path / "copy.h5"
    half = (last.weights / 2).astype(np.float32)
    shutil.copy(last.path, copied)
    with h5py.File(copied, "r+") as file:
        file["best/weights"] = half
    network = results.open(copied).network("best")
    state = results.open(copied).state_dict(half)
    for name, tensor in network.network.named_parameters():
        np.testing.assert_array_equal(tensor.detach(), state[name])
    with pytest.raises(BadInput, match=r"no model 'best': the run has no validation set, or no evaluation yet"):
        last.network("best")


def test_what_it_takes_and_gives(trained: dict[str, results.Run]) -> None:
    """Oracle: the formula of normalisation, and that the caller's random numbers are left alone."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    network = trained["coloured"].network()
    assert torch.equal(torch.rand(3), expected)
    assert not network.training
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(trained["coloured"].inputs[name])[:, None, None] for name in ("mean", "std"))
    scaled = ((pixels / 255 - mean) / std).float()
    torch.testing.assert_close(network(pixels), network.network(scaled))
    torch.testing.assert_close(network(pixels.numpy()), network(pixels))
    with pytest.raises(
        TypeError, match=r"takes images as uint8 .*, not torch.float32; `.network` takes preprocessed inputs"
    ):
        network(scaled)
    with pytest.raises(TypeError, match="takes tokens as whole numbers"):
        trained["text"].network()(torch.rand(2, 8))


def test_what_cannot_be_built_again_is_one_line(
    trained: dict[str, results.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problem(path: Path, **changes: Any) -> str:
        copied = tmp_path / "copy.h5"
        shutil.copy(path, copied)
        with h5py.File(copied, "r+") as file:
            for old, new in changes.items():
                config = str(file.attrs["config"])
                assert old in config
                file.attrs["config"] = config.replace(old, new)
        with pytest.raises(BadInput) as error:
            results.open(copied).network()
        text = str(error.value).removeprefix(f"{copied}: ")
        assert "\n" not in text
        return text

    own = trained["own"].path
    assert problem(finished(tmp_path / "old.h5")).startswith("has no information about its network's inputs")
    assert "last.weight is (10, 10), and was (10, 9): its class has changed" in problem(
        own, **{"width: 9": "width: 10"}
    )
    gone = problem(own, **{"tests.jobs.colours.Own": "gone.Own"})
    assert gone.startswith("cannot build the network of Own again: ")
    assert "gone" in gone
    missing = problem(own, **{"tests.jobs.colours.Own": "fedmpi.models.LogisticRegression", "width: 9": "{}"})
    assert missing.startswith("cannot build the network of Own again: ")
