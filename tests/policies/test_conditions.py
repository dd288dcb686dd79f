"""The virtual clock, lost updates and partial work, against times computed by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.models import LeNet
from fedmpi.policies import FixedList, Heterogeneous, Independent, Phones, Uniform
from fedmpi.policies.conditions import Profile
from fedmpi.policies.phones import MILLISECONDS
from fedmpi.training.settings import LocalTraining
from tests.jobs.methods import Remembering
from tests.support.experiments import Cut, run

MODEL = 4 * (64 * 10 + 10)  # bytes of logistic regression on digits


class Given(Heterogeneous):
    """Three clients of given profiles. With 4, 8 and 12 steps of one model they take 1 + 2 + 2 = 5, 2 + 4 + 1 = 7 and
    10 + 12 + 4 = 26 virtual seconds."""

    def profile(self, clients: NDArray[np.int64], of: int, seed: int) -> Profile:
        everybody = [0.5, 0.5, 1.0], [MODEL, MODEL / 2, MODEL / 10], [MODEL / 2, MODEL, MODEL / 4]
        return Profile(*(np.array(column)[clients] for column in everybody))


def three(path: Path, conditions: Heterogeneous, **settings: Any) -> results.Run:
    """A round of three clients with 20, 40 and 60 samples, two epochs in batches of ten."""
    local = LocalTraining(epochs=2, batch_size=10)
    chosen: dict[str, Any] = {"clients": 3, "partition": Cut(20, 40, 60), "local": local, **settings}
    return run(path, conditions=conditions, **chosen)


def told(made: results.Run) -> list[tuple[float, ...]]:
    """Each round: virtual seconds, selected, dropped, late, stragglers."""
    names = ("virtual_seconds", "selected", "dropped", "late", "stragglers")
    return list(zip(*(made.rounds[name].tolist() for name in names), strict=True))


@pytest.mark.parametrize(
    ("conditions", "cohort", "seconds", "clients"),
    [
        (Given(), 3, 26.0, [0, 1, 2]),
        (Given(deadline=30), 3, 26.0, [0, 1, 2]),
        (Given(deadline=26), 3, 26.0, [0, 1, 2]),
        (Given(deadline=20), 3, 20.0, [0, 1]),
        (Given(deadline=7), 3, 7.0, [0, 1]),
        (Given(deadline=6), 3, 6.0, [0]),
        (Given(over_select=1.5), 2, 7.0, [0, 1]),
        (Given(over_select=3), 1, 5.0, [0]),
        (Given(over_select=1.5, deadline=20), 2, 7.0, [0, 1]),
        (Given(over_select=1.5, deadline=6), 2, 6.0, [0]),
    ],
)
def test_the_clock(
    conditions: Heterogeneous, cohort: int, seconds: float, clients: list[int], tmp_path: Path
) -> None:
    """Oracles: times computed by hand; and a run with the same clients under ideal conditions, bit for bit."""
    made = three(tmp_path / "run.h5", conditions, cohort=cohort, sampler=Uniform())
    assert told(made) == [(seconds, 3, 0, 3 - len(clients), 0)]
    assert made.clients["client"].tolist() == clients
    assert made.clients["virtual_seconds"].tolist() == [5.0, 7.0, 26.0][: len(clients)]
    assert made.rounds["bytes_down"].tolist() == [3 * MODEL], "all were sent the model"
    assert made.rounds["bytes_up"].tolist() == [len(clients) * MODEL]
    (tmp_path / "list").write_text(" ".join(map(str, clients)))
    ideal = run(
        tmp_path / "ideal.h5",
        sampler=FixedList(tmp_path / "list"),
        clients=3,
        partition=Cut(20, 40, 60),
        local=LocalTraining(epochs=2, batch_size=10),
    )
    assert made.weights_sha256 == ideal.weights_sha256
    for column in ("train_loss", "test_loss", "bytes_up"):
        np.testing.assert_array_equal(made.rounds[column], ideal.rounds[column])


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (Given(deadline=4.9), (4.9, 3, 0, 3, 0)),
        (Given(dropout=1.0), (0.0, 3, 3, 0, 0)),
        (Given(dropout=1.0, deadline=4), (4.0, 3, 3, 0, 0)),
        (Given(stragglers=1.0), (0.0, 3, 0, 3, 3)),
    ],
)
def test_nobody_arrives(conditions: Heterogeneous, expected: tuple[float, ...], tmp_path: Path) -> None:
    """Oracle: the measurement of the initial model, bit for bit; no client took part, but all got the model."""
    made = three(tmp_path / "run.h5", conditions, rounds=2)
    assert told(made) == [expected] * 2
    assert made.rounds["test_loss"].tolist() == [made.initial["test_loss"]] * 2
    assert made.rounds["bytes_down"].tolist() == [3 * MODEL] * 2
    assert made.rounds["bytes_up"].tolist() == [0, 0]
    assert not made.clients["client"].size
    assert np.isnan(made.rounds["train_loss"]).all()


@pytest.mark.parametrize("algorithm", [FedAvg(), Remembering()])
def test_where_nothing_is_lost_only_the_clock_is_new(algorithm: FedAvg, tmp_path: Path) -> None:
    """Oracle: the same run under ideal conditions, bit for bit."""
    few = partial(run, algorithm=algorithm, clients=6, cohort=3, sampler=Uniform(), rounds=3, model=LeNet())
    local = LocalTraining(epochs=1, momentum=0.9)
    ideal = few(tmp_path / "ideal.h5", local=local)
    made = few(tmp_path / "made.h5", local=local, conditions=Heterogeneous())
    always = few(tmp_path / "always.h5", local=local, availability=Independent(1))
    assert made.weights_sha256 == ideal.weights_sha256 == always.weights_sha256
    assert set(made.rounds) - set(ideal.rounds) == {"virtual_seconds", "selected", "dropped", "late", "stragglers"}
    assert set(made.clients) - set(ideal.clients) == {"virtual_seconds"}
    assert set(always.rounds) - set(ideal.rounds) == {"unavailable"}
    for other in (made, always):
        for table in ("rounds", "clients", "evaluation"):
            for name, values in getattr(ideal, table).items():
                if "seconds" not in name:
                    np.testing.assert_array_equal(getattr(other, table)[name], values)


def test_what_is_lost_is_not_kept_at_the_client_either(tmp_path: Path) -> None:
    """Oracle: the client's own count of its rounds is that of its rows in the results."""
    made = run(tmp_path / "run.h5", Remembering(), conditions=Heterogeneous(dropout=0.5), rounds=12)
    clients = made.clients["client"]
    before = [int((clients[:row] == client).sum()) for row, client in enumerate(clients)]
    assert made.clients["visits"].tolist() == [count + 1 for count in before]
    assert 0 < made.rounds["dropped"].sum() == 4 * 12 - len(clients)


