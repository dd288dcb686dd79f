"""What arrives of compressed changes, what clients keep of them, and what they take when they are sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.ifca import IFCA
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.components import subclasses
from fedmpi.errors import BadInput, Diverged
from fedmpi.experiment.command_line import parse
from fedmpi.federation.client_state import INTERNAL, ClientState
from fedmpi.federation.engine import Engine
from fedmpi.federation.mean import WeightedMean
from fedmpi.federation.uplink import Arrived, Uplink
from fedmpi.models import LeNet
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import Heterogeneous, RoundRobin, Uniform
from fedmpi.policies.compression import QSGD, Compression, Dense, Int8, TopK
from fedmpi.training.block import Block
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, SquaresSCAFFOLD
from tests.support.digits import Few
from tests.support.experiments import CPU, Alone, Cut, block, network, run, shortened
from tests.support.least_squares import OPTIMUM, squares

#: Of logistic regression on the digits.
WEIGHTS = 650
#: One method of each kind of round.
METHODS = {
    cls.round: cls
    for cls in reversed(subclasses(Algorithm))
    if issubclass(cls, Algorithm) and cls.__module__.startswith("fedmpi.") and not inspect.isabstract(cls)
    if cls.__name__ != "FedExLoRA"  # which needs a network with adapters, see test_lora
    if cls.takes_compression and not (cls.looks_at_models or cls.is_asynchronous or cls.__name__.startswith("_"))
}
#: Training that costs little.
SHORT = LocalTraining(epochs=1, batch_size=100)


def keys(clients: int, round: int = 1) -> NDArray[np.uint64]:
    return randomness.keys(3, "compression 0", round, np.arange(clients))


def compressed(by: Compression, changes: Tensor, kept: Tensor | None = None, round: int = 1) -> Tensor:
    """What arrives of changes [K, d] of clients 0 to K - 1."""
    before = changes.clone()
    own = changes.new_zeros(len(changes), by.kept(changes.shape[1])) if kept is None else kept
    arrived = by.compress(changes, own, keys(len(changes), round), round)
    assert torch.equal(changes, before), "changes are only read"
    return arrived


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Sent:
    """What passes through the channels of a run: of each (round, vector, client), the change and what arrives."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.changes: dict[tuple[int, int, int], NDArray[np.float64]] = {}
        self.arrived: dict[tuple[int, int, int], NDArray[np.float64]] = {}
        self.engine: Engine
        begin, send = Engine.begin, Uplink.send

        def noting_begin(engine: Engine, number: int) -> None:
            self.engine = engine
            begin(engine, number)

        def noting_send(uplink: Uplink, vectors: Tensor, block: Block, group: NDArray[np.int64]) -> Arrived:
            arrived = send(uplink, vectors, block, group)
            start = torch.zeros(vectors.shape[1]) if uplink.start is None else uplink.start
            start = start.expand(len(block), -1) if start.dim() == 1 else start[group]
            number, count = uplink.number, uplink.parameters
            for k, client in enumerate(block.clients.tolist()):
                for found, of in ((self.changes, vectors), (self.arrived, arrived[0])):
                    change = of[k].double() - start[k].double()
                    found[self.engine.federation.round, number, client] = change[:count].numpy()
            return arrived

        patch.setattr(Engine, "begin", noting_begin)
        patch.setattr(Uplink, "send", noting_send)

    def left_out(self, number: int) -> dict[int, NDArray[np.float64]]:
        """What each client keeps of vector `number`."""
        state = self.engine.states.states[f"{INTERNAL}compression {number}"]
        return {client: row.double().numpy() for client, row in state.rows.items()}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(monkeypatch)


# Nothing is lost where nothing need be


