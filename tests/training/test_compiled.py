"""Compiled local steps give what uncompiled ones give, and what compiled code cannot know is refused."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms import FedProx
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.federation.client_state import ClientState
from fedmpi.models import Model
from fedmpi.training.choice import STEPS_THAT_PAY, choose
from fedmpi.training.compiled import MOST, Compiler, fingerprint, lacking
from fedmpi.training.flat import FlatModel
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import LocalWork
from tests.support.experiments import CPU, Alone, network, read
from tests.training.test_further_gradients import Sharp
from tests.training.test_sidebyside import SIZES, Both, block

pytestmark = pytest.mark.skipif(bool(lacking()), reason=str(lacking()))


class Dropped(Model):
    """Layers with random numbers, statistics and odd widths."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        inputs = int(np.prod(shape))
        hidden = nn.Linear(inputs, 17), nn.BatchNorm1d(17), nn.GELU(), nn.Dropout(0.4)
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(17, classes))


def compiled(both: Both, at_once: int) -> SideBySideTrainer:
    side = both.side
    work = LocalWork(both.task, side.model, side.samples, side._shards, side._pixels, side.settings, side._seed)
    return SideBySideTrainer(work, at_once, is_compiled=True)


def test_the_same_training() -> None:
    """Oracle: uncompiled, to rounding. And a client's bits do not depend on the clients beside it.

    The method asks for further gradients, the optimizer has momentum, and blocks have finished clients.
    """
    both = Both(Dropped(), momentum=0.9, weight_decay=0.01)
    method = Sharp(ahead=1)
    method.task = both.task
    expected = both.together(method)
    expected_weights = expected.weights.clone()
    trainer = compiled(both, 8)
    start = both.start.expand(len(SIZES), -1)
    found = trainer.train(block([*range(len(SIZES))], {}, None), start, method, 3, 10)
    weights = found.weights.clone()
    moved = (expected_weights - both.start).norm(dim=1)
    assert ((weights - expected_weights).norm(dim=1) <= 1e-4 * moved).all()
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-4)
    some = trainer.train(block([1, 4, 6], {}, None), start[:3], method, 3, 10)
    assert torch.equal(some.weights, weights[[1, 4, 6]])
    assert (some.loss == found.loss[[1, 4, 6]]).all()


class Half:
    """Something that a method has."""

    def __init__(self, by: float) -> None:
        self.by = by

    def of(self, x: Tensor) -> Tensor:
        return x * self.by


class Holder:
    """A method as the fingerprint sees it."""

    server_state = ("weights",)

    def __init__(self) -> None:
        self.mu, self.names, self.half = 0.1, ["a", "b"], Half(0.5)
        self.weights, self.table = torch.zeros(3), torch.ones(2)
        self.rule = self.half.of


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("pass", False),
        ("other.weights = torch.ones(3)", False),
        ("other.mu = 0.2", True),
        ("other.names = ['a', 'c']", True),
        ("other.half.by = 0.4", True),
        ("other.table = torch.ones(2)", True),
        ("other.rule = Half(0.4).of", True),
    ],
)
def test_what_enters_compiled_code(change: str, differs: bool) -> None:
    one = Holder()
    other = copy.copy(one)
    before = fingerprint(one)
    exec(change)
    assert (fingerprint(other) != before) is differs
    hash(before)


def test_clients_that_are_trained_do_not_change_the_code() -> None:
    """A method keeps its clients' vectors, whose memory is handed out row by row."""
    method = Holder()
    method.controls = ClientState(torch.zeros(3), CPU)  # type: ignore[attr-defined]
    before = fingerprint(method)
    method.controls[block([0, 1], {}, None)] = torch.ones(2, 3)  # type: ignore[attr-defined]
    assert fingerprint(method) == before


def scaled(by: float, x: Tensor) -> tuple[Tensor]:
    return (x * by,)


def test_a_function_for_every_key() -> None:
    """Oracle: plain Python; a number that Python computes is part of the compiled code."""
    compiler, x = Compiler(CPU), torch.arange(3.0)
    for by in (2.0, 3.0, 2.0):
        (found,) = compiler.call(partial(scaled, by), x, by)
        assert torch.equal(found, x * by)
    compiler._functions |= dict.fromkeys(range(100, 100 + MOST - 2), compiler._functions[2.0])
    with pytest.raises(
        BadInput, match=r"--local.compile = on: must be off, because something .* changes all the time"
    ):
        compiler.call(lambda x: (x,), x, "one more")


def test_what_python_counts_is_noticed() -> None:
    """In the second call, where compiled code repeats what it was in the first."""
    calls = []

    def counting(x: Tensor) -> tuple[Tensor]:
        calls.append(x)
        return (x * len(calls),)

    compiler, x = Compiler(CPU), torch.ones(2)
    compiler.call(lambda x: (x,), x, "another")
    compiler._functions["counting"] = compiler._compiled(counting, x)
    calls.clear()
    compiler.call(counting, x, "counting")
    with pytest.raises(BadInput, match="gives other results than the uncompiled one: values up to 2 differ by 1"):
        compiler.call(counting, x, "counting")


def test_what_cannot_be_compiled_is_refused() -> None:
    def depends(x: Tensor) -> tuple[Tensor]:
        return (x * 2 if x.sum().item() > 0 else x,)

    with pytest.raises(BadInput, match="must be off, because PyTorch cannot compile the local step: "):
        Compiler(CPU).call(depends, torch.ones(2), None)


def choice(rounds: int, **settings: Any) -> tuple[int, bool]:
    digits = read(Digits())
    samples = Samples(digits.train_x, digits.train_y, None, None, CPU)
    flat = FlatModel(network(Dropped(), (1, 8, 8), 10), CPU)
    local = LocalTraining(epochs=1, **settings)
    method = FedProx()
    work = LocalWork(method.task, flat, samples, [np.arange(10)] * 100, lambda client: None, local, 0)
    found = choose(Alone(), work, 50, rounds, method)
    return found.at_once, found.is_compiled


def test_when_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    pays = STEPS_THAT_PAY // 50
    assert choice(pays) == (256, False)
    assert choice(pays, compile="auto") == (50, True)  # the whole cohort
    assert choice(pays - 1, compile="auto") == (256, False)
    assert choice(1, compile="on", vectorize=3) == (3, True)
    assert choice(pays, compile="auto", vectorize="off") == (1, False)
    with pytest.raises(
        BadInput, match=r"must be off for clients that are trained one by one; set --local\.vectorize"
    ):
        choice(pays, compile="on", vectorize="off")
    monkeypatch.setenv("CXX", "nosuch")
    assert choice(pays, compile="auto") == (256, False)
    with pytest.raises(BadInput, match="= on: must be off, because there is no C\\+\\+ compiler 'nosuch'"):
        choice(pays, compile="on")


def test_rounds_cannot_be_added_to_a_run_that_chose_by_them(tmp_path: Path) -> None:
    options = "--clients 3 --cohort 2 --rounds 1 --local.steps 1 --model LogisticRegression --local.compile auto"
    path = tmp_path / "run.h5"
    for rounds, more in (("1", ()), ("2", ("--resume",))):
        experiment, config = parse([*options.split(), "--rounds", rounds, "--output", str(path), *more])
        if more:
            with pytest.raises(BadInput, match=r"--local\.compile auto"):
                experiment.complete(Alone(), config)
        else:
            experiment.complete(Alone(), config)