def test_dropouts(tmp_path: Path) -> None:
    """Oracle: 240 chances of 0.3, within 4 sigma; every row adds up."""
    made = run(tmp_path / "run.h5", conditions=Heterogeneous(dropout=0.3), rounds=60, evaluate_every=0, **TINY)
    dropped = made.rounds["dropped"]
    assert abs(dropped.sum() - 240 * 0.3) < 4 * np.sqrt(240 * 0.3 * 0.7)
    assert dropped.tolist() == [4 - int((made.clients["round"] == round).sum()) for round in range(1, 61)]


TINY: dict[str, Any] = {
    "partition": Cut(20, 20, 20, 20),
    "local": LocalTraining(epochs=5, batch_size=10),
}


def test_partial_work(tmp_path: Path) -> None:
    """Oracles: whole epochs, 1 to 4 of 5, equally often (4 sigma); those who do all are the same with either method.

    FedAvg drops stragglers, FedProx uses them. The clock counts the steps that are done.
    """
    conditions = Heterogeneous(stragglers=0.5, speed_spread=0, bandwidth_spread=0, download=1000, upload=500)
    prox, avg = (
        run(tmp_path / f"{name}.h5", algorithm, conditions=conditions, rounds=40, evaluate_every=0, **TINY)
        for name, algorithm in (("prox", FedProx(0)), ("avg", FedAvg()))
    )
    names = ("selected", "dropped", "late", "stragglers")
    assert {tuple(row) for row in np.stack([prox.rounds[name] for name in names], 1).tolist()} == {(4, 0, 0, 2)}
    assert {tuple(row) for row in np.stack([avg.rounds[name] for name in names], 1).tolist()} == {(4, 0, 2, 2)}
    epochs, rest = np.divmod(prox.clients["steps"], 2)
    assert not rest.any()
    counts = np.bincount(epochs, minlength=6)
    assert counts[0] == 0
    assert counts[5] == 80
    assert np.abs(counts[1:5] - 20).max() < 4 * np.sqrt(80 * 0.25 * 0.75)
    assert (avg.clients["steps"] == 10).all()
    complete = [pair for pair, steps in zip(participations(prox), prox.clients["steps"], strict=True) if steps == 10]
    assert complete == participations(avg)
    expected = MODEL / 1000 + prox.clients["steps"] * 0.05 + MODEL / 500
    np.testing.assert_allclose(prox.clients["virtual_seconds"], expected, rtol=1e-12)
    assert prox.rounds["virtual_seconds"].tolist() == [
        prox.clients["virtual_seconds"][prox.clients["round"] == round].max() for round in range(1, 41)
    ]