@pytest.mark.parametrize("method", METHODS.values())
def test_all_of_a_change_is_the_change(method: type[Algorithm], tmp_path: Path) -> None:
    """Oracle: no compression, bit for bit, under all that averages; twice the bytes of parameters."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "dataset": Few(120),
        "partition": Cut(10, 20, 10, 20, 15, 25, 20),  # as many clients as Krum needs
        "clients": 7,
        "rounds": 2,
        "local": LocalTraining(steps=1),
        "evaluate_every": 0,
    }
    made = run(tmp_path / "made.h5", shortened(method), compression=TopK(1.0), **settings)
    plain = run(tmp_path / "plain.h5", shortened(method), **settings)
    assert made.weights_sha256 == plain.weights_sha256
    trained = method().extend(network(LeNet(), (1, 8, 8), 10), torch.zeros(2, 1, 8, 8))
    layout = FlatModel(trained, CPU).layout
    up = [layout.extent(columns) for columns in method().payload(layout)[1]]
    uncompressed = plain.rounds["bytes_up"] - plain.rounds["bytes_up"][-1]  # what FedDBE sends once beside the model
    changes = 7 * sum(8 * count + 4 * (size - count) for size, count in up)
    assert made.rounds["bytes_up"].tolist() == (uncompressed + changes).tolist()
    np.testing.assert_array_equal(made.rounds["bytes_down"], plain.rounds["bytes_down"])


@pytest.mark.parametrize("fine", [QSGD(2**15 - 1, 16), Int8(4)])
def test_fine_levels_are_nearly_the_change(fine: Compression, tmp_path: Path) -> None:
    """Oracle: FedAvg, to a thousandth of its way (a two-hundredth of a byte's 127 levels); but not its bits."""
    one = run(tmp_path / "fine.h5", compression=fine, rounds=2, local=SHORT)
    plain = run(tmp_path / "plain.h5", rounds=2, local=SHORT)
    start = FlatModel(network(LogisticRegression(), (1, 8, 8), 10), CPU).weights[0].numpy()
    way = np.linalg.norm(plain.weights - start)
    assert 0 < np.linalg.norm(one.weights - plain.weights) < (0.001 if isinstance(fine, QSGD) else 0.005) * way


@pytest.mark.parametrize("by", [TopK(0.01), TopK(0.3, feedback=False), QSGD(), Int8()])
def test_statistics_arrive_as_they_are(by: Compression, tmp_path: Path) -> None:
    """Oracle: FedAvg's, bit for bit after a round; parameters are others."""
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(200), "local": SHORT}
    made = run(tmp_path / "made.h5", compression=by, **settings)
    plain = run(tmp_path / "plain.h5", **settings)
    count = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU).layout.parameters
    assert count < len(made.weights)
    np.testing.assert_array_equal(made.weights[count:], plain.weights[count:])
    assert (made.weights[:count] != plain.weights[:count]).mean() > 0.5


# The largest numbers


def test_the_largest_are_those_of_a_sort() -> None:
    """Oracle: NumPy's stable sort by magnitude, of numbers with many ties, for every count."""
    values = np.random.default_rng(0).integers(-4, 5, (30, 23)).astype(np.float32)
    values[0] = 0
    order = np.argsort(-np.abs(values), axis=1, kind="stable")
    for count in range(1, 24):
        expected = np.zeros_like(values)
        np.put_along_axis(expected, order[:, :count], np.take_along_axis(values, order[:, :count], 1), 1)
        arrived = compressed(TopK(count / 23, feedback=False), torch.from_numpy(values))
        np.testing.assert_array_equal(arrived.numpy(), expected)


@pytest.mark.parametrize("method", [FedAvg, IFCA, SCAFFOLD])
def test_nothing_is_lost_for_good(method: type[Algorithm], sent: Sent, tmp_path: Path) -> None:
    """Oracle: what a client sent and what it keeps add up to its changes, of each vector, in float64.

    Each of 8 rounds may be off by half a unit in the last place of weights below 1, and of sums of changes.
    """
    settings: dict[str, Any] = {"model": LeNet(), "clients": 6, "cohort": 3, "sampler": Uniform(), "rounds": 8}
    settings |= {"dataset": Few(300), "local": LocalTraining(epochs=1, vectorize=2), "evaluate_every": 0}
    made = run(tmp_path / "run.h5", method(), compression=TopK(0.05), **settings)
    taken = np.bincount(made.clients["client"].astype(int))
    assert taken.max() > 2
    numbers = {number for _, number, _ in sent.changes}
    assert len(numbers) == (2 if method is SCAFFOLD else 1)
    for number in numbers:
        kept = sent.left_out(number)
        assert len(kept) == np.count_nonzero(taken)
        for client, left_out in kept.items():
            of = [key for key in sent.changes if key[1:] == (number, client)]
            assert len(of) == taken[client]
            changes, arrived = (sum(found[key] for key in of) for found in (sent.changes, sent.arrived))
            assert np.abs(left_out).max() > 1e-4
            assert np.mean(left_out == 0) < 0.3, "most is kept, in turn"
            np.testing.assert_allclose(arrived + left_out, changes, rtol=0, atol=8 * 2.0**-24)


