"""IFCA: FedAvg with one model, indifferent to the models' order, and finding the groups that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from fedmpi import results
from fedmpi.algorithms import ifca
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.ifca import IFCA
from fedmpi.data import Digits, Dirichlet, Permuted, Split, make_split
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.federation.local import Local
from fedmpi.models import CifarCNN, LeNet, Model
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import Cohort, RoundRobin, Uniform
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.methods import Alike, Planted, Reordered
from tests.support.experiments import CPU, Cut, network, normalised, read, run, tensors

SHAPE, CLIENTS, PARAMETERS = (1, 8, 8), 12, 650
DIGITS = read(Digits())
TWO_GROUPS: dict[str, Any] = {
    "partition": Permuted(permutations=2),
    "clients": CLIENTS,
    "local": LocalTraining(epochs=2, lr=0.05),
}


def split_of(seed: int) -> Split:
    return make_split(Permuted(permutations=2), DIGITS.train_y, DIGITS.test_y, 10, CLIENTS, seed)


def groups_of(seed: int) -> NDArray[np.int64]:
    groups = split_of(seed).groups
    assert groups is not None
    assert np.bincount(groups).tolist() == [6, 6]
    return groups


def seen_by(split: Split, client: int, x: NDArray[np.uint8]) -> torch.Tensor:
    """Images as a client sees them, its pixels in its order."""
    order = split.pixels(client, 64)
    return normalised(x.reshape(-1, 64)[:, order].reshape(-1, *SHAPE), Digits())


def optimum(split: Split, client: int) -> NDArray[np.float32]:
    """[P], logistic regression trained by PyTorch on all digits as this client, and so its group, sees them."""
    module = network(LogisticRegression(), SHAPE, 10)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    x, y = seen_by(split, client, DIGITS.train_x), torch.from_numpy(DIGITS.train_y)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
    return FlatModel(module, CPU).weights[0].numpy()


@pytest.fixture(scope="module")
def optima(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.float32]]:
    """[3, 650] the optimum of group 1, that of group 0, and a model that is always wrong."""
    groups = groups_of(0)
    first, second = (optimum(split_of(0), int(np.flatnonzero(groups == group)[0])) for group in (1, 0))
    path = tmp_path_factory.mktemp("optima") / "optima.npy"
    models = np.stack([first, second, -5 * first])
    np.save(path, models)
    return path, models


def clusters(made: results.Run) -> NDArray[np.int64]:
    """[rounds, clients], with every client in every round."""
    return made.clients["cluster"].reshape(-1, CLIENTS).astype(np.int64)


# One model


@pytest.mark.parametrize(
    ("model", "local"),
    [
        (LeNet(), LocalTraining(epochs=2, momentum=0.9)),
        (CifarCNN(dropout=0.5), LocalTraining(epochs=1, lr=0.01, augmentation="flip")),
    ],
)
def test_one_model_is_fedavg(model: Model, local: LocalTraining, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit: measuring losses disturbs neither statistics, dropout nor augmentation."""
    settings: dict[str, Any] = {
        "model": model,
        "local": local,
        "sampler": Uniform(),
        "partition": Dirichlet(0.3),
        "clients": 8,
        "cohort": 3,
        "rounds": 2,
    }
    one, plain = run(tmp_path / "one.h5", IFCA(1), **settings), run(tmp_path / "plain.h5", FedAvg(), **settings)
    assert one.weights_sha256 == plain.weights_sha256
    np.testing.assert_array_equal(one.model["centers"], plain.weights[None])
    for column in ("train_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(one.rounds[column], plain.rounds[column])


def test_accuracies_of_one_model(tmp_path: Path) -> None:
    """Oracle: FedAvg's, once every client has been asked: matched by clients and globally are then the same."""
    settings: dict[str, Any] = {"sampler": RoundRobin(), "cohort": 2, "clients": 4, "rounds": 3}
    one, plain = run(tmp_path / "one.h5", IFCA(1), **settings), run(tmp_path / "plain.h5", **settings)
    assert one.rounds["cluster_size_0"].tolist() == [2, 4, 4]
    np.testing.assert_array_equal(one.rounds["test_accuracy"][1:], plain.rounds["test_accuracy"][1:])
    np.testing.assert_array_equal(one.rounds["test_loss"][1:], plain.rounds["test_loss"][1:])
    np.testing.assert_allclose(one.rounds["global_matched_accuracy"], plain.rounds["test_accuracy"], rtol=1e-12)
    unasked = np.isnan(one.evaluation["client_accuracy"]).sum(1)
    assert unasked.tolist() == [2, 0, 0]


# Several


def test_the_order_of_the_models_does_not_matter(tmp_path: Path) -> None:
    """Oracle: the same models in another order, bit for bit, and the clusters renamed likewise."""
    order = (2, 0, 1)
    some, others = (
        run(tmp_path / f"{name}.h5", Reordered(given), rounds=3, seed=0, **TWO_GROUPS)
        for name, given in (("some", (0, 1, 2)), ("others", order))
    )
    np.testing.assert_array_equal(others.model["centers"], some.model["centers"][list(order)])
    np.testing.assert_array_equal(np.array(order)[clusters(others)], clusters(some))
    assert len(np.unique(clusters(some))) > 1
    for column in ("test_loss", "test_accuracy", "global_matched_accuracy"):
        np.testing.assert_allclose(others.rounds[column], some.rounds[column], rtol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_are_found(seed: int, tmp_path: Path) -> None:
    """Oracle: the two groups that permute pixels differently: adjusted Rand index 1; FedAvg's accuracy by far."""
    from sklearn.metrics import adjusted_rand_score

    made = run(tmp_path / "ifca.h5", IFCA(2), rounds=4, seed=seed, **TWO_GROUPS)
    plain = run(tmp_path / "plain.h5", rounds=4, seed=seed, **TWO_GROUPS)
    for found in clusters(made)[1:]:
        assert adjusted_rand_score(groups_of(seed), found) == 1
    assert made.rounds["cluster_size_0"][1:].tolist() == made.rounds["cluster_size_1"][1:].tolist() == [6, 6, 6]
    ahead = made.rounds["test_accuracy"] - plain.rounds["test_accuracy"]
    assert ahead[1] > 0.08
    assert ahead.mean() > 0.02
    assert made.rounds["test_accuracy"][-1] > 0.9
    assert made.rounds["global_matched_accuracy"][-1] < 0.6, "on the other group's pixels, a model is lost"


def test_planted_optima_are_chosen(optima: tuple[Path, NDArray[np.float32]], tmp_path: Path) -> None:
    """Oracle: each group's own optimum in the first round; the model that nobody chose keeps its bits."""
    path, models = optima
    made = run(tmp_path / "run.h5", Planted(path), rounds=2, seed=0, **TWO_GROUPS)
    for found in clusters(made):
        np.testing.assert_array_equal(found, 1 - groups_of(0))
    np.testing.assert_array_equal(made.model["centers"][2], models[2])
    assert (made.model["centers"][:2] != models[:2]).mean() > 0.5
    assert made.rounds["cluster_size_2"].tolist() == [0, 0]


def test_choice_and_accuracies_are_those_of_the_written_models(
    optima: tuple[Path, NDArray[np.float32]], tmp_path: Path
) -> None:
    """Oracle: PyTorch: each client's training loss is least with its model; accuracies sample by sample."""
    made = run(tmp_path / "run.h5", Planted(optima[0]), rounds=2, seed=0, **TWO_GROUPS)
    split, choice = split_of(0), clusters(made)[-1]
    correct, on_all = 0, []
    networks = []
    for weights in made.model["centers"]:
        module = network(LogisticRegression(), SHAPE, 10)
        module.load_state_dict(tensors(made, weights))
        networks.append(module.eval())
    whole = np.empty((len(DIGITS.test_y), *SHAPE), dtype=np.float32)
    for client, shard in enumerate(split.test):
        whole[shard] = seen_by(split, client, DIGITS.test_x[shard]).numpy()
    with torch.inference_mode():
        for client, chosen in enumerate(choice):
            x, y = seen_by(split, client, DIGITS.train_x[split.train[client]]), DIGITS.train_y[split.train[client]]
            losses = [cross_entropy(module(x), torch.from_numpy(y)).item() for module in networks]
            assert np.argmin(losses) == chosen
            mine = split.test[client]
            correct += int(
                (networks[chosen](torch.from_numpy(whole[mine])).argmax(1).numpy() == DIGITS.test_y[mine]).sum()
            )
            hits = networks[chosen](torch.from_numpy(whole)).argmax(1).numpy() == DIGITS.test_y
            on_all.append(hits.mean())
    assert made.rounds["test_accuracy"][-1] == pytest.approx(correct / 355, abs=0.003)
    samples = made.partition["samples"]
    assert made.rounds["global_matched_accuracy"][-1] == pytest.approx(on_all @ samples / samples.sum(), abs=0.003)


def test_equal_models_never_part(tmp_path: Path) -> None:
    """Oracle: everyone takes the first of equal models, which becomes FedAvg's; the others keep their bits."""
    made = run(tmp_path / "run.h5", Alike(3), rounds=3)
    plain = run(tmp_path / "plain.h5", rounds=3)
    assert not made.clients["cluster"].any()
    np.testing.assert_array_equal(made.model["centers"][0], plain.weights)
    start = FlatModel(network(LogisticRegression(), SHAPE, 10), CPU).weights.numpy()
    np.testing.assert_array_equal(made.model["centers"][1:], start.repeat(2, 0))
    assert made.weights_sha256 == plain.weights_sha256, "the global model is the one that most clients chose"


def test_first_models_differ(tmp_path: Path) -> None:
    """Oracle: independent draws of the same initialisation, of which a model that nobody chose has kept the bits."""
    made = run(tmp_path / "run.h5", Reordered((0, 1, 2)), rounds=1)
    starts = [network(LogisticRegression(), SHAPE, 10, number=number) for number in range(3)]
    vectors = np.stack([FlatModel(module, CPU).weights[0].numpy() for module in starts])
    assert np.abs(np.corrcoef(vectors)[np.triu_indices(3, 1)]).max() < 0.2
    unchosen = [number for number in range(3) if made.rounds[f"cluster_size_{number}"][-1] == 0]
    assert unchosen
    for number in unchosen:
        np.testing.assert_array_equal(made.model["centers"][number], vectors[number])


class Zeros(Model):
    """Logistic regression that starts from zeros."""

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        network = LogisticRegression().build(shape, classes)
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
        return network


def test_first_models_that_are_equal(tmp_path: Path) -> None:
    """Oracle: the line. Models of a file whose last layer has another number of outputs differ there."""
    torch.save(network(LeNet(), SHAPE, 10).state_dict(), tmp_path / "ten.pt")
    torch.save(network(LeNet(), SHAPE, 7).state_dict(), tmp_path / "seven.pt")
    for model in (LeNet(weights=tmp_path / "ten.pt"), Zeros()):
        with pytest.raises(
            BadInput, match=r"^--model: IFCA needs one whose initial weights are drawn: its models 0 and"
        ):
            run(tmp_path / "run.h5", IFCA(2), model=model)
    assert run(tmp_path / "one.h5", IFCA(1), model=Zeros()).status == "finished"
    centers = run(tmp_path / "run.h5", IFCA(2), model=LeNet(weights=tmp_path / "seven.pt")).model["centers"]
    assert (centers[0] != centers[1]).any()


def test_bytes(tmp_path: Path) -> None:
    """Oracle: 650 parameters of 4 bytes; all 3 models down to, and one up from, each of 5 clients."""
    made = run(tmp_path / "run.h5", IFCA(3), sampler=Uniform(), clients=8, cohort=5, rounds=2)
    assert made.rounds["bytes_down"].tolist() == [3 * 5 * PARAMETERS * 4] * 2
    assert made.rounds["bytes_up"].tolist() == [5 * PARAMETERS * 4] * 2


def test_no_models() -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match="models = 0: must be at least 1"):
        IFCA(0)


# Balanced first models, and shared ones


def test_what_all_losses_have_in_common_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the same choices and bits where every loss is larger by 3."""
    plain = run(tmp_path / "plain.h5", IFCA(3), rounds=2, **TWO_GROUPS)
    losses = Local.losses
    monkeypatch.setattr(Local, "losses", lambda *arguments: losses(*arguments) + 3)
    made = run(tmp_path / "made.h5", IFCA(3), rounds=2, **TWO_GROUPS)
    np.testing.assert_array_equal(clusters(made), clusters(plain))
    np.testing.assert_array_equal(made.model["centers"], plain.model["centers"])


def test_losses_are_those_of_one_model_after_another(tmp_path: Path) -> None:
    """Oracle: each model by itself, bit for bit, and by PyTorch's evaluation; samples in several batches, or none."""

    class Looking(FedAvg):
        def round(self, fed: Federation, cohort: Cohort) -> None:
            models = torch.stack([fed.initial_weights(number) for number in range(3)])
            for block in fed.my_clients(cohort):
                found = fed.at_clients.losses(block, models)
                for number in range(3):
                    assert torch.equal(found[:, number], fed.at_clients.losses(block, models[[number]])[:, 0])
                everybody = fed.at_clients.losses_of_all(block.clients, models)
                np.testing.assert_array_equal(torch.tensor(everybody, dtype=torch.float32), found)
                seen.update(dict(zip(block.clients.tolist(), found.tolist(), strict=True)))

    seen: dict[int, list[float]] = {}
    run(tmp_path / "run.h5", Looking(), model=LeNet(), partition=Cut(600, 20), clients=2)
    for number in range(3):
        module = network(LeNet(), SHAPE, 10, number=number).eval()
        for client, mine in enumerate((slice(0, 600), slice(600, 620))):
            x, y = normalised(DIGITS.train_x[mine], Digits()), torch.from_numpy(DIGITS.train_y[mine])
            assert seen[client][number] == pytest.approx(cross_entropy(module(x), y).item(), rel=1e-4)


def test_first_models_are_drawn_again(tmp_path: Path) -> None:
    """Oracle: PyTorch: the first draw of which half of the clients choose either, or the most balanced of 50."""
    split, seed = split_of(1), 1

    def least(attempt: int) -> float:
        modules = [network(LogisticRegression(), SHAPE, 10, seed, 2 * attempt + m).eval() for m in range(2)]
        chosen = []
        with torch.inference_mode():
            for client in range(CLIENTS):
                mine = split.train[client]
                x, y = seen_by(split, client, DIGITS.train_x[mine]), torch.from_numpy(DIGITS.train_y[mine])
                chosen.append(np.argmin([cross_entropy(module(x), y).item() for module in modules]))
        return float(np.bincount(chosen, minlength=2).min() / CLIENTS)

    made = run(tmp_path / "made.h5", IFCA(2, balance=0.35), rounds=1, seed=seed, **TWO_GROUPS)
    draws = int(made.rounds["draws"][0])
    shares = [least(attempt) for attempt in range(draws)]
    assert draws > 1
    assert max(shares[:-1]) < 0.35 <= shares[-1]
    sizes = [made.rounds[f"cluster_size_{number}"][0] for number in (0, 1)]
    assert min(sizes) == shares[-1] * CLIENTS
    assert made.rounds["bytes_down"].tolist() == [2 * CLIENTS * PARAMETERS * 4]


def test_first_models_that_are_never_balanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand: three clients never choose two models equally often; the most balanced are taken."""
    monkeypatch.setattr(ifca, "DRAWS", 4)
    made = run(tmp_path / "made.h5", IFCA(2, balance=0.5), clients=3)
    assert made.rounds["draws"].tolist() == [4]


def test_shared_bodies(tmp_path: Path) -> None:
    """Oracle: FedAvg's body where nobody parts, heads that differ, and the bytes of M heads and one body."""
    settings: dict[str, Any] = {"model": LeNet(), "clients": 4, "rounds": 2, "partition": Dirichlet(0.3)}
    settings["local"] = LocalTraining(epochs=1, batch_size=50)
    one = run(tmp_path / "one.h5", IFCA(1, share_body=True), **settings)
    plain = run(tmp_path / "plain.h5", **settings)
    assert one.weights_sha256 == plain.weights_sha256
    assert one.rounds["bytes_down"].tolist() == plain.rounds["bytes_down"].tolist()
    some = run(tmp_path / "some.h5", IFCA(2, share_body=True), **settings)
    layout = FlatModel(network(LeNet(), SHAPE, 10), CPU).layout
    centers = layout.from_canonical(torch.from_numpy(some.model["centers"])).numpy()
    head = layout.segments["head"]
    np.testing.assert_array_equal(centers[0, head.stop :], centers[1, head.stop :])
    assert (centers[0, head] != centers[1, head]).all()
    assert some.rounds["bytes_down"].tolist() == [4 * 4 * (2 * head.stop + layout.size - head.stop)] * 2
    assert some.rounds["bytes_up"].tolist() == [4 * 4 * layout.size] * 2
