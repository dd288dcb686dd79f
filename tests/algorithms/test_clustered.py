"""FeSEM, FLHC, FedGroup and CFL beside FedAvg, and the clusters that there are to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from sklearn.metrics import adjusted_rand_score

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.cfl import CFL
from fedmpi.algorithms.clustered import best_aligned, nearest
from fedmpi.algorithms.fedgroup import FedGroup, FedGrouProx
from fedmpi.algorithms.fesem import FeSEM
from fedmpi.algorithms.flhc import FLHC
from fedmpi.algorithms.ifca import IFCA
from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.data import Digits, Dirichlet, Partition, Rotated, SwappedLabels, make_split
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import LeNet
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import FixedList, RoundRobin
from fedmpi.policies.attacks import SignFlip
from fedmpi.policies.compression import TopK
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.methods import ColdStart, Later, Renamed, Watched
from tests.support.digits import Few
from tests.support.experiments import CPU, Cut, Spy, network, read, run

CLIENTS, PARAMETERS = 12, 650
DIGITS = read(Digits())
LOCAL = LocalTraining(epochs=2, lr=0.05)


def apart(partition: Partition, **settings: Any) -> dict[str, Any]:
    return {"partition": partition, "clients": CLIENTS, "local": LOCAL, "seed": 0, **settings}


def groups_of(partition: Partition) -> NDArray[np.int64]:
    groups = make_split(partition, DIGITS.train_y, DIGITS.test_y, 10, CLIENTS, 0).groups
    assert groups is not None
    return groups


def listed(folder: Path, *rounds: list[int]) -> FixedList:
    (folder / "rounds").write_text("\n".join(" ".join(map(str, clients)) for clients in rounds))
    return FixedList(folder / "rounds")


# One cluster


#: What a method with one cluster is: FedAvg, with what weighting, and what in the first round.
ONE: dict[str, tuple[Callable[[], Algorithm], str]] = {
    "flhc": (lambda: FLHC(1, warmup=1), "fedavg"),
    "threshold": (lambda: FLHC(3, threshold=np.inf, warmup=0), "fedavg"),
    "cfl": (lambda: CFL(warmup=9), "fedavg"),
    "fesem": (lambda: FeSEM(1), "uniform"),
    "edc": (lambda: FedGroup(1), "cold start"),
    "madc": (lambda: FedGrouProx(1, mu=0.0, measure="madc", intergroup=0.1), "cold start"),
}


@pytest.fixture(scope="module", params=["off", 3])
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How methods with one cluster are run, and what they are to be like; clients one by one or side by side."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "dataset": Few(130),
        "partition": Cut(30, 20, 40, 30, 10),
        "clients": 5,
        "rounds": 3,
        "local": LocalTraining(epochs=1, vectorize=request.param),
    }
    folder = tmp_path_factory.mktemp("one")
    return {
        "settings": settings,
        "fedavg": run(folder / "fedavg.h5", **settings),
        "uniform": run(folder / "uniform.h5", weighting="uniform", **settings),
        "cold start": run(folder / "cold.h5", ColdStart(), **settings),
    }


@pytest.mark.parametrize("method", ONE)
def test_one_cluster_is_fedavg(method: str, one: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, from the state after the method's own first training; with BatchNorm."""
    make, oracle = ONE[method]
    made, plain = run(tmp_path / "made.h5", make(), **one["settings"]), one[oracle]
    assert made.weights_sha256 == plain.weights_sha256
    np.testing.assert_array_equal(made.model["centers"], plain.weights[None])
    for column in ("train_loss", "test_loss", "test_accuracy", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    np.testing.assert_allclose(made.rounds["global_matched_accuracy"], plain.rounds["test_accuracy"], rtol=1e-12)
    assert made.initial == plain.initial
    assert made.rounds["cluster_size_0"][-1] == 5


# The clusters that there are

FINDERS: dict[str, Callable[[], Algorithm]] = {
    "fesem": lambda: FeSEM(2),
    "fesem_head": lambda: FeSEM(2, part="head"),
    "ifca": lambda: IFCA(2, balance=0.35),
    "ifca_shared": lambda: IFCA(2, balance=0.35, share_body=True),
    "flhc": lambda: FLHC(2, warmup=1),
    "flhc_l1": lambda: FLHC(2, warmup=0, metric="l1", linkage="average"),
    "flhc_cosine": lambda: FLHC(2, warmup=0, metric="cosine", linkage="complete"),
    "edc": lambda: FedGroup(2),
    "madc": lambda: FedGroup(2, measure="madc", intergroup=0.01),
    "prox": lambda: FedGrouProx(2),
    "cfl": lambda: CFL(10.0, 0.0, warmup=1, min_size=6),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, results.Run]:
    """FedAvg with clients that disagree, by the partition."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        type(partition).__name__: run(folder / f"{type(partition).__name__}.h5", rounds=3, **apart(partition))
        for partition in (Rotated(angles=(0, 180)), SwappedLabels())
    }


def test_random_clusters_are_equally_large(tmp_path: Path) -> None:
    """Oracle: a half of the clients each in the first round, whatever their groups, which need not be found."""
    settings = apart(SwappedLabels(), rounds=1)
    made = run(tmp_path / "made.h5", FeSEM(2, start="random"), **settings)
    assert [made.rounds[f"cluster_size_{m}"][0] for m in (0, 1)] == [6, 6]
    assert made.rounds["adjusted_rand_index"][0] < 1


@pytest.mark.parametrize("finder", FINDERS)
def test_groups_are_found(finder: str, plain: dict[str, results.Run], tmp_path: Path) -> None:
    """Oracle: the groups of the partition, by scikit-learn's index; and FedAvg's accuracy by far."""
    turned = len(finder) % 2 == 0 and "shared" not in finder
    partition = Rotated(angles=(0, 180)) if turned else SwappedLabels()
    settings = apart(partition, **({"model": LeNet(), "rounds": 2} if "shared" in finder else {"rounds": 3}))
    made = run(tmp_path / "made.h5", FINDERS[finder](), **settings)
    groups, found = groups_of(partition), made.clusters["cluster"]
    assert adjusted_rand_score(groups, found[-1]) == 1
    oracle = [adjusted_rand_score(groups, clusters) for clusters in found]
    columns = [made.rounds[name][-len(found) :] for name in ("adjusted_rand_index", "cluster_size_0")]
    np.testing.assert_allclose(columns[0], oracle, atol=1e-12)
    assert made.clusters["round"].tolist() == made.rounds["round"][-len(found) :].tolist()
    assert columns[1].tolist() == [np.sum(clusters == 0) for clusters in found]
    last = made.clients["round"] == made.rounds["round"][-1]
    np.testing.assert_array_equal(made.clients["cluster"][last], found[-1])
    if "shared" not in finder:
        ahead = made.rounds["test_accuracy"][-1] - plain[type(partition).__name__].rounds["test_accuracy"][-1]
        assert ahead > 0.05
        assert made.rounds["test_accuracy"][-1] > made.rounds["global_matched_accuracy"][-1] + 0.1


def test_names_of_clusters_do_not_matter(tmp_path: Path) -> None:
    """Oracle: the same clusters under other names: models, sizes and accuracies."""
    settings = apart(Rotated(angles=(0, 90, 180)), rounds=2)
    some, others = (run(tmp_path / f"{cls.__name__}.h5", cls(3, warmup=0), **settings) for cls in (FLHC, Renamed))
    order = np.array([2, 0, 1])
    np.testing.assert_array_equal(others.model["centers"][order], some.model["centers"])
    np.testing.assert_array_equal(others.clusters["cluster"], order[some.clusters["cluster"]])
    for number in range(3):
        np.testing.assert_array_equal(
            others.rounds[f"cluster_size_{order[number]}"], some.rounds[f"cluster_size_{number}"]
        )
    for column in ("test_loss", "test_accuracy", "global_matched_accuracy", "adjusted_rand_index"):
        np.testing.assert_allclose(others.rounds[column], some.rounds[column], rtol=1e-12)


@pytest.mark.parametrize("make", [lambda: FLHC(2, warmup=0), lambda: FedGroup(2), lambda: FedGrouProx(2, mu=0.1)])
def test_clusters_are_federations_of_their_own(make: Callable[[], Algorithm], tmp_path: Path) -> None:
    """Oracle: FedAvg (FedProx's pull) among the members alone, from the cluster's first model.

    To a rounding of float32, and of six terms to their unit, which are shares of another whole.
    """
    partition = SwappedLabels()
    first = run(tmp_path / "first.h5", make(), rounds=1, **apart(partition))
    made = run(tmp_path / "made.h5", make(), rounds=2, **apart(partition))
    assert (made.clusters["cluster"] == first.clusters["cluster"][0]).all()
    pull = getattr(make(), "mu", 0.0)

    class Among(Later):
        def direction(self, gradient: Any, weights: Any, start: Any, block: Any) -> Any:
            return gradient.add_(weights - start, alpha=pull)

    for number in (0, 1):
        members = np.flatnonzero(made.clusters["cluster"][-1] == number)
        np.save(tmp_path / "start.npy", first.model["centers"][number])
        settings = apart(partition, rounds=2, sampler=listed(tmp_path, members.tolist()))
        alone = run(tmp_path / f"alone{number}.h5", Among(tmp_path / "start.npy", after=1), **settings)
        np.testing.assert_allclose(made.model["centers"][number], alone.weights, rtol=2.4e-7, atol=6 * 2.0**-43)


def test_a_cluster_that_nobody_trains_keeps_its_model(tmp_path: Path) -> None:
    """Oracle: its bits after the round before; the other's change."""
    partition = SwappedLabels()
    members = np.flatnonzero(groups_of(partition) == groups_of(partition)[0]).tolist()
    everyone = list(range(CLIENTS))
    for algorithm in (lambda: FLHC(2, warmup=0), lambda: FeSEM(2), lambda: FedGroup(2), lambda: CFL(10.0, 0.0, 0)):
        settings = apart(partition, sampler=listed(tmp_path, everyone, members[:4]))
        first, made = (
            run(tmp_path / f"{rounds}.h5", algorithm(), rounds=rounds, overwrite=True, **settings)
            for rounds in (1, 2)
        )
        np.testing.assert_array_equal(made.model["centers"][1], first.model["centers"][1])
        assert (made.model["centers"][0] != first.model["centers"][0]).mean() > 0.5
        np.testing.assert_array_equal(*made.clusters["cluster"])


def test_clusters_of_one_client(tmp_path: Path) -> None:
    """Oracle: LocalOnly, to the unit of sums: below a threshold that joins nobody all clusters have one member."""
    settings: dict[str, Any] = {"clients": 6, "rounds": 2, "local": LOCAL}
    made = run(tmp_path / "made.h5", FLHC(threshold=1e-9, warmup=0), **settings)
    alone = run(tmp_path / "alone.h5", LocalOnly(), **settings)
    assert [made.rounds[f"cluster_size_{number}"][-1] for number in range(6)] == [1] * 6
    assert made.model["centers"].shape == (6, PARAMETERS)
    for column in ("test_accuracy", "test_loss", "train_loss"):
        np.testing.assert_allclose(made.rounds[column], alone.rounds[column], rtol=1e-6)
    last = alone.rounds["global_matched_accuracy"][-1]
    assert made.rounds["global_matched_accuracy"][-1] == pytest.approx(last, rel=1e-6)


# FeSEM


def test_nearest() -> None:
    """Oracle: centers planted with a little noise; distances in float64, which plain products would not give."""
    rng = np.random.default_rng(0)
    common = 50 * rng.standard_normal(3000)
    centers = (common + 0.02 * rng.standard_normal((5, 3000))).astype(np.float32)
    truth = rng.integers(0, 5, 40)
    vectors = (centers[truth] + 0.01 * rng.standard_normal((40, 3000))).astype(np.float32)
    for norm in (1, 2):
        assert nearest(torch.from_numpy(vectors), torch.from_numpy(centers), norm).tolist() == truth.tolist()
    directions = torch.from_numpy(centers - common.astype(np.float32))
    scaled = directions[torch.from_numpy(truth)] * torch.rand(40, 1).add(0.1)
    assert best_aligned(scaled, directions).tolist() == truth.tolist()
    assert best_aligned(torch.zeros(1, 3000), directions).tolist() == [0]


@pytest.mark.parametrize("part", ["all", "head"])
def test_the_sum_of_squares_falls(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: float64 sums over the trained models: less with every E step, and again with every M step."""
    spy, watched = Spy(monkeypatch), Watched(3, part=part)
    settings = apart(Rotated(angles=(0, 90, 180)), model=LeNet(), rounds=3)
    run(tmp_path / "made.h5", watched, **{**settings, "local": LocalTraining(epochs=1, lr=0.1)})
    layout = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU).layout
    compared = layout.segments["head"] if part == "head" else slice(0, layout.parameters)

    def squares(centers: torch.Tensor, assignment: torch.Tensor) -> float:
        chosen = centers.double().numpy()[assignment.numpy()]
        return float(np.square((models - chosen)[:, compared]).sum())

    for round in (2, 3):
        models = np.stack([spy.trained[round][client] for client in range(CLIENTS)])
        (centers, before), (moved, after) = watched.seen[round - 1 : round + 1]
        assert squares(centers, after) <= squares(centers, before)
        assert squares(moved, after) < squares(centers, after)
        distances = [[squares(centers, torch.full_like(before, number)) for number in range(3)]]
        assert np.isfinite(distances).all()
        np.testing.assert_array_equal(
            after.numpy(),
            [
                np.argmin([np.square((models[k] - center)[compared]).sum() for center in centers.double().numpy()])
                for k in range(CLIENTS)
            ],
        )


@pytest.mark.parametrize(("lr", "shown"), [(0.05, "movement"), (0.15, "statistics")])
def test_clients_move_to_the_nearest_model(
    lr: float, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: distances over parameters, in float64; from random clusters some have to move in the second round.

    At the other learning rate, distances that count running statistics would give other clusters.
    """
    spy, watched = Spy(monkeypatch), Watched(2, start="random")
    settings = apart(Rotated(angles=(0, 180)), model=LeNet(), rounds=2, seed=1)
    made = run(tmp_path / "made.h5", watched, **{**settings, "local": LocalTraining(epochs=2, lr=lr)})
    parameters = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU).layout.parameters
    (centers, before), (_, after) = watched.seen[1:]
    models = np.stack([spy.trained[2][client] for client in range(CLIENTS)])
    squares = np.square(models[:, None] - centers.double().numpy())
    found = squares[..., :parameters].sum(2).argmin(1)
    np.testing.assert_array_equal(after, found)
    np.testing.assert_array_equal(made.clusters["cluster"][1], found)
    others = {"movement": before.numpy(), "statistics": squares.sum(2).argmin(1)}
    assert (others[shown] != found).any()


# Newcomers


@pytest.mark.parametrize("make", [lambda: FLHC(2, warmup=0), lambda: FedGroup(2), lambda: FeSEM(2)])
def test_newcomers_join_their_group(make: Callable[[], Algorithm], tmp_path: Path) -> None:
    """Oracle: the partition's groups; by hand, who has a model when, and what newcomers receive."""
    partition = SwappedLabels()
    early, late = list(range(7)), [5, 6, 7, 8, 9]
    settings = apart(partition, sampler=listed(tmp_path, early, late), rounds=2)
    made = run(tmp_path / "made.h5", make(), **settings)
    first, second = made.clusters["cluster"]
    assert (first >= 0).tolist() == [client < 7 for client in range(CLIENTS)]
    assert (second >= 0).tolist() == [client < 10 for client in range(CLIENTS)]
    assert adjusted_rand_score(groups_of(partition)[:10], second[:10]) == 1
    assert made.rounds["adjusted_rand_index"].tolist() == [1, 1]
    unit = 4 * PARAMETERS
    assert made.rounds["bytes_down"].tolist() == [7 * unit, (5 + 3 * (1 + 2)) * unit]
    assert made.rounds["bytes_up"].tolist() == [7 * unit, 5 * unit]
    np.testing.assert_array_equal(np.isnan(made.evaluation["client_accuracy"][-1]), second < 0)
    steps = made.clients["steps"].reshape(-1)[7:]
    assert (steps[2:] > 1.5 * steps[:2].max()).all(), "they train twice"


def test_cold_start(tmp_path: Path) -> None:
    """Oracle: by hand: 2 groups of 4 clients each are asked in the first round, then the cohort."""
    settings = apart(SwappedLabels(), sampler=RoundRobin(), cohort=4, rounds=3)
    made = run(tmp_path / "made.h5", FedGroup(2, pretrained=4, pretrain_epochs=1), **settings)
    assert np.bincount(made.clients["round"]).tolist() == [0, 8, 4, 4]
    assert made.clusters["cluster"].min(axis=1).tolist() == [-1, -1, 0]
    first = made.clients["round"] == 1
    samples = made.partition["samples"][:8]
    np.testing.assert_array_equal(made.clients["steps"][first], -(-samples // 10))


def test_between_groups() -> None:
    """Oracle: the formula, one group after another, in float64; statistics stay as they are."""
    centers = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    made = FedGroup(3, intergroup=0.3).merged(centers, 16)
    plain = centers.double().numpy()
    for m in range(3):
        top, bottom = plain[m, :16].copy(), 1.0
        for j in {0, 1, 2} - {m}:
            length = np.linalg.norm(plain[j, :16])
            top += 0.3 * plain[j, :16] / length
            bottom += 0.3 / length
        np.testing.assert_allclose(made[m, :16], top / bottom, rtol=1e-5)
    np.testing.assert_array_equal(made[:, 16:], centers[:, 16:])
    assert FedGroup(3).merged(centers, 16) is centers


# CFL


def test_who_is_not_split(tmp_path: Path) -> None:
    """Oracle: by hand: neither clients that agree, nor those that do not all come, are too few or in the warm-up."""
    alike = run(tmp_path / "alike.h5", CFL(0.4, 1.6, 0), clients=CLIENTS, local=LOCAL, rounds=3)
    assert "cluster_size_1" not in alike.rounds
    mean, largest = (alike.rounds[f"{name}_change_0"] for name in ("mean", "largest"))
    assert (mean < largest).all()
    others = [
        (CFL(10.0, 0.0, 0), {"sampler": RoundRobin(), "cohort": CLIENTS - 1}),
        (CFL(10.0, 0.0, 0, min_size=CLIENTS), {}),
        (CFL(10.0, 0.0, warmup=2), {}),
        (CFL(float(mean[1]), 0.0, 0), {}),
        (CFL(10.0, float(largest[0]), 0), {}),
    ]
    for number, (algorithm, options) in enumerate(others):
        settings = {"clients": CLIENTS, "local": LOCAL, "rounds": 1, **options}
        made = run(tmp_path / f"{number}.h5", algorithm, **settings)
        assert "cluster_size_1" not in made.rounds
    made = run(tmp_path / "split.h5", CFL(10.0, 0.0, 1), clients=CLIENTS, local=LOCAL, rounds=2)
    assert made.rounds["cluster_size_1"][1] > 0


def test_lengths_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the trained models, in float64, weighted by samples."""
    spy = Spy(monkeypatch)
    made = run(tmp_path / "made.h5", CFL(), clients=5, partition=Cut(30, 50, 20, 40, 10), local=LOCAL)
    start = FlatModel(network(LogisticRegression(), (1, 8, 8), 10), CPU).weights[0].double().numpy()
    changes = np.stack([spy.trained[1][client] - start for client in range(5)])
    mean = np.average(changes, axis=0, weights=[30, 50, 20, 40, 10])
    assert made.rounds["mean_change_0"][0] == pytest.approx(np.linalg.norm(mean), rel=1e-6)
    assert made.rounds["largest_change_0"][0] == pytest.approx(np.linalg.norm(changes, axis=1).max(), rel=1e-6)


def test_complete_linkage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: SciPy's clustering of the trained models' changes, in float64; single linkage has other clusters."""
    spy = Spy(monkeypatch)
    made = run(tmp_path / "made.h5", CFL(10.0, 0.0, 0), partition=Dirichlet(0.3), clients=CLIENTS, local=LOCAL)
    start = FlatModel(network(LogisticRegression(), (1, 8, 8), 10), CPU).weights[0].double().numpy()
    apart = pdist(np.stack([spy.trained[1][client] - start for client in range(CLIENTS)]), "cosine")
    complete, single = (fcluster(linkage(apart, kind), 2, "maxclust") for kind in ("complete", "single"))
    assert adjusted_rand_score(made.clusters["cluster"][-1], complete) == 1
    assert adjusted_rand_score(single, complete) < 0.5


# With the rest


def test_with_compression_and_attacks(tmp_path: Path) -> None:
    """Oracle: where nothing is left out, the same bits; a client that sends the opposite is a cluster by itself."""
    partition = SwappedLabels()
    settings = apart(partition, rounds=2)
    plain = run(tmp_path / "plain.h5", FLHC(2, warmup=0), **settings)
    made = run(tmp_path / "made.h5", FLHC(2, warmup=0), compression=TopK(share=1.0), **settings)
    np.testing.assert_array_equal(made.model["centers"], plain.model["centers"])
    attacked = run(
        tmp_path / "attacked.h5",
        FLHC(3, warmup=0, metric="cosine", linkage="average"),
        attack=SignFlip(share=1 / 12, scale=3.0),
        **settings,
    )
    liar = int(attacked.clients["client"][attacked.clients["malicious"] == 1][0])
    found = attacked.clusters["cluster"][0]
    assert (found == found[liar]).sum() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("FeSEM --algorithm.models 0", "--algorithm.models = 0: must be at least 1"),
        ("FedGroup --algorithm.pretrained 0", "--algorithm.pretrained = 0: must be at least 1"),
        ("FLHC --algorithm.threshold 0", "--algorithm.threshold = 0.0: must be above 0"),
        (
            "FLHC --algorithm.metric cosine",
            "--algorithm.linkage = ward: must be complete, average or single with metric cosine",
        ),
        ("FedCluster --algorithm.clusters 0", "--algorithm.clusters = 0: must be at least 1"),
        ("FeSEM --compression Int8", "--compression = Int8: cannot be combined with FeSEM"),
        ("FedCluster --compression TopK", "--compression = TopK: cannot be combined with FedCluster"),
        (
            "FLHC --server_optimizer Momentum",
            "--server_optimizer = Momentum: must be Replace with FLHC, which has its own server update",
        ),
        (
            "FedGroup --weighting horvitz_thompson",
            "--weighting = horvitz_thompson: FedGroup does not form one mean of all its clients' models",
        ),
        ("CFL --evaluate_means cohort", "--evaluate_means = cohort: CFL does not average its clients' models"),
        (
            "IFCA --algorithm.balance 0.4",
            "--algorithm.balance = 0.4: must be at least 0 and at most 1 / 3",
        ),
        ("CFL --algorithm.min_size 0", "--algorithm.min_size = 0: must be at least 1"),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", *arguments.split()])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (FeSEM(5), "--algorithm.models = 5: must be at most the number of clients, 4"),
        (IFCA(5), "--algorithm.models = 5: must be at most the number of clients, 4"),
        (FLHC(2, warmup=1), "--algorithm.warmup = 1: must be below the number of rounds"),
        (IFCA(2, share_body=True), "--model: IFCA needs one with a fully connected layer, and other layers to share"),
    ],
)
def test_what_does_not_go_together(algorithm: Algorithm, message: str, tmp_path: Path) -> None:
    """Oracle: the message, before anything is trained."""
    with pytest.raises(BadInput) as error:
        run(tmp_path / "made.h5", algorithm)
    assert str(error.value) == message