def test_both_vectors_of_scaffold(tmp_path: Path, sent: Sent) -> None:
    """Oracles: the exact optimum; and c + mean of what is kept is the mean of the clients' own, after any round.

    Without feedback it ends elsewhere. What is kept is of an unchanging unit, also where the learning rate falls.
    """
    local = LocalTraining(epochs=5, lr=0.1)
    settings: dict[str, Any] = {"sampler": Uniform(), "cohort": 3}
    made = squares(tmp_path / "run.h5", SquaresSCAFFOLD(), 50, local, compression=TopK(0.5), **settings)
    np.testing.assert_allclose(made.weights, OPTIMUM, atol=1e-4)
    early, falling = SquaresSCAFFOLD(), replace(local, schedule="exponential", decay=0.8)
    squares(tmp_path / "early.h5", early, 7, falling, compression=TopK(0.5), **settings)
    own = np.sum([row.double().numpy() for row in early.controls.rows.values()], 0) / CLIENTS
    kept = np.sum(list(sent.left_out(1).values()), 0) / CLIENTS
    assert np.abs(kept).max() > 1e-3
    np.testing.assert_allclose(early.control.double().numpy() + kept / local.lr, own, atol=1e-5)
    lossy = squares(tmp_path / "lossy.h5", SquaresSCAFFOLD(), 50, local, compression=TopK(0.5, False), **settings)
    assert np.linalg.norm(lossy.weights - OPTIMUM) > 0.01


def test_what_is_too_old_is_forgotten(tmp_path: Path) -> None:
    """Oracles: where every client comes every third round, without feedback, and with all of it, bit for bit."""
    settings: dict[str, Any] = {"clients": 6, "cohort": 2, "sampler": RoundRobin(), "rounds": 8, "local": SHORT}
    ways = {"two": TopK(0.1, forget_after=2), "never": TopK(0.1, feedback=False)}
    ways |= {"three": TopK(0.1, forget_after=3), "all": TopK(0.1)}
    shas = {
        name: run(tmp_path / f"{name}.h5", compression=by, **settings).weights_sha256 for name, by in ways.items()
    }
    assert shas["two"] == shas["never"] != shas["all"] == shas["three"]


def test_feedback_by_hand() -> None:
    """Oracle: by hand; a client that comes late has forgotten, the other not."""
    by, kept = TopK(0.3, forget_after=2), torch.zeros(2, 4)
    changes = torch.tensor([[3.0, 2.0, 1.0], [-1.0, 0.5, 4.0]])
    assert compressed(by, changes, kept, 1).tolist() == [[3, 0, 0], [0, 0, 4]]
    assert compressed(by, changes[:1], kept[:1], 3).tolist() == [[0, 4, 0]]
    assert kept.tolist() == [[3, 0, 2, 3], [-1, 0.5, 0, 1]]
    assert compressed(by, changes, kept, 5).tolist() == [[6, 0, 0], [0, 0, 4]]
    assert kept.tolist() == [[0, 2, 3, 5], [-1, 0.5, 0, 5]]


# Random rounding


@pytest.mark.parametrize(
    ("by", "bucket", "levels"), [(QSGD(4, 64), 64, 4), (QSGD(5, 48), 48, 5), (Int8(64), 64, 127)]
)
def test_mean_and_variance(by: Compression, bucket: int, levels: int) -> None:
    """Oracles: the change, to 5 standard errors; the variance sum u^2 f (1 - f), to 2 %; the paper's bound.

    u is the unit of a number, f its fraction beyond a multiple of it.
    """
    trials, d = 20_000, 64
    change = drawn(d)
    arrived = compressed(by, change.expand(trials, d)).double().numpy()
    exact, unit = change.double().numpy(), np.empty(d)
    for first in range(0, d, bucket):
        part = exact[first : first + bucket]
        unit[first : first + bucket] = (np.abs(part).max() if levels == 127 else np.linalg.norm(part)) / levels
    fraction = exact / unit - np.floor(exact / unit)
    variance = unit**2 * fraction * (1 - fraction)
    assert (np.abs(arrived.mean(0) - exact) <= 5 * np.sqrt(variance / trials) + 1e-7).all()
    error = ((arrived - exact) ** 2).sum(1).mean()
    assert error == pytest.approx(variance.sum(), rel=0.02)
    if isinstance(by, QSGD):
        assert error < min(d / levels**2, np.sqrt(d) / levels) * (exact**2).sum()


