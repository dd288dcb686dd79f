"""Runs with every task: what is reported is what anyone measures with the trained network on the real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn import metrics

from fedmpi.algorithms import (
    APFL,
    IFCA,
    MOON,
    SCAFFOLD,
    Algorithm,
    Ditto,
    FedALA,
    FedBABU,
    FedCluster,
    FedDyn,
    FedNova,
    FedPer,
    FedRep,
    LGFedAvg,
    LocalOnly,
)
from fedmpi.data import IID, Dataset, Digits, Dirichlet, Users, make_split
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import MLP, Model
from fedmpi.models.mlp import LogisticRegression
from fedmpi.results.check import problems
from fedmpi.tasks import Task
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import SEED, Alone, normalised, plain_training, read, run, tensors
from tests.support.mpi import fedmpi
from tests.support.task_data import Attributes, Bigrams, Characters, Diabetes, Masks, PerPixel, Uniform

CLIENTS = 6
#: Task -> data, network, partition
TASKS: dict[str, tuple[Dataset, Model, Any]] = {
    "regression": (Diabetes(), MLP(hidden=(16,)), Dirichlet(1.0)),
    "multilabel": (Attributes(), LogisticRegression(), Dirichlet(1.0)),
    "segmentation": (Masks(), PerPixel(), Dirichlet(1.0)),
    "language_model": (Characters(), Bigrams(), Users()),
}


def score(task: Task, output: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Some metrics by scikit-learn and NumPy."""
    match type(task).__name__:
        case "Regression":
            return {"rmse": float(np.sqrt(metrics.mean_squared_error(y, output))), "r2": metrics.r2_score(y, output)}
        case "MultiLabel":
            return {"map": float(metrics.average_precision_score(y, output, average="macro"))}
        case "Segmentation":
            counts = y != 255
            true, found = y[counts], output.argmax(1)[counts]
            return {
                "mean_iou": float(metrics.jaccard_score(true, found, average="macro")),
                "pixel_accuracy": float((true == found).mean()),
            }
        case _:
            logs = output - np.log(np.exp(output).sum(-1, keepdims=True))
            own = np.take_along_axis(logs, np.maximum(y, 0)[..., None], -1)[..., 0]
            return {"perplexity": float(np.exp(-own[y >= 0].mean()))}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_reported_is_what_anyone_measures(tmp_path: Path, name: str) -> None:
    data, model, partition = TASKS[name]
    arrays, task = read(data), data.task
    few: dict[str, Any] = {"dataset": data, "model": model, "partition": partition, "clients": CLIENTS}
    few |= {"validation": 0.25, "rounds": 2, "evaluate_every": 2}
    made = run(tmp_path / "run.h5", **few)
    beside = run(tmp_path / "beside.h5", **few, local=LocalTraining(epochs=1, vectorize=3))
    np.testing.assert_allclose(beside.weights, made.weights, atol=2e-6)
    np.testing.assert_allclose(beside.rounds["train_loss"], made.rounds["train_loss"], rtol=1e-5)
    assert not problems(made.path)
    assert made.attributes["task"] == type(task).__name__
    assert made.attributes["main_metric"] == task.main

    network = made.network()
    x = torch.from_numpy(np.ascontiguousarray(arrays.test_x))
    with torch.inference_mode():
        output = network(x).numpy()
    for metric, value in score(task, output, arrays.test_y).items():
        assert made.rounds[f"test_{metric}"][-1] == pytest.approx(value, rel=1e-4, abs=1e-6), metric

    strata = task.strata(arrays.train_y, arrays.test_y, data) or (
        np.zeros(len(arrays.train_y), np.int64),
        np.zeros(len(arrays.test_y), np.int64),
        1,
    )
    train_y, test_y, count = strata
    users = arrays.train_users, arrays.test_users
    split = make_split(partition, train_y, test_y, count, CLIENTS, SEED, *users, validation=0.25)
    apart = np.concatenate(split.validation)
    with torch.inference_mode():
        output = network(torch.from_numpy(np.ascontiguousarray(arrays.train_x[apart]))).numpy()
    for metric, value in score(task, output, arrays.train_y[apart]).items():
        assert made.rounds[f"validation_{metric}"][-1] == pytest.approx(value, rel=1e-4, abs=1e-6), metric
    own = split.test[2]
    with torch.inference_mode():
        output = network(x[own.copy()]).numpy()  # PyTorch warns of arrays that are read-only
    main = score(task, output, arrays.test_y[own])[task.main]
    assert made.evaluation[f"client_{task.main}"][-1, 2] == pytest.approx(main, rel=1e-4)
    np.testing.assert_array_equal(made.partition["validation"], list(map(len, split.validation)))
    np.testing.assert_array_equal(made.partition["samples"], list(map(len, split.train)))

    better = made.rounds[f"test_{task.main}"][-1] - made.initial[f"test_{task.main}"]
    assert better > 0 if task.metrics[task.main].better == "higher" else better < 0
    columns = {name for name in made.rounds if name.startswith(("test_", "validation_"))}
    assert columns == {f"{kind}_{metric}" for kind in ("test", "validation") for metric in task.usual}
    assert all(np.isnan(made.rounds[column]).tolist() == [True, False] for column in columns)


