"""The backdoor attack: what malicious clients train on and send, and its success, beside NumPy and plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.calibrated import FedLC, FedRS
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddisco import FedDisco
from fedmpi.algorithms.fedrod import FedRoD
from fedmpi.algorithms.robust import Median
from fedmpi.data import IID, Arrays, Dataset, Digits, Partition, Permuted, Progress
from fedmpi.errors import BadInput
from fedmpi.models import LeNet, Model
from fedmpi.models.mlp import MLP, LogisticRegression
from fedmpi.policies.attacks import Attack, Backdoor, LabelFlip, NoAttack
from fedmpi.training.block import Block
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from fedmpi.typing import Cohort, Federation
from tests.support.digits import DIGITS, SHAPE, Few
from tests.support.experiments import SEED, Cut, Spy, network, normalised, run, tensors
from tests.support.task_data import Diabetes

#: Clients of unequal sizes, whose last batches are partial.
SIZES = (31, 47, 18, 53, 40)
TARGET = 7
SETTINGS: dict[str, Any] = {
    "dataset": Few(sum(SIZES)),
    "partition": Cut(*SIZES),
    "model": LeNet(),
    "clients": len(SIZES),
    "rounds": 2,
}


def malicious(attack: Attack, clients: int = len(SIZES)) -> list[int]:
    return np.flatnonzero(attack.malicious(clients, SEED)).tolist()


def stamped(x: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images [n, C, H, W] with a white square in the lower right corner."""
    marked = np.array(x)
    marked[:, :, x.shape[2] - size :, x.shape[3] - size :] = 255
    return marked


class Poisoned(Few):
    """Digits of which those are poisoned that the attack should poison, where clients have so many samples in order.

    Args:
        attack: the attack.
        sizes: number of samples of each client.
    """

    def __init__(self, attack: Backdoor, sizes: tuple[int, ...]) -> None:
        super().__init__(sum(sizes))
        self.attack = attack
        self.sizes = sizes

    def read(self, progress: Progress) -> Arrays:
        arrays = super().read(progress)
        x, y = np.array(arrays.train_x), arrays.train_y.copy()
        for client in malicious(self.attack, len(self.sizes)):
            first, count = sum(self.sizes[:client]), self.sizes[client]
            order = randomness.stream(SEED, "poisoned samples", client=client).permutation(count)
            chosen = first + order[: round(self.attack.poisoned * count)]
            assert 0 < len(chosen) < count
            x[chosen] = stamped(x[chosen], self.attack.size)
            y[chosen] = self.attack.target
        return Arrays(x, y, arrays.test_x, arrays.test_y)


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize(
    ("model", "partition", "augmentation"),
    [
        (LeNet(), Cut(*SIZES), "none"),
        (MLP(), Permuted(Cut(*SIZES)), "flip"),
        (MLP(), Cut(*SIZES), "crop_flip"),
    ],
)
def test_what_is_trained(
    model: Model, partition: Partition, augmentation: Any, vectorize: Any, tmp_path: Path
) -> None:
    """Oracle: a data set that NumPy has poisoned before a run without an attack: bit for bit.

    The square is part of the stored image, so the client's order of pixels and augmentation move it.
    """
    attack = Backdoor(0.4, poisoned=0.3, target=TARGET, size=2)
    local = LocalTraining(epochs=1, augmentation=augmentation, vectorize=vectorize)
    settings = {**SETTINGS, "model": model, "partition": partition, "local": local}
    made = run(tmp_path / "made.h5", attack=attack, **settings)
    oracle = run(tmp_path / "oracle.h5", **{**settings, "dataset": Poisoned(attack, SIZES)})
    plain = run(tmp_path / "plain.h5", **settings)
    assert made.weights_sha256 == oracle.weights_sha256 != plain.weights_sha256
    columns = ["train_loss"] + ["test_loss", "test_accuracy"] * (not partition.permutes_pixels)
    for column in columns:  # the labels decide who owns a test sample, and so how its pixels are ordered
        np.testing.assert_array_equal(made.rounds[column], oracle.rounds[column])
    np.testing.assert_array_equal(made.partition["label_counts"], plain.partition["label_counts"])
    assert "backdoor_success" not in plain.rounds