@pytest.mark.parametrize(
    ("by", "bucket", "levels"), [(QSGD(3, 100), 100, 3), (QSGD(1, 7), 7, 1), (Int8(100), 100, 127)]
)
def test_what_arrives_are_multiples_of_the_unit(by: Compression, bucket: int, levels: int) -> None:
    """Oracle: the unit in float64; less than one off, never beyond the levels; the last bucket may be short."""
    changes = drawn(40, 250) * torch.logspace(-12, 3, 40)[:, None]
    changes[:, 240:] = 0
    changes[0, 0], changes[1, 100:200] = 1e5, 0.1
    arrived = compressed(by, changes).double().numpy()
    for first in range(0, 250, bucket):
        part, got = changes[:, first : first + bucket].double().numpy(), arrived[:, first : first + bucket]
        norm = np.abs(part).max(1) if isinstance(by, Int8) else np.linalg.norm(part, axis=1)
        unit = np.where(norm == 0, 1, norm / levels)[:, None]
        multiple = got / unit
        np.testing.assert_allclose(multiple, np.rint(multiple), atol=1e-4)
        assert np.abs(np.rint(multiple)).max() <= levels
        assert (np.abs(got - part) <= unit * (1 + 1e-5)).all()


def test_no_random_number_is_used_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Oracle: by hand: 3 rounds of 4 clients that send 2 vectors have 24 keys; and the words of two pieces differ."""
    seen: list[int] = []

    class Noting(Int8):
        def compress(self, change: Tensor, kept: Tensor, keys: NDArray[np.uint64], round: int) -> Tensor:
            seen.extend(keys.tolist())
            return super().compress(change, kept, keys, round)

    run(tmp_path / "run.h5", SCAFFOLD(), compression=Noting(), rounds=3, local=LocalTraining(steps=1))
    assert len(seen) == len(set(seen)) == 24
    parts = compressed(Int8(1024), torch.full((1, 1 << 18), 0.1) + torch.eye(1, 1024).repeat(1, 256))
    assert len(np.unique(parts.view(256, 1024).numpy(), axis=0)) == 256


# All of them


@pytest.mark.parametrize("by", [TopK(0.3), QSGD(), QSGD(7, 1 << 20), QSGD(3, 5), Int8()])
@pytest.mark.parametrize("size", [1, 1000, 150_001])
def test_company_does_not_matter(by: Compression, size: int) -> None:
    """Oracle: each client alone, bit for bit; longer than a piece, and many to a piece."""
    changes = drawn(5 if size > 1000 else 70, size)
    together, kept = compressed(by, changes), torch.zeros(1, by.kept(size))
    for k in (0, 1, len(changes) - 1):
        alone = by.compress(changes[k : k + 1], kept.clone(), keys(len(changes))[k : k + 1], 1)
        assert torch.equal(together[k : k + 1], alone)


@pytest.mark.parametrize("by", [TopK(0.3), TopK(0.3, feedback=False), QSGD(3, 4), Int8(4)])
def test_no_change(by: Compression) -> None:
    """Oracle: zeros, in some buckets and in all."""
    changes = torch.zeros(3, 18)
    changes[1, 5] = 2.0
    arrived = compressed(by, changes)
    assert not arrived[[0, 2]].any()
    assert arrived[1].tolist() == [0] * 5 + [2] + [0] * 12


@pytest.mark.parametrize("by", [TopK(0.01), TopK(1.0), QSGD(), Int8()])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_client_that_diverged_is_noticed(by: Compression, value: float) -> None:
    """Oracle: the error of an uncompressed mean."""
    kept = ClientState(torch.zeros(by.kept(600)), CPU)
    uplink = Uplink(None, by, 600, torch.zeros(600), kept, np.arange(2), 0, 1, 0)
    mean = WeightedMean(Alone(), 600, 600, 2, None, CPU, uplink=uplink)
    vectors = torch.ones(2, 600)
    vectors[1, 7] = value
    with pytest.raises(Diverged, match="client 1 diverged"):
        mean.add(vectors, block(0, 1))


@pytest.mark.parametrize("by", [TopK(0.01), TopK(1.0), QSGD(), QSGD(1, 600), Int8()])
def test_large_numbers(by: Compression) -> None:
    """Oracle: the largest number of a bucket is a multiple of the unit, as ever; squares of it are infinite."""
    change = torch.ones(2, 600)
    change[1, 7] = 3e38
    kept = torch.zeros(2, by.kept(600))
    arrived = by.compress(change, kept, np.arange(2, dtype=np.uint64), 1)
    assert arrived.isfinite().all()
    assert arrived[1, 7].item() == pytest.approx(3e38, rel=1e-5)
    alone = by.compress(change[:1], kept[:1].clone().zero_(), np.arange(1, dtype=np.uint64), 1)
    assert torch.equal(arrived[:1], alone), "whoever it is beside"


# What it takes


@pytest.mark.parametrize(
    ("by", "each"),
    [
        (Dense(), 2600),
        (TopK(0.1), 65 * 8),
        (TopK(0.01), 6 * 8),  # of 6.5
        (TopK(0.0001), 8),
        (QSGD(7, 512), 325 + 2 * 4),  # 4 bits for 15 values
        (QSGD(1, 100), 163 + 7 * 4),  # 2 bits for 3
        (QSGD(8, 650), 407 + 4),  # 5 bits for 17: 406.25 bytes
        (Int8(), 650 + 4),
        (Int8(64), 650 + 11 * 4),
    ],
)
def test_bytes(by: Compression, each: int, tmp_path: Path) -> None:
    """Oracle: by hand, of 650 parameters; what is received stays as it is. The virtual clock goes by them, too."""
    conditions = Heterogeneous(seconds_per_step=0.5, speed_spread=0, download=1000, upload=100, bandwidth_spread=0)
    settings: dict[str, Any] = {"conditions": conditions, "local": LocalTraining(steps=2), "evaluate_every": 0}
    made = run(tmp_path / "run.h5", compression=by, **settings)
    assert made.rounds["bytes_up"].tolist() == [4 * each]
    assert made.rounds["bytes_down"].tolist() == [4 * 4 * WEIGHTS]
    np.testing.assert_allclose(made.clients["virtual_seconds"], 2.6 + 2 * 0.5 + each / 100)


def test_bytes_with_statistics_and_two_vectors(tmp_path: Path) -> None:
    """Oracle: by hand from the numbers of parameters and statistics: SCAFFOLD sends statistics with models only."""
    layout = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU).layout
    d, b = layout.parameters, layout.size - layout.parameters
    assert b > 0
    settings: dict[str, Any] = {"model": LeNet(), "local": LocalTraining(steps=1), "evaluate_every": 0}
    for algorithm, vectors in ((FedAvg(), 1), (SCAFFOLD(), 2)):
        made = run(tmp_path / "run.h5", algorithm, compression=Int8(100), overwrite=True, **settings)
        assert made.rounds["bytes_up"].tolist() == [4 * (vectors * (d + 4 * -(-d // 100)) + 4 * b)]


# What is refused


@pytest.mark.parametrize("name", ["LocalOnly", "Centralized"])
def test_methods_without_changes_refuse_it(name: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", name, "--compression", "TopK"])
    assert str(error.value) == f"--compression = TopK: cannot be combined with {name}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0.0), "share = 0.0: must be above 0 and at most 1"),
        (lambda: TopK(1.5), "share = 1.5: must be above 0 and at most 1"),
        (lambda: TopK(float("nan")), "share = nan: must be above 0 and at most 1"),
        (lambda: TopK(forget_after=0), "forget_after = 0: must be at least 1"),
        (lambda: TopK(feedback=False, forget_after=3), "forget_after = 3: must be null without feedback"),
        (lambda: QSGD(0), "levels = 0: must be at least 1 and below 2^15"),
        (lambda: QSGD(2**15), "levels = 32768: must be at least 1 and below 2^15"),
        (lambda: QSGD(bucket=0), "bucket = 0: must be at least 1"),
        (lambda: Int8(0), "chunk = 0: must be at least 1"),
    ],
)
def test_values_that_cannot_be(make: Callable[[], Compression], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput) as error:
        make()
    assert str(error.value) == message