def test_a_uniform_model_is_as_perplexed_as_the_vocabulary_is_large(tmp_path: Path) -> None:
    made = run(tmp_path / "run.h5", dataset=Characters(), model=Uniform(), partition=IID(), clients=3)
    assert made.initial["test_perplexity"] == pytest.approx(Characters.vocabulary, rel=1e-5)


def test_validation_samples_are_not_trained_on(tmp_path: Path) -> None:
    """Oracle: a client with what the split leaves it, in PyTorch; and the loss on what it was not given."""
    arrays, local = read(Digits()), LocalTraining(epochs=1, batch_size=2000, lr=0.5)
    made = run(tmp_path / "run.h5", partition=IID(), clients=1, validation=0.3, local=local, metrics="macro_f1")
    split = make_split(IID(), arrays.train_y, arrays.test_y, 10, 1, SEED, validation=0.3)
    (trained,), (apart,) = split.train, split.validation
    assert len(apart) == round(0.3 * len(arrays.train_y))
    network = torch.nn.Linear(64, 10)
    start = tensors(run(tmp_path / "start.h5", clients=1, local=LocalTraining(epochs=1, lr=1e-30)))
    weight, bias = start.values()
    network.load_state_dict({"weight": weight, "bias": bias})
    x, y = normalised(arrays.train_x, Digits()).flatten(1), torch.from_numpy(arrays.train_y)
    plain_training(network, x[trained], y[trained], local)
    np.testing.assert_allclose(made.weights[: 64 * 10], network.weight.detach().numpy().ravel(), atol=1e-5)
    logits = network(x[apart])
    loss = torch.nn.functional.cross_entropy(logits, y[apart]).item()
    assert made.rounds["validation_loss"][-1] == pytest.approx(loss, rel=1e-5)
    predicted = logits.argmax(1).numpy()
    assert made.rounds["validation_macro_f1"][-1] == pytest.approx(
        metrics.f1_score(arrays.train_y[apart], predicted, average="macro")
    )


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    """A learning rate that is too large: the best round is not the last one. /best has that round's weights."""
    settings: dict[str, Any] = {"dataset": Diabetes(), "model": MLP(hidden=(16,)), "validation": 0.2, "clients": 5}
    local = LocalTraining(epochs=1, lr=0.08)
    made = run(tmp_path / "run.h5", rounds=8, local=local, **settings)
    column = made.rounds["validation_rmse"]
    best = int(np.nanargmin(column)) + 1
    assert best < 8
    again = run(tmp_path / "again.h5", rounds=best, local=local, **settings)
    with h5py.File(made.path) as file:
        assert file["best"].attrs["round"] == best
        assert file["best"].attrs["column"] == "validation_rmse"
        np.testing.assert_array_equal(file["best/weights"][()], again.weights)


def test_fine_tuning_of_the_global_model(tmp_path: Path) -> None:
    """Oracle: every client by itself in PyTorch, from the global model, two epochs; accuracy on its own samples."""
    arrays, partition = read(Digits()), Dirichlet(0.3)
    settings: dict[str, Any] = {"partition": partition, "clients": 5, "local": LocalTraining(epochs=1, lr=0.05)}
    made = run(tmp_path / "run.h5", evaluate_fine_tuned=2, **settings)
    beside = run(
        tmp_path / "beside.h5",
        evaluate_fine_tuned=2,
        **settings | {"local": LocalTraining(epochs=1, lr=0.05, vectorize=4)},
    )
    split = make_split(partition, arrays.train_y, arrays.test_y, 10, 5, SEED)
    x, test = (normalised(part, Digits()).flatten(1) for part in (arrays.train_x, arrays.test_x))
    y, correct = torch.from_numpy(arrays.train_y), np.zeros(5)
    weight, bias = tensors(made).values()
    for client, shard in enumerate(split.train):
        network = torch.nn.Linear(64, 10)
        network.load_state_dict({"weight": weight, "bias": bias})
        tuned = LocalTraining(epochs=2, lr=0.05)
        plain_training(network, x[shard], y[shard], tuned, client, phase="fine-tuning ")
        own = split.test[client]
        correct[client] = (network(test[own]).argmax(1).numpy() == arrays.test_y[own]).sum()
    sizes = np.array(list(map(len, split.test)))
    np.testing.assert_allclose(made.evaluation["fine_tuned_accuracy"][-1], correct / sizes, atol=1.5 / sizes.min())
    assert made.rounds["fine_tuned_accuracy"][-1] == pytest.approx(correct.sum() / sizes.sum(), abs=0.01)
    assert made.rounds["fine_tuned_accuracy"][-1] > made.rounds["test_accuracy"][-1]
    assert beside.rounds["fine_tuned_accuracy"][-1] == pytest.approx(made.rounds["fine_tuned_accuracy"][-1], abs=0.01)
    plain = run(tmp_path / "plain.h5", **settings)
    assert plain.weights_sha256 == made.weights_sha256


