"""Several trainings of a client in a round: parts of the model, streams, optimizers and lengths of their own."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.models import MLP, LeNet, McMahanCNN, Model
from fedmpi.policies import Cohort, Heterogeneous
from fedmpi.training.block import WHOLE, Block, Phase
from fedmpi.training.flat import FlatModel
from fedmpi.training.layout import Layout
from fedmpi.training.plain import LARGE
from fedmpi.training.settings import LocalTraining
from tests.support.digits import Few
from tests.support.experiments import (
    Client,
    Cut,
    network,
    normalised,
    plain_partly_shared,
    plain_training,
    read,
    run,
    state,
    tensors,
)
from tests.training.test_sidebyside import MODELS, SIZES, Both, compare, double

__all__ = ["double"]  # a fixture

SHAPE = (1, 8, 8)
DIGITS = read(Digits())
# McMahan's network is updated tensor by tensor, the others as a whole.
ON_DIGITS: dict[str, Model] = {"mlp": MLP((33, 17)), "lenet": LeNet(), "large": McMahanCNN()}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 1.0},
    "momentum unclipped": {"momentum": 0.9, "weight_decay": 0.1},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
}
PARTS = ("head", "body")


def columns(part: str, layout: Layout) -> tuple[slice, ...]:
    """The head, or all that is not the head."""
    head = layout.segments["head"]
    return (head if part == "head" else slice(head.stop, layout.size),)


def frozen(part: str, layout: Layout) -> slice:
    """What a phase of this part must leave alone; a frozen norm layer keeps its statistics, too."""
    return slice(layout.segments["head"].stop, layout.size) if part == "head" else layout.segments["head"]


def client(model: Model, count: int = 41, **settings: Any) -> Client:
    x, y = DIGITS.train_x[:count], DIGITS.train_y[:count]
    local = LocalTraining(**{"epochs": 2, "batch_size": 10, "lr": 0.02, **settings})
    return Client(network(model, SHAPE, 10), x, y, local, Digits())


# Parts of the model


@pytest.mark.parametrize("model", ON_DIGITS)
@pytest.mark.parametrize("settings", ["plain", "momentum", "momentum unclipped"])
@pytest.mark.parametrize("part", PARTS)
def test_a_phase_is_a_plain_loop(model: str, settings: str, part: str) -> None:
    """Oracle: torch.optim.SGD over the part's parameters alone, normalisation of a frozen body in evaluation mode."""
    one = client(ON_DIGITS[model], **SETTINGS[settings])
    layout = one.model.layout
    assert (layout.parameters >= LARGE) == (model == "large")
    work = one.train(phase=Phase("some", columns=columns(part, layout)))
    plain = network(ON_DIGITS[model], SHAPE, 10)
    heads = {entry.name for entry in layout.entries if entry.segment == "head"}
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_((name in heads) == (part == "head"))
    x, y = normalised(DIGITS.train_x[:41], Digits()), torch.from_numpy(DIGITS.train_y[:41])
    local = LocalTraining(epochs=2, batch_size=10, lr=0.02, **SETTINGS[settings])
    loss = plain_training(plain, x, y, local, phase="some")
    plain.requires_grad_(True)
    way = one.moved.norm()
    assert way > 0.01
    assert (one.model.weights[0] - FlatModel(plain, one.model.device).weights[0]).norm() <= 1e-5 * way
    assert work.loss[0] == pytest.approx(loss, rel=1e-5)
    assert torch.equal(one.model.weights[:, frozen(part, layout)], one.start[:, frozen(part, layout)])


