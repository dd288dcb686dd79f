"""GenFL: its stages one by one, each beside a plain computation, and alone out of an earlier run's file."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness, results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.genfl import GenFL, label_skew
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.federation.evaluation import weighted_mean_of
from fedmpi.models.generators.cvae import CVAE
from fedmpi.models.mlp import LogisticRegression
from fedmpi.training.clientwise import ClientWise
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder
from tests.jobs.words import Bag, Words
from tests.support.digits import DIGITS, EACH, SHAPE, Few
from tests.support.experiments import CPU, SEED, network, normalised, order, plain_training, run, state, tensors

CODER = CVAE(noise=2, hidden=(12, 8))
LOCAL = LocalTraining(epochs=1, batch_size=8, lr=0.05)
STAGES: dict[str, Any] = {"generator_rounds": 2, "synthetic": 300, "pretrain_epochs": 2, "cas_epochs": 1}
FEW: dict[str, Any] = {"dataset": Few(2 * EACH), "partition": InOrder(), "clients": 2, "local": LOCAL}


def genfl(**options: Any) -> GenFL:
    return GenFL(CODER, **{**STAGES, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> results.Run:
    """A run of all stages, with two clients of thirty digits each."""
    return run(tmp_path_factory.mktemp("genfl") / "whole.h5", genfl(), **FEW, rounds=2)


def labels_of(clients: range) -> list[NDArray[np.int64]]:
    return [np.arange(EACH * client, EACH * (client + 1)) for client in clients]


# The stages


def test_the_generators_federation(whole: results.Run) -> None:
    """Oracle: FedAvg in plain PyTorch, a new torch.optim.Adam for each client and round, rounded images."""
    seed = randomness.key(SEED, "generator")
    torch.manual_seed(randomness.key(seed, "initial weights"))
    model = FlatModel(CODER.build(SHAPE, 10), CPU)
    x, y = (
        torch.from_numpy(DIGITS.train_x[: 2 * EACH] / np.float32(255)),
        torch.from_numpy(DIGITS.train_y[: 2 * EACH]),
    )
    losses = []
    for round in (1, 2):
        start, ends = model.weights.clone(), []
        for client, mine in enumerate(labels_of(range(2))):
            model.weights.copy_(start)
            optimizer = torch.optim.Adam(model.module.parameters(), 1e-3)
            key = int(randomness.keys(seed, "dropout", round, [client])[0] >> np.uint64(33))
            for epoch in (0, 1):  # of 30 samples in batches of 32
                chosen = mine[order(epoch, round, client, EACH, seed=seed)]
                optimizer.zero_grad()
                with ClientWise((key + epoch) & 0x7FFFFFFF):
                    loss = CODER.loss(Net(model), x[chosen].round(), y[chosen])
                loss.mean().backward()
                optimizer.step()
                losses.append(loss.mean().item())
            ends.append(model.weights.clone())
        model.weights.copy_(torch.stack(ends).mean(0))
    for name, tensor in whole.tensors("generator_weights").items():
        torch.testing.assert_close(torch.from_numpy(tensor), state(model.module)[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        whole.stage("generator")["train_loss"], np.mean(np.reshape(losses, (2, 4)), 1), rtol=1e-4
    )


def test_the_synthetic_images(whole: results.Run, tmp_path: Path) -> None:
    """Oracle: the decoder of the file, on noise drawn block by block; 0 and 255 only, each image with a 255."""
    certain = tmp_path / "certain.h5"
    shutil.copy(whole.path, certain)
    with h5py.File(certain, "r+") as file:
        file["networks/generator_weights/weights"][:] *= 20  # so that images have zeros
    made = run(tmp_path / "made.h5", genfl(earlier=certain, take="generator", synthetic=1100, cas_epochs=0), **FEW)
    images, labels = made.synthetic["images"], made.synthetic["labels"]
    coder = CODER.build(SHAPE, 10)
    coder.load_state_dict({name: torch.from_numpy(t) for name, t in made.tensors("generator_weights").items()})
    streams = [randomness.stream(randomness.key(SEED, "generator"), "generator's noise", client=k) for k in (0, 1)]
    noise = [stream.standard_normal((n, 2), np.float32) for stream, n in zip(streams, (1000, 100), strict=True)]
    with torch.no_grad():
        drawn = coder(torch.from_numpy(np.concatenate(noise)), torch.from_numpy(labels)).numpy()
    expected = np.where(drawn > drawn.max((1, 2, 3), keepdims=True) / 2, 255, 0)
    assert (images == expected).mean() > 0.999  # but for pixels on the edge
    assert set(np.unique(images).tolist()) == {0, 255}
    assert (images.max((1, 2, 3)) == 255).all()


def test_the_labels(tmp_path: Path) -> None:
    """Oracle: the binomial distribution, within 4 sigma of uniform; stratified ones are equally many."""
    counts = {}
    for stratified in (False, True):
        few = genfl(synthetic=5000, stratified=stratified, cas_epochs=0, pretrain_epochs=1)
        made = run(tmp_path / f"{stratified}.h5", few, **FEW)
        counts[stratified] = np.bincount(made.synthetic["labels"], minlength=10)
    assert (np.abs(counts[False] - 500) < 4 * np.sqrt(5000 * 0.1 * 0.9)).all()
    assert len(set(counts[False])) > 1
    assert (counts[True] == 500).all()


def lesson(number: int, seed: int, images: NDArray, labels: NDArray, epochs: int) -> nn.Module:
    """What the server trains, by torch.optim.Adam, from initial weights of this number."""
    module, x, y = (
        network(LogisticRegression(), SHAPE, 10, number=number),
        normalised(images, DATA),
        torch.tensor(labels),
    )
    optimizer, key = torch.optim.Adam(module.parameters(), 1e-3), randomness.key(SEED, "lesson", client=seed)
    for epoch in range(1, epochs + 1):
        bits = randomness.hashed_bits(randomness.keys(key, "order", epoch, [0]), len(y))[0]
        for chosen in np.split(bits.argsort(kind="stable"), range(32, len(y), 32)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return module


DATA = Few(2 * EACH)


def accuracy(module: nn.Module, images: NDArray, labels: NDArray) -> float:
    with torch.no_grad():
        return float((module(normalised(images, DATA)).argmax(1).numpy() == labels).mean())


def test_the_pre_training(whole: results.Run) -> None:
    """Oracle: plain PyTorch from the experiment's initial weights; and the first measurement is of what comes out."""
    module = lesson(0, 0, whole.synthetic["images"], whole.synthetic["labels"], 2)
    for name, tensor in tensors(whole, whole.model["pretrained"]).items():
        torch.testing.assert_close(tensor, state(module)[name], rtol=1e-4, atol=1e-5)
    assert whole.initial["test_accuracy"] == pytest.approx(accuracy(module, DIGITS.test_x, DIGITS.test_y), abs=0.01)