def participations(made: results.Run) -> list[tuple[int, int]]:
    return list(zip(made.clients["round"].tolist(), made.clients["client"].tolist(), strict=True))


def test_partial_work_counts_steps_where_steps_are_given(tmp_path: Path) -> None:
    """Oracle: of 3 steps a straggler does 1 or 2; of the 12 stragglers both happen."""
    settings = {**TINY, "local": LocalTraining(steps=3, batch_size=10)}
    made = run(tmp_path / "run.h5", FedProx(), conditions=Heterogeneous(stragglers=1), rounds=3, **settings)
    assert set(made.clients["steps"]) == {1, 2}


def test_profiles() -> None:
    """Oracles: the lognormal distribution, 4 sigma; no spread gives the medians; a client keeps its profile."""
    count = 20_000
    rates: dict[str, float] = {"seconds_per_step": 0.2, "download": 3e6, "upload": 1e6}
    spread = Heterogeneous(**rates, speed_spread=0.5, bandwidth_spread=1.5)
    profile = spread.profile(np.arange(count), count, 3)
    logs = np.log([profile.seconds_per_step / 0.2, profile.download / 3e6, profile.upload / 1e6])
    for log, sigma in zip(logs, (0.5, 1.5, 1.5), strict=True):
        assert abs(log.mean()) < 4 * sigma / np.sqrt(count)
        assert abs(log.std() - sigma) < 4 * sigma / np.sqrt(2 * count)
    together = np.corrcoef(logs)[np.triu_indices(3, 1)]
    assert np.abs(together).max() < 4 / np.sqrt(count)
    alike = Heterogeneous(**rates, speed_spread=0, bandwidth_spread=0).profile(np.arange(5), 5, 3)
    assert [set(column) for column in vars(alike).values()] == [{0.2}, {3e6}, {1e6}]
    some = spread.profile(np.array([7, 3]), 9, 3)
    assert some.upload.tolist() == profile.upload[[7, 3]].tolist()


def test_phones() -> None:
    """Oracles: the median device; the times of the table; every device is drawn; a client keeps its device."""
    phones = Phones(seconds_per_step=0.2, download=3e6)
    profile = phones.profile(np.arange(2000), 2000, 3)
    times = np.array([milliseconds for _, milliseconds in MILLISECONDS])
    drawn, counts = np.unique(profile.seconds_per_step, return_counts=True)
    np.testing.assert_allclose(drawn, 0.2 * times / 90.0)
    assert np.median(profile.seconds_per_step) == pytest.approx(0.2, rel=0.03)
    assert abs(counts - 2000 / 21).max() < 4 * np.sqrt(2000 / 21)
    some = phones.profile(np.array([7, 3]), 9, 3)
    assert some.seconds_per_step.tolist() == profile.seconds_per_step[[7, 3]].tolist()
    same = Heterogeneous(download=3e6).profile(np.arange(2000), 2000, 3)
    assert profile.download.tolist() == same.download.tolist()


def test_how_many_are_asked() -> None:
    """Oracle: by hand, rounded up; 1.1 * 10 is 11.000000000000002."""
    asked = [(1.0, 10, 10), (1.1, 10, 11), (1.3, 10, 13), (1.25, 10, 13), (1.01, 10, 11), (2.0, 1, 2)]
    for times, cohort, expected in asked:
        assert Heterogeneous(over_select=times).asked(cohort) == expected


def test_over_selection_asks_for_more_of_those_available(tmp_path: Path) -> None:
    """Oracle: 1.5 times 4 are asked, 4 used; of 5 available clients all are asked; the fastest are used."""
    many: dict[str, Any] = {"clients": 8, "partition": Cut(*[20] * 8), "cohort": 4, "sampler": Uniform(), "rounds": 2}
    made = run(tmp_path / "six.h5", conditions=Heterogeneous(over_select=1.5), **many)
    assert [row[1:4] for row in told(made)] == [(6, 0, 2)] * 2
    assert [len(np.unique(made.clients["client"][made.clients["round"] == r])) for r in (1, 2)] == [4, 4]
    assert made.rounds["bytes_down"].tolist() == [6 * MODEL] * 2
    everybody = run(tmp_path / "all.h5", conditions=Heterogeneous(), **{**many, "cohort": 8, "rounds": 1})
    times = everybody.clients["virtual_seconds"]
    fastest = run(tmp_path / "fast.h5", conditions=Heterogeneous(over_select=2), **{**many, "rounds": 1})
    assert fastest.clients["client"].tolist() == sorted(np.argsort(times)[:4].tolist())