def test_ragged_texts_in_one_batch_count_by_token(tmp_path: Path) -> None:
    """Full batches of one client: one step is the gradient of the mean over all its tokens, by PyTorch."""
    data = Characters()
    arrays = read(data)
    local = LocalTraining(epochs=1, batch_size=10**6, lr=1.0)
    made = run(tmp_path / "run.h5", dataset=data, model=Bigrams(), partition=IID(), clients=1, local=local)
    nothing = LocalTraining(epochs=1, lr=1e-30)
    start = run(tmp_path / "start.h5", dataset=data, model=Bigrams(), partition=IID(), clients=1, local=nothing)
    network = Bigrams()
    network.vocabulary = data.vocabulary
    module = network.build((arrays.train_x.shape[1],), data.vocabulary)
    module.load_state_dict(tensors(start))
    x, y = torch.from_numpy(arrays.train_x), torch.from_numpy(arrays.train_y)
    loss = torch.nn.functional.cross_entropy(module(x).flatten(0, 1), y.flatten(), ignore_index=-1)
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad)
    for name, tensor in tensors(made).items():
        torch.testing.assert_close(tensor, module.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert made.rounds["train_loss"][0] == pytest.approx(loss.item(), rel=1e-5)


DATA = "tests.support.task_data"
REFUSED = {
    "--dataset Digits --task Regression": "train_y is int64 of shape (1442,): Regression needs float32",
    f"--dataset {DATA}.Diabetes --task Classification": "train_y needs `classes` of the data set",
    f"--dataset {DATA}.Diabetes --algorithm FedFTG": "needs samples with classes, which Regression does not have",
    f"--dataset {DATA}.Attributes --algorithm FedDF": "needs samples with classes, which MultiLabel does not have",
    f"--dataset {DATA}.Characters": "looks at labels, which LanguageModel does not have: use Users, IID or LogNormal",
    f"--dataset {DATA}.Masks --partition Permuted": "but not of the masks of Segmentation",
    f"--dataset {DATA}.Masks --local.augmentation crop_flip": "moves the pixels of images",
    f"--dataset {DATA}.CutMasks": "images are (8, 8), but masks (7, 8): both must be the same",
    f"--dataset {DATA}.Masks": "must be floating-point [2, 11, 8, 8]",
    f"--dataset {DATA}.Diabetes --model MLP --attack LabelFlip": "changes classes, which Regression does not have",
    f"--dataset {DATA}.Diabetes --model MLP --partition SwappedLabels": "swaps classes, which Regression",
    "--validation 1": "--validation = 1.0: must be above 0 and below 1",
    "--validation 0.9 --clients 60 --partition.alpha 0.05": "leaves client",
    "--metrics f2": "--metrics = f2: must be a metric of Classification (accuracy, loss, macro_f1",
    "--metrics no_module.f": "--metrics = no_module.f: cannot be imported",
    "--algorithm LocalOnly --evaluate_fine_tuned 1": "LocalOnly has no global model that clients could fine-tune",
    "--algorithm Centralized --evaluate_fine_tuned 1": "Centralized has no global model that clients could fine-tune",
}


def attempt(options: str) -> None:
    experiment, config = parse(options.split())
    experiment.run(Alone(), config)


def test_refused_in_one_line(tmp_path: Path) -> None:
    for number, (options, reason) in enumerate(REFUSED.items()):
        path = tmp_path / f"{number}.h5"
        with pytest.raises(BadInput) as refused:
            attempt(f"--clients 4 --rounds 1 --output {path} {options}")
        assert reason in str(refused.value), options
        assert len(str(refused.value).splitlines()) == 1
        assert not path.exists()


@pytest.mark.further
def test_refused_by_all_ranks_together(tmp_path: Path) -> None:
    for options in (
        "--dataset Digits --task Regression",
        f"--dataset {DATA}.Masks",
        "--validation 0.9 --clients 60 --partition.alpha 0.05",
    ):
        done = fedmpi(3, *options.split(), "--output", tmp_path / "run.h5")
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_methods_without_classes(tmp_path: Path) -> None:
    """Methods of every kind with a task that has no classes."""
    methods: list[Algorithm] = [SCAFFOLD(), FedDyn(), FedNova(), MOON(), Ditto(), FedPer(), FedRep(), LocalOnly()]
    methods += [IFCA(models=2), FedCluster(clusters=2), APFL(), FedALA(), FedBABU(), LGFedAvg()]
    for method in methods:
        made = run(tmp_path / f"{type(method).__name__}.h5", method, dataset=Diabetes(), model=MLP(hidden=(8,)))
        assert np.isfinite(made.rounds["test_rmse"]).all(), method
        assert not problems(made.path)