@pytest.mark.parametrize("attack", [Backdoor(0.0, target=TARGET), Backdoor(0.4, poisoned=0.0, target=TARGET)])
def test_nothing_poisoned(attack: Backdoor, tmp_path: Path) -> None:
    """Oracle: the run without an attack, bit for bit. The success is the base rate of that model, in PyTorch."""
    made, plain = run(tmp_path / "made.h5", attack=attack, **SETTINGS), run(tmp_path / "plain.h5", **SETTINGS)
    assert made.weights_sha256 == plain.weights_sha256
    np.testing.assert_array_equal(made.rounds["test_loss"], plain.rounds["test_loss"])
    assert made.rounds["backdoor_success"][-1] == pytest.approx(success(tensors(plain), attack))


def success(weights: dict[str, Tensor], attack: Backdoor) -> float:
    """Of a LeNet with these tensors, by PyTorch."""
    module = network(LeNet(), SHAPE, 10)
    module.load_state_dict(weights, strict=False)
    others = DIGITS.test_y != attack.target
    with torch.no_grad():
        output = module.eval()(normalised(stamped(DIGITS.test_x[others], attack.size), Digits()))
    return float((output.argmax(1) == attack.target).double().mean())


@pytest.mark.parametrize("more", [{}, {"validation": 0.2}])
def test_success(more: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: PyTorch; before the first round, too, and with a validation set, whose samples carry no trigger."""
    attack = Backdoor(0.4, target=TARGET, size=4)
    made = run(tmp_path / "made.h5", attack=attack, **SETTINGS | more)
    assert made.rounds["backdoor_success"][-1] == pytest.approx(success(tensors(made), attack))
    assert made.initial["backdoor_success"] == pytest.approx(success({}, attack))
    plain = run(tmp_path / "plain.h5", **SETTINGS | more)
    assert made.rounds.keys() - plain.rounds.keys() == {"backdoor_success"}


class ByHand(FedAvg):
    """Two logistic regressions made by hand: A chooses the target if the corner is white, B never does.

    The clients with an even number use A. They are evaluated one by one, or by model.
    """

    corner: Tensor
    shards: Sequence[NDArray[np.int64]]

    def __init__(self, way: str) -> None:
        self.way = way

    def setup(self, fed: Federation) -> None:
        pixels = np.zeros(SHAPE)
        pixels[:, -2:, -2:] = 1
        self.weights = torch.zeros(fed.layout.size)
        weight, bias = (entry.offset for entry in fed.layout.entries)
        row = weight + 64 * TARGET
        self.weights[row : row + 64] = torch.from_numpy(pixels).float().flatten()
        white = (1 - Digits.mean[0]) / Digits.std[0]
        self.weights[bias + TARGET] = -3.9 * white
        ByHand.shards = fed.context.split.test

    def round(self, fed: Federation, cohort: Cohort) -> None:
        pass

    def evaluate(self, fed: Federation) -> None:
        never = self.weights.clone()
        never[-10 + TARGET] = -1e6
        if self.way == "one":
            fed.report(fed.evaluate(self.weights))
        elif self.way == "matched":
            models = [fed.evaluate(self.weights), fed.evaluate(never)]
            fed.reports.report_matched(models, torch.arange(fed.clients) % 2)
        else:

            def own(block: Block, weights: Tensor) -> Tensor:
                return torch.stack([never if client % 2 else weights for client in block.clients.tolist()])

            fed.report_personal(fed.evaluate_clients(self.weights, own))


@pytest.mark.parametrize("way", ["one", "matched", "personal"])
@pytest.mark.parametrize("held_out", [0, 2])
@pytest.mark.parametrize("partition", [Cut(*SIZES), Permuted(Cut(*SIZES))])
def test_networks_made_by_hand(way: str, partition: Partition, held_out: int, tmp_path: Path) -> None:
    """Oracle: by counting: the success is 1, or the share of the samples whose client has the model that knows it.

    The samples of held-out clients do not count. Clients with permuted pixels see the square elsewhere, where the
    network by hand does not look.
    """
    attack = Backdoor(0.4, target=TARGET, size=2)
    settings = {**SETTINGS, "model": LogisticRegression(), "rounds": 1, "partition": partition}
    settings |= {"clients": len(SIZES) - held_out, "held_out": held_out, "held_out_epochs": 1}
    made = run(tmp_path / "made.h5", ByHand(way), attack=attack, **settings)
    others = [int((DIGITS.test_y[shard] != TARGET).sum()) for shard in ByHand.shards]
    expected = 1.0 if way == "one" else sum(others[::2]) / sum(others)
    found = made.rounds["backdoor_success"][0]
    if partition.permutes_pixels:
        assert found < 0.2
    else:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_scale(scale: float, vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: NumPy's mean of what clients should send; running statistics are not scaled."""
    spy, attack = Spy(monkeypatch), Backdoor(0.4, scale=scale)
    local = LocalTraining(epochs=1, lr=0.05, vectorize=vectorize)
    run(tmp_path / "made.h5", attack=attack, weighting="uniform", **{**SETTINGS, "local": local})
    parameters, bad = Layout.of(LeNet().build(SHAPE, 10)).parameters, malicious(attack)
    for round in (1, 2):
        start = spy.measured[round - 1][0].double().numpy()
        vectors = np.array([spy.trained[round][client] for client in range(len(SIZES))])
        vectors[bad, :parameters] = (start + scale * (vectors[bad] - start))[:, :parameters]
        np.testing.assert_allclose(spy.measured[round][0].numpy(), vectors.mean(0), rtol=1e-6, atol=1e-7)


def test_without_scale_nothing_is_rounded() -> None:
    """Oracle: a client whose change is not scaled sends its model as an honest one does."""
    assert not Backdoor(scale=1).changes_updates
    assert Backdoor(scale=2).changes_updates


class Flipped(Few):
    """Digits with flipped labels of the malicious clients."""

    def __init__(self, of: list[int]) -> None:
        super().__init__(sum(SIZES))
        self.of = of

    def read(self, progress: Progress) -> Arrays:
        arrays = super().read(progress)
        owner = np.repeat(np.arange(len(SIZES)), SIZES)
        labels = np.where(np.isin(owner, self.of), 9 - arrays.train_y, arrays.train_y)
        return Arrays(arrays.train_x, labels, arrays.test_x, arrays.test_y)


@pytest.mark.parametrize("algorithm", [FedLC(), FedRS(scale="frequency"), FedDisco(a=0.9), FedRoD()])
@pytest.mark.parametrize("attack", [LabelFlip(0.4), Backdoor(0.4, target=TARGET)])
def test_counts_are_of_poisoned_labels(algorithm: Algorithm, attack: Attack, tmp_path: Path) -> None:
    """Oracle: methods that use label counts, on a data set that NumPy has poisoned: bit for bit."""
    clean = {**SETTINGS, "model": MLP()}
    made = run(tmp_path / "made.h5", algorithm, attack=attack, **clean)
    other: Dataset = Poisoned(attack, SIZES) if isinstance(attack, Backdoor) else Flipped(malicious(attack))
    oracle = run(tmp_path / "oracle.h5", algorithm, **{**clean, "dataset": other})
    assert made.weights_sha256 == oracle.weights_sha256
    np.testing.assert_array_equal(made.rounds["train_loss"], oracle.rounds["train_loss"])


def test_backdoor_on_digits(tmp_path: Path) -> None:
    """Two of ten clients that replace the model change the mean, which stays accurate, but not the median."""
    settings: dict[str, Any] = {"model": MLP(), "partition": IID(), "clients": 10, "rounds": 6}
    settings |= {"weighting": "uniform", "local": LocalTraining(epochs=2, lr=0.05)}
    attack = Backdoor(0.2, scale=5.0)
    clean = run(tmp_path / "clean.h5", attack=NoAttack(), **settings)
    mean = run(tmp_path / "mean.h5", FedAvg(), attack=attack, **settings)
    median = run(tmp_path / "median.h5", Median(), attack=attack, **settings)
    for name, made in {"FedAvg": mean, "Median": median}.items():
        print(name, made.rounds["backdoor_success"][-1], made.rounds["test_accuracy"][-1])
    assert mean.rounds["backdoor_success"][-1] > 0.95
    assert mean.rounds["test_accuracy"][-1] > clean.rounds["test_accuracy"][-1] - 0.05
    assert median.rounds["backdoor_success"][-1] < 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attack": Backdoor(size=9)}, "--attack.size = 9: must be at most 8, the shorter side of the images"),
        ({"attack": Backdoor(target=10)}, "--attack.target = 10: must be below 10, the number of classes"),
        (
            {"attack": Backdoor(), "dataset": Diabetes(), "model": MLP()},
            "attack = Backdoor: changes classes, which Regression does not have",
        ),
    ],
)
def test_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        run(tmp_path / "made.h5", **settings)
    assert str(caught.value) == said