@pytest.mark.parametrize("model", ["mlp", "mlp batch", "lenet batch"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("part", PARTS)
def test_what_is_frozen_keeps_its_bits(model: str, settings: str, part: str) -> None:
    """Oracle: the weights received, for clients one by one and side by side; every segment of the part moves."""
    both = Both(MODELS[model], **SETTINGS[settings])
    layout = both.plain.model.layout
    phase = Phase(part, columns=columns(part, layout))
    one_by_one, _ = both.one_by_one(FedAvg(), phase)
    for weights in (one_by_one, both.together(FedAvg(), phase=phase).weights):
        kept = frozen(part, layout)
        assert torch.equal(weights[:, kept], both.start[:, kept].expand(len(SIZES), -1))
        for name, segment in layout.segments.items():
            if (name == "head") == (part == "head") and segment.start < segment.stop:
                several = slice(-1)  # the last client has one sample, and so no statistics
                assert (weights != both.start)[several, segment].any(1).all(), name


@pytest.mark.parametrize("model", ["mlp", "lenet batch"])
@pytest.mark.parametrize("settings", ["plain", "momentum", "adam"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.usefixtures("double")
def test_side_by_side_as_one_by_one(model: str, settings: str, part: str) -> None:
    """Oracle: training one by one, in double precision, to 1e-12 of the way; some do a part of their work only."""
    both = Both(MODELS[model], **SETTINGS[settings])
    phase = Phase(part, 3, columns(part, both.plain.model.layout))
    completed = np.array([0.2, 1, 0.5, 0.34, 1, 0.01, 0.7, 1])
    compare(both, FedAvg(), 1e-12, phase, completed)


@pytest.mark.parametrize("model", ON_DIGITS)
@pytest.mark.parametrize("settings", ["plain", "momentum"])
def test_phases_leave_no_trace(model: str, settings: str) -> None:
    """Oracle: the bits of training the whole model in a new process's stead, before and after phases of its parts."""
    one, other = client(ON_DIGITS[model], **SETTINGS[settings]), client(ON_DIGITS[model], **SETTINGS[settings])
    layout = one.model.layout
    expected = one.train().weights.clone()
    for part in PARTS:
        alone = client(ON_DIGITS[model], **SETTINGS[settings])
        phase = Phase(part, columns=columns(part, layout))
        made = other.train(phase=phase).weights.clone()
        assert torch.equal(made, alone.train(phase=phase).weights)
        assert torch.equal(made, one.train(phase=phase).weights)
    assert torch.equal(other.train().weights, expected)
    assert torch.equal(one.train(phase=Phase(columns=(slice(0, layout.size),))).weights, expected)


def test_an_elementwise_direction_sees_the_part(double: None) -> None:
    """Oracle: shapes, the columns of what was given, and one by one as side by side."""
    both = Both(MODELS["lenet batch"])
    layout = both.plain.model.layout
    part = slice(layout.segments["head"].stop, layout.parameters)
    shift = torch.randn(len(SIZES), layout.parameters, generator=torch.Generator().manual_seed(0))
    number = torch.arange(float(len(SIZES)))[:, None]

    class Shifted(FedAvg):
        direction_is_elementwise = True

        def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
            rows = block["number"][:, 0].long()
            assert gradient.shape == weights.shape == start.shape == (len(rows), part.stop - part.start)
            assert torch.equal(start, both.start[:, part].expand(len(rows), -1))
            assert torch.equal(block["shift"], shift[rows][:, part])
            return gradient + block["shift"]

    compare(both, Shifted(), 1e-12, Phase(columns=(part,)), shift=shift, number=number)


# Streams of their own


def test_names_have_streams_of_their_own() -> None:
    """Oracle: full batches of one order cannot tell them apart, small batches can; a name decides, nothing else."""
    for size, alike in ((41, True), (10, False)):
        one = client(MLP((20,)), batch_size=size)
        weights = [one.train(phase=phase).weights.clone() for phase in (WHOLE, Phase("a"), Phase("b"), Phase("a"))]
        assert torch.equal(weights[1], weights[3])
        for first, second in ((0, 1), (1, 2), (0, 2)):
            close = torch.allclose(weights[first], weights[second], rtol=1e-4, atol=1e-6)
            assert close == alike


@pytest.mark.parametrize("model", ["mlp", "dropout"])
def test_names_side_by_side(model: str, double: None) -> None:
    """Oracle: one by one, with augmentation and dropout drawn from the phase's streams; another name, other bits."""
    both = Both(MODELS[model], augmentation="crop_flip")
    compare(both, FedAvg(), 1e-12, Phase("personal"))
    some, others = (both.together(FedAvg(), phase=Phase(name)).weights.clone() for name in ("personal", ""))
    assert (some != others).any(1).all()


# Other lengths, and partial work


def test_steps_of_a_phase() -> None:
    """Oracle: by hand: passes of the phase, or of the settings, times batches of 4 a pass; a share, rounded."""
    sizes = np.array(SIZES)
    batches = -(-sizes // 4)
    everybody = np.arange(len(SIZES))
    for settings, phase, expected in (
        ({}, WHOLE, 2 * batches),
        ({}, Phase("a", 5), 5 * batches),
        ({"steps": 7}, WHOLE, np.full(len(SIZES), 7)),
        ({"steps": 7}, Phase("a", 1), batches),
    ):
        both = Both(MLP((5,)), **settings)  # type: ignore[arg-type]
        for trainer in (both.plain, both.side):
            assert trainer.count_steps(everybody, None, phase).tolist() == expected.tolist()
            for share in (0.01, 0.3, 0.5, 1.0):
                some: NDArray[np.float64] = np.full(len(SIZES), share)
                rounded = [max(round(share * steps), 1) for steps in expected.tolist()]
                assert trainer.count_steps(everybody, some, phase).tolist() == rounded
        _, works = both.one_by_one(FedAvg(), phase)
        assert [int(work.steps[0]) for work in works] == expected.tolist()
        assert both.together(FedAvg(), phase=phase).steps.tolist() == expected.tolist()


@pytest.mark.parametrize("model", ["mlp", "lenet batch"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_partial_work_is_the_first_steps(model: str, share: float) -> None:
    """Oracle: so many steps asked for outright, bit for bit; others side by side do not matter."""
    both = Both(MODELS[model], momentum=0.9)
    completed = np.ones(len(SIZES))
    completed[0] = share  # the largest client: then no longer the one with most steps
    steps = int(both.plain.count_steps(np.array([0]), completed[:1])[0])
    outright = Both(MODELS[model], momentum=0.9, steps=steps)
    whole, _ = both.one_by_one(FedAvg())
    one_by_one, works = both.one_by_one(FedAvg(), completed=completed)
    expected, exact = outright.one_by_one(FedAvg())
    assert torch.equal(one_by_one[0], expected[0])
    assert (works[0].loss[0], works[0].steps[0]) == (exact[0].loss[0], steps)
    assert torch.equal(one_by_one[1:], whole[1:])
    everybody = both.together(FedAvg()).weights.clone()
    work = both.together(FedAvg(), completed=completed)
    assert torch.equal(work.weights[1:], everybody[1:])
    assert torch.equal(work.weights[0], outright.together(FedAvg()).weights[0])
    assert work.steps[0] == steps
    assert work.loss[0] == pytest.approx(exact[0].loss[0], rel=1e-5)


# Optimizers, rates and batch sizes of their own

#: Of local training; two phases that change it, and the settings that each has then, by hand.
LOCAL: dict[str, Any] = {"epochs": 2, "batch_size": 10, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}
FIRST = Phase("first", epochs=3, batch_size=7, lr=0.01)
SECOND = Phase("second", steps=9, batch_size=16, lr=0.003, optimizer="adam")
CHANGED = (
    (FIRST, LocalTraining(epochs=3, batch_size=7, lr=0.01, momentum=0.9, weight_decay=0.05)),
    (SECOND, LocalTraining(epochs=2, steps=9, batch_size=16, lr=0.003, optimizer="adam", weight_decay=0.05)),
)


def test_settings_of_a_phase() -> None:
    """Oracle: by hand; what is not given stays, also the schedule, and epochs or steps replace both."""
    local = LocalTraining(**LOCAL, schedule="exponential", decay=0.5, clip_norm=3.0, augmentation="flip")
    assert WHOLE.settings(local) is local
    for phase, expected in CHANGED:
        assert phase.settings(LocalTraining(**LOCAL)) == expected
    found = FIRST.settings(local)
    assert (found.schedule, found.clip_norm, found.augmentation) == ("exponential", 3.0, "flip")
    assert found.rate(3, 10) == 0.01 / 4
    by_steps = LocalTraining(steps=5)
    assert Phase(epochs=2).settings(by_steps).count_steps(20, False) == 4
    assert Phase(steps=2).settings(by_steps).count_steps(20, False) == 2
    assert Phase(lr=2).settings(by_steps).count_steps(20, False) == 5
    adam = LocalTraining(optimizer="adam")
    assert Phase(optimizer="sgd").settings(adam) == LocalTraining()


def test_what_a_phase_cannot_have() -> None:
    """Oracle: the messages."""
    local = LocalTraining()
    with pytest.raises(ValueError, match="epochs = 2 and steps = 3: only one can be given"):
        Phase(epochs=2, steps=3).settings(local)
    with pytest.raises(BadInput, match=r"lr = 0.0: must be above 0"):
        Phase(lr=0.0).settings(local)
    with pytest.raises(BadInput, match="batch_size = 0: must be at least 1"):
        Phase(batch_size=0).settings(local)


@pytest.mark.parametrize("model", ON_DIGITS)
def test_phases_of_their_own_in_plain_pytorch(model: str) -> None:
    """Oracle: a new torch.optim optimizer for each phase, one after the other; then training as if none had been."""
    one, alone = (client(ON_DIGITS[model], **LOCAL) for _ in range(2))
    expected = alone.train().weights.clone()
    plain = network(ON_DIGITS[model], SHAPE, 10)
    x, y = normalised(DIGITS.train_x[:41], Digits()), torch.from_numpy(DIGITS.train_y[:41])
    start = one.start
    for phase, settings in CHANGED:
        work = one.train(phase=phase, start=start)
        loss = plain_training(plain, x, y, settings, phase=phase.name)
        flat = FlatModel(copy.deepcopy(plain), one.model.device)
        found, plain = flat.weights, flat.module
        way = (found - start).norm()
        assert way > 0.1
        assert (work.weights - found).norm() <= 1e-4 * way
        assert work.loss[0] == pytest.approx(loss, rel=1e-4)
        start = found.clone()
    assert torch.equal(one.train().weights, expected)


SMALL = Phase("small", epochs=3, batch_size=3, lr=0.01)


@pytest.mark.parametrize("model", ["mlp", "mlp batch", "lenet group"])
@pytest.mark.parametrize(
    ("settings", "phase"),
    [
        ({}, SMALL),
        ({"augmentation": "crop_flip"}, SMALL),
        (SETTINGS["momentum"], Phase("large", steps=7, batch_size=6)),
        (SETTINGS["momentum"], Phase("adam", batch_size=5, lr=0.003, optimizer="adam")),
        (SETTINGS["adam"], Phase("sgd", batch_size=2, optimizer="sgd")),
    ],
    ids=["plain", "augmented", "momentum", "adam after momentum", "sgd after adam"],
)
@pytest.mark.usefixtures("double")
def test_phases_of_their_own_side_by_side(model: str, settings: dict[str, Any], phase: Phase) -> None:
    """Oracle: training one by one, in double precision; some do a part of their work; nothing of it is left."""
    both = Both(MODELS[model], **settings)
    before = both.together(FedAvg()).weights.clone()
    compare(both, FedAvg(), 1e-11, phase, np.array([0.2, 1, 0.5, 0.34, 1, 0.01, 0.7, 1]))
    assert torch.equal(both.together(FedAvg()).weights, before)


@pytest.mark.usefixtures("double")
def test_adam_after_plain_sgd() -> None:
    """Oracle: training one by one; plain SGD takes its steps without an optimizer, but Adam cannot."""
    compare(Both(MODELS["mlp"]), FedAvg(), 1e-11, Phase("adam", lr=0.003, optimizer="adam"))


@pytest.mark.parametrize("model", ["mlp", "lenet group"])
def test_neighbours_do_not_matter(model: str) -> None:
    """Oracle: the same bits in blocks of other clients, with another width of batches than in local training."""
    both = Both(MODELS[model], at_once=3)
    phase = Phase("wide", batch_size=9, optimizer="adam", lr=0.01)
    all_three = both.together(FedAvg(), [0, 4, 7], phase=phase).weights.clone()
    for clients in ([0, 1, 2], [4, 5, 6], [6, 7]):
        found = both.together(FedAvg(), clients, phase=phase).weights
        for place, number in enumerate((0, 4, 7)):
            if number in clients:
                assert torch.equal(found[clients.index(number)], all_three[place])


def test_memory_of_optimizers() -> None:
    """Oracle: by hand: none before it is needed, and then one of each kind, whatever the rates and batch sizes."""
    both = Both(MODELS["mlp"], momentum=0.9)
    for trainer, train in ((both.plain, both.one_by_one), (both.side, both.together)):
        assert not trainer._optimizers
        for phase in (WHOLE, FIRST, SECOND, Phase("third", lr=0.1), Phase("fourth", lr=1e-3, optimizer="adam")):
            train(FedAvg(), phase=phase)
        assert set(trainer._optimizers) == {"sgd", "adam"}


class InTurn(FedAvg):
    """FedAvg with both phases, one after the other."""

    averages_models = False

    @property
    def trainings(self) -> tuple[Phase, ...]:
        return FIRST, SECOND

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort, SECOND):
            first = fed.train(block, start, self, FIRST)
            mean.add(fed.train(block, first.weights.clone(), self, SECOND).weights, block)
        self.server_step(fed, mean.reduce(empty=self.weights))


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [MLP((33,)), MLP((16,), norm="batch")])
def test_a_method_with_two_phases(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: plain PyTorch over two rounds, whose rates follow the schedule; clients of 30 and 25 samples.

    Steps by hand: 3 passes of 5 or 4 batches and 9 steps; the virtual clock knows them before.
    """
    local = LocalTraining(**LOCAL, schedule="exponential", decay=0.5, vectorize=vectorize)
    speeds: dict[str, Any] = {"seconds_per_step": 1.0, "speed_spread": 0.0, "bandwidth_spread": 0.0}
    made = run(
        tmp_path / "run.h5",
        InTurn(),
        dataset=Few(55),
        partition=Cut(30, 25),
        model=model,
        clients=2,
        rounds=2,
        local=local,
        weighting="uniform",
        conditions=Heterogeneous(**speeds, download=1e12, upload=1e12),
    )
    x, y = normalised(DIGITS.train_x[:55], Digits()), torch.from_numpy(DIGITS.train_y[:55])
    start = network(model, SHAPE, 10)

    def train(module: nn.Module, client: int, round: int) -> None:
        mine = slice(0, 30) if client == 0 else slice(30, 55)
        for phase, settings in CHANGED:
            now = replace(settings, lr=settings.lr * 0.5 ** (round - 1))
            plain_training(module, x[mine], y[mine], now, client, round, phase=phase.name)

    _, server = plain_partly_shared(start, (), 2, 2, train)
    for name, tensor in tensors(made).items():
        way = (server[name] - state(start)[name]).norm()
        assert way > 0.01
        assert (tensor - server[name]).norm() <= 1e-3 * way, name
    assert made.clients["steps"].tolist() == [3 * 5 + 9, 3 * 4 + 9] * 2
    np.testing.assert_allclose(made.clients["virtual_seconds"], made.clients["steps"], rtol=1e-6)
