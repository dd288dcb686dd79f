"""A step over several batches is the step over one large batch; also with method hooks, side by side and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.models import Model
from fedmpi.training.block import Phase
from fedmpi.training.compiled import lacking
from tests.support.experiments import Reader
from tests.support.experiments import block as clients_of
from tests.training.test_compiled import compiled
from tests.training.test_further_gradients import Sharp
from tests.training.test_sidebyside import MODELS, SIZES, Both, block, compare, double

__all__ = ["double"]  # a fixture

#: Steps of 12 samples, of which clients of 21, 13, 9, ... samples have a part left.
WHOLE: dict[str, Any] = {"batch_size": 12}
PARTS: dict[str, Any] = {"batch_size": 4, "accumulate": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.5},
    "adamw by step": {
        "optimizer": "adamw",
        "lr": 0.01,
        "weight_decay": 0.3,
        "schedule": "cosine",
        "schedule_by": "step",
    },
    "steps": {"steps": 5},
    "augmented": {"augmentation": "crop_flip"},
}


#: Each part would have dropout of its own.
MODELS = {**MODELS, "reader": Reader(embedding=33, hidden=17, norm="none", dropout=0.0)}


class Dropped(Model):
    """Units that are dropped at random."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(int(np.prod(shape)), classes))


class Counted(Model):
    """Notes the largest batch that it gets."""

    largest = 0

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))

        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            Counted.largest = max(Counted.largest, len(inputs[0]))

        network.register_forward_pre_hook(note)
        return network


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        *(("mlp", settings) for settings in SETTINGS),
        ("lenet group", "momentum"),
        ("lenet group", "augmented"),
        ("reader", "momentum"),
        ("next token", "steps"),
        ("unet group", "adamw by step"),
    ],
)
@pytest.mark.usefixtures("double")
def test_one_large_batch(model: str, settings: str) -> None:
    """Oracle: steps of one batch of 12 samples, one by one; to 1e-6 of the way if samples have float32 weights."""
    tolerance = 1e-6 if model in ("next token", "unet group") else 1e-11
    expected, works = Both(MODELS[model], **WHOLE, **SETTINGS[settings]).one_by_one(FedAvg())
    parts = Both(MODELS[model], **PARTS, **SETTINGS[settings])
    found, again = parts.one_by_one(FedAvg())
    moved = (expected - parts.start).norm(dim=1)
    assert (moved > 0).all()
    assert ((found - expected).norm(dim=1) <= tolerance * moved).all()
    for one, other in zip(works, again, strict=True):
        assert one.steps.tolist() == other.steps.tolist()
        assert one.loss[0] == pytest.approx(other.loss[0], rel=1e-6)
    compare(parts, FedAvg(), tolerance)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.usefixtures("double")
def test_further_gradients(ahead: int) -> None:
    """Oracle: steps of one batch; the method's direction asks for gradients of the same and of the next step."""
    expected, _ = Both(MODELS["mlp"], **WHOLE).one_by_one(Sharp(ahead))
    parts = Both(MODELS["mlp"], **PARTS)
    found, _ = parts.one_by_one(Sharp(ahead))
    assert ((found - expected).norm(dim=1) <= 1e-10 * (expected - parts.start).norm(dim=1)).all()
    compare(parts, Sharp(ahead), 1e-10)


@pytest.mark.usefixtures("double")
def test_the_direction_is_asked_once_per_step() -> None:
    """Oracle: steps of one batch, with a pull that would be stronger if it were added to every part."""
    expected, _ = Both(MODELS["mlp"], **WHOLE).one_by_one(FedProx(5.0))
    parts = Both(MODELS["mlp"], **PARTS)
    found, _ = parts.one_by_one(FedProx(5.0))
    assert ((found - expected).norm(dim=1) <= 1e-11 * (expected - parts.start).norm(dim=1)).all()
    compare(parts, FedProx(5.0), 1e-11)


@pytest.mark.usefixtures("double")
def test_gradients_without_steps() -> None:
    """Oracle: the gradients of batches of 12."""
    whole, parts = Both(MODELS["lenet group"], **WHOLE).plain, Both(MODELS["lenet group"], **PARTS).plain
    everybody, algorithm = clients_of(*range(len(SIZES))), FedAvg()
    start = whole.model.weights.expand(len(SIZES), -1).clone()
    expected, found = (trainer.gradients(everybody, start, algorithm, 2) for trainer in (whole, parts))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_parts_have_random_numbers_of_their_own() -> None:
    """Oracle: steps over two times the same sample: with other units dropped, they differ from steps over it once."""
    found = []
    for accumulate in (1, 2):
        both = Both(Dropped(), steps=1, batch_size=1, accumulate=accumulate)
        both.plain.deal([np.zeros(2, dtype=np.int64)])
        work = both.plain.train(clients_of(0, samples=2), both.start, FedAvg(), 1, 1)
        found.append((work.weights - both.start).clone())
    dropped = [(move.view(10, -1)[:, :192] == 0).all(0).float().mean() for move in (way[0, 10:] for way in found)]
    assert not torch.equal(*found)
    assert 0.4 < dropped[0] < 0.6
    assert 0.15 < dropped[1] < 0.35, "units that both parts have dropped"


def test_the_memory_of_one_batch() -> None:
    """Oracle: no batch of the network has more samples than one of the step's batches; it does without parts."""
    for settings, largest in ((PARTS, 4), (WHOLE, 12)):
        Counted.largest = 0
        Both(Counted(), **settings).one_by_one(FedAvg())
        assert Counted.largest == largest


@pytest.mark.parametrize("model", ["mlp", "lenet group", "next token"])
def test_bits_do_not_depend_on_the_company(model: str) -> None:
    """Oracle: the same client beside all others, of which some have no samples in some parts."""
    both = Both(MODELS[model], **PARTS, **SETTINGS["adamw by step"])
    everybody = both.together(FedAvg()).weights.clone()
    for company in ([0], [0, 7], [1, 2, 3, 4]):
        assert torch.equal(both.together(FedAvg(), company).weights, everybody[company]), company


@pytest.mark.skipif(bool(lacking()), reason=str(lacking()))
def test_compiled() -> None:
    """Oracle: uncompiled, to rounding."""
    both = Both(Dropped(), **PARTS, **SETTINGS["momentum"])
    expected = both.together(FedAvg()).weights.clone()
    method = FedAvg()
    method.task = both.task
    start = both.start.expand(len(SIZES), -1)
    found = compiled(both, 8).train(block([*range(len(SIZES))], {}, None), start, method, 3, 10).weights
    moved = (expected - both.start).norm(dim=1)
    assert ((found - expected).norm(dim=1) <= 1e-4 * moved).all()


@pytest.mark.usefixtures("double")
def test_in_a_phase() -> None:
    """Oracle: steps of one batch of a phase's own size."""
    expected, _ = Both(MODELS["mlp"]).one_by_one(FedAvg(), Phase("own", batch_size=6))
    parts = Both(MODELS["mlp"], accumulate=3)
    found, _ = parts.one_by_one(FedAvg(), Phase("own", batch_size=2))
    assert ((found - expected).norm(dim=1) <= 1e-11 * (expected - parts.start).norm(dim=1)).all()
    compare(parts, FedAvg(), 1e-11, Phase("own", batch_size=2))