def test_the_score_of_real_images(whole: results.Run, tmp_path: Path) -> None:
    """Oracle: of a generator that gives the training images, it is the accuracy of ordinary training on these."""
    real = tmp_path / "real.h5"
    shutil.copy(whole.path, real)
    x, y = DIGITS.train_x[: 2 * EACH], DIGITS.train_y[: 2 * EACH]
    with h5py.File(real, "r+") as file:
        del file["synthetic"]
        file["synthetic/images"], file["synthetic/labels"] = x, y
    scored = run(tmp_path / "scored.h5", genfl(earlier=real, cas_epochs=25, pretrain=False), **FEW)
    module = lesson(1, 0, x, y, 25)
    both = np.concatenate([x, DIGITS.test_x]), np.concatenate([y, DIGITS.test_y])
    assert scored.rounds["cas"][0] == pytest.approx(accuracy(module, *both), abs=0.005)
    assert scored.rounds["cas_test"][0] == pytest.approx(accuracy(module, DIGITS.test_x, DIGITS.test_y), abs=0.005)
    assert scored.rounds["cas"][0] > 0.3


# Each stage alone


def test_the_control_is_fedavg(tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, where nothing is pre-trained or scored; and no generator is trained."""
    control = run(tmp_path / "control.h5", GenFL(pretrain=False, cas_epochs=0), **FEW)
    plain = run(tmp_path / "plain.h5", FedAvg(), **FEW)
    assert control.weights_sha256 == plain.weights_sha256
    assert not control.stage("generator")
    assert not control.synthetic


@pytest.mark.parametrize("take", ["generator", "synthetic", "pretrained"])
def test_a_stage_alone(whole: results.Run, take: Any, tmp_path: Path) -> None:
    """Oracle: the run of all stages, bit for bit, with what was made in the stages that are left out."""
    alone = run(tmp_path / "alone.h5", genfl(earlier=whole.path, take=take), **FEW, rounds=2)
    assert alone.weights_sha256 == whole.weights_sha256
    np.testing.assert_array_equal(alone.rounds["cas"], whole.rounds["cas"])
    np.testing.assert_array_equal(alone.synthetic["images"], whole.synthetic["images"])
    assert not alone.stage("generator")


def test_other_images_for_the_same_clients(whole: results.Run, tmp_path: Path) -> None:
    """Pre-training with what another partition's clients have taught a generator: the rest is this run's own."""
    other = run(
        tmp_path / "other.h5", genfl(earlier=whole.path, cas_epochs=0), **{**FEW, "partition": Dirichlet(0.1)}
    )
    np.testing.assert_array_equal(other.model["pretrained"], whole.model["pretrained"])
    assert other.partition["samples"].tolist() != whole.partition["samples"].tolist()
    assert other.weights_sha256 != whole.weights_sha256


class Failing(CVAE):
    """A generator that cannot be trained."""

    def loss(self, net: Net, x: Tensor, labels: Tensor) -> Tensor:
        raise ZeroDivisionError("on purpose")


def test_a_failure_names_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        run(tmp_path / "failed.h5", GenFL(Failing(2, (4,))), **FEW)
    assert "failed on rank 0 of 1: generator round 1, client 0, training\n" in capsys.readouterr().err
    assert results.open(tmp_path / "failed.h5").status == "failed"


def test_the_file_says_what_was_made(whole: results.Run) -> None:
    assert whole.stage("generator")["round"].tolist() == [1, 2]
    assert set(np.diff(whole.rounds["cas"])) == {0}
    sent = 4 * sum(tensor.size for tensor in whole.tensors("generator_weights").values())
    assert whole.stage("generator")["bytes_up"].tolist() == [2 * sent] * 2
    with h5py.File(whole.path) as file:
        assert file["synthetic/images"].compression == "gzip"
    settings = parse(["--algorithm", "GenFL", "--algorithm.generator", "CVAE", "--algorithm.generator.noise", "4"])[0]
    assert isinstance(settings.algorithm, GenFL)
    assert settings.algorithm.generator.noise == 4


# The metric


def test_the_weighted_mean_of(whole: results.Run) -> None:
    """Oracles: 90 samples at 1 and 10 at 0 are 0.9; the clients' accuracies in the file, by hand."""
    assert weighted_mean_of(np.array([1.0, 0.0, np.nan]), np.array([90, 10, 5])) == pytest.approx(0.9)
    assert np.isnan(weighted_mean_of(np.array([np.nan]), np.array([5])))
    uneven = whole.evaluation["client_accuracy"][-1]
    samples = whole.partition["samples"]
    assert whole.rounds["weighted_client_accuracy"][-1] == pytest.approx((uneven * samples).sum() / samples.sum())


@pytest.mark.parametrize("vectorize", ["off", 2])
def test_the_authors_slices(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: plain training on nine tenths of each client, in two rounds others; tests on nine tenths as well."""
    algorithm = GenFL(pretrain=False, cas_epochs=0, paper_compat=True)
    local = LocalTraining(epochs=1, batch_size=8, lr=0.05, vectorize=vectorize)
    made = run(tmp_path / "made.h5", algorithm, **{**FEW, "local": local}, rounds=2)
    x, y = normalised(DIGITS.train_x, DATA), torch.from_numpy(DIGITS.train_y)
    module, trained_on, leaky = network(LogisticRegression(), SHAPE, 10), [], []
    for round in (1, 2):
        ends, tests = [], []
        for client, mine in enumerate(labels_of(range(2))):
            shuffled = randomness.stream(SEED, "slices", round, client).permutation(mine)
            one, trained = copy.deepcopy(module), shuffled[:27]
            plain_training(one, x[trained], y[trained], local, client, round)
            ends.append(state(one))
            trained_on.append(set(trained))
            tests.append(shuffled[3:])
            assert len(set(trained) & set(tests[-1])) == 24
        module.load_state_dict({name: (ends[0][name] + ends[1][name]) / 2 for name in ends[0]})
        with torch.no_grad():
            hits = [(module(x[test]).argmax(1) == y[test]).float().mean().item() for test in tests]
        leaky.append(np.mean(hits))
    assert trained_on[0] != trained_on[2]
    for name, tensor in tensors(made).items():
        torch.testing.assert_close(tensor, state(module)[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.rounds["leaky_client_accuracy"], leaky, atol=0.02)


def test_the_authors_score(whole: results.Run, tmp_path: Path) -> None:
    """Oracle: the mean over epochs; evaluation mode changes nothing of this model."""
    compat = genfl(earlier=whole.path, cas_epochs=3, pretrain=False, paper_compat=True)
    made = run(tmp_path / "made.h5", compat, **FEW)
    both = (
        np.concatenate([DIGITS.train_x[: 2 * EACH], DIGITS.test_x]),
        np.concatenate([DIGITS.train_y[: 2 * EACH], DIGITS.test_y]),
    )
    images, labels = whole.synthetic["images"], whole.synthetic["labels"]
    each = [accuracy(lesson(1, 0, images, labels, epochs), *both) for epochs in (1, 2, 3)]
    assert made.rounds["cas_compat"][0] == pytest.approx(np.mean(each), abs=0.005)
    assert "cas" not in made.rounds


# Extreme skew


def test_the_skew() -> None:
    """Oracles: alike 0; of ten clients with a class each 0.9; one client with all of another half, by hand."""
    assert label_skew(np.full((4, 10), 7)) == 0
    assert label_skew(np.eye(10, dtype=np.int64) * 5) == pytest.approx(0.9)
    assert label_skew(np.array([[30, 0], [0, 10]])) == pytest.approx(0.75 * 0.25 + 0.25 * 0.75)
    assert label_skew(np.array([[3, 3], [0, 0]])) == 0


@pytest.mark.parametrize(("threshold", "stops"), [(0.05, True), (1.0, False)])
def test_no_training_at_extreme_skew(
    whole: results.Run, threshold: float, stops: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the pre-trained model, and nothing sent; below the threshold the run as it was."""
    skewed = genfl(earlier=whole.path, take="pretrained", cas_epochs=0, stop_at_skew=threshold)
    made = run(tmp_path / "made.h5", skewed, **FEW, rounds=2)
    if stops:
        np.testing.assert_array_equal(made.weights, whole.model["pretrained"])
        assert made.rounds["bytes_up"].sum() == made.rounds["bytes_down"].sum() == 0
        assert np.isnan(made.rounds["train_loss"]).all()
        assert {name: set(made.clients[name].tolist()) for name in ("rank", "steps")} == {"rank": {-1}, "steps": {-1}}
        assert np.isnan(made.clients["loss"]).all()
        assert "the clients do not train: " in capsys.readouterr().out
    else:
        assert made.weights_sha256 == whole.weights_sha256


def test_starved_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: forty samples each, as asked for; said in a line, with the number that the partition counts."""
    partition = Dirichlet(0.01, min_samples=40)
    made = run(tmp_path / "made.h5", **{**FEW, "dataset": Few(600), "partition": partition, "clients": 10})
    assert made.partition["samples"].min() == 40
    assert partition.moved > 0
    assert f"partition: {partition.moved:,} samples moved" in capsys.readouterr().out
    run(tmp_path / "even.h5", **{**FEW, "dataset": Few(600), "partition": Dirichlet(100), "clients": 2})
    assert "moved" not in capsys.readouterr().out


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--algorithm.generator_rounds 0", "--algorithm.generator_rounds = 0: must be at least 1"),
        ("--algorithm.cas_epochs -1", "--algorithm.cas_epochs = -1: must be at least 0"),
        ("--algorithm.take generator", "--algorithm.take = generator: must be synthetic without earlier"),
        ("--algorithm.synthetic 1", "--algorithm.synthetic = 1: must be at least 2"),
        ("--algorithm.stop_at_skew 1.5", "--algorithm.stop_at_skew = 1.5: must be above 0 and at most 1"),
        ("--algorithm.pretrain false --algorithm.stop_at_skew 0.5", "--algorithm.stop_at_skew = 0.5: must be null"),
        ("--algorithm.generator Nothing", "--algorithm.generator = Nothing: no such name"),
        ("--sampler PowerOfChoice", "--sampler = PowerOfChoice: GenFL also trains a network"),
    ],
)
def test_options(options: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(["--algorithm", "GenFL", *options.split()])
    assert str(caught.value).startswith(message)


def test_what_does_not_fit(whole: results.Run, tmp_path: Path) -> None:
    def refused(options: dict[str, Any], **settings: Any) -> str:
        with pytest.raises(BadInput) as caught:
            run(tmp_path / "never.h5", GenFL(**options), **{**FEW, **settings})
        assert not (tmp_path / "never.h5").exists()
        return str(caught.value).replace(str(whole.path), "FILE")

    empty = run(tmp_path / "empty.h5", **FEW).path
    assert "= CVAE: needs a data set of images" in refused({}, dataset=Words(), model=Bag())
    assert "No such file" in refused({"earlier": tmp_path / "nowhere.h5"})
    assert refused({"earlier": empty}).endswith("must be a results file with synthetic images")
    assert refused({"earlier": empty, "take": "pretrained"}).endswith("a results file with a pre-trained model")
    assert refused({"earlier": whole.path, "take": "generator"}) == (
        "--algorithm.earlier = FILE: must be a results file with a generator like this run's"
    )
