"""FedDF: FedAvg without steps, plain PyTorch with all teachers in one place, and the ways to have samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi import randomness
from fedmpi.algorithms.feddf import FedDF
from fedmpi.data import Arrays, Dataset, Digits, Dirichlet, Progress
from fedmpi.errors import BadInput
from fedmpi.models import BiLSTM, LeNet, LogisticRegression, Model
from fedmpi.models.generators.images import ImageGenerator
from fedmpi.training.settings import LocalTraining
from tests.jobs.words import Words
from tests.support.digits import DIGITS, beside_fedavg
from tests.support.distillation import SAMPLES, Plain, distance, flat, watched_run
from tests.support.experiments import SEED, Cut, normalised, run

PLAIN, NORMALISED = LeNet(norm="none"), LeNet()
FEW: dict[str, Any] = {"generator": ImageGenerator(20), "generator_steps": 3, "student_steps": 3, "batch_size": 16}


class Unlabelled(Dataset):
    """The last digits, all with the same label."""

    classes, mean, std = 3, (0.9,), (7.0,)  # neither is looked at

    def read(self, progress: Progress) -> Arrays:
        x, none = DIGITS.train_x[-40:], np.zeros(40, np.int64)
        return Arrays(x, none, x, none)


# The whole method


@pytest.mark.parametrize("options", [FEW, {"proxy": Digits()}])
def test_without_steps_it_is_fedavg(options: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit."""
    beside_fedavg(tmp_path, FedDF(**{**options, "generator_steps": 0, "student_steps": 0}), NORMALISED, "off")


@pytest.mark.parametrize("model", [PLAIN, NORMALISED])
def test_teachers_on_their_ranks_and_in_one_place(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: plain PyTorch, over two rounds: generator and student, to 1 % of their ways."""
    algorithm = FedDF(decay=0.5, generator_lr=1e-3, **FEW)
    _, phases = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, model)
    for phase in phases:
        plain = Plain(algorithm, model, phase)
        plain.feddf()
        assert phase.generator is not None
        assert phase.learned is not None
        assert distance(phase.learned, flat(plain.generator), phase.generator) < 0.01
        assert distance(phase.end, flat(plain.student), phase.start) < 0.01
        for before, after in zip(phase.before, phase.teachers, strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize("model", [PLAIN, NORMALISED])
def test_proxy_data(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: plain PyTorch by Adam with a cosine, on images that are normalised like the data set's."""
    algorithm = FedDF(Unlabelled(), student_steps=4, batch_size=15, student_lr=1e-3, decay=0.5)
    made, phases = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, model)
    assert "generator_resets" not in made.rounds
    images = normalised(DIGITS.train_x[-40:], Digits())
    for phase in phases:
        plain = Plain(algorithm, model, phase)
        adam = torch.optim.Adam(plain.student.parameters(), lr=1e-3 * plain.decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=4)
        rng = randomness.stream(SEED, "FedDF proxies", phase.round)
        order = np.concatenate([rng.permutation(40), rng.permutation(40)])
        plain.student.train()
        for step in range(4):
            x = images[order[15 * step : 15 * (step + 1)]]
            target = torch.stack([teacher(x) for teacher in plain.teachers]).mean(0).softmax(1)
            plain.step(adam, -(target * plain.student(x).log_softmax(1)).sum(1).mean())
            schedule.step()
        assert distance(phase.end, flat(plain.student), phase.start) < 0.01


def test_the_student_becomes_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: after many steps the probabilities of the ensemble, which a linear model can have.

    It starts from another mean, for one client has ten times the other's samples.
    """
    algorithm = FedDF(Unlabelled(), student_steps=400, batch_size=40, student_lr=0.02)
    settings: dict[str, Any] = {"partition": Cut(70, 7), "clients": 2, "rounds": 1}
    _, (phase,) = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, LogisticRegression(), **settings)
    plain = Plain(algorithm, LogisticRegression(), phase)
    images = normalised(DIGITS.train_x[-40:], Digits())
    wanted = torch.stack([teacher(images) for teacher in plain.teachers]).mean(0).softmax(1)
    start = plain.student(images).softmax(1)
    plain.phase.start = phase.end
    end = Plain(algorithm, LogisticRegression(), plain.phase).student(images).softmax(1)
    assert (start - wanted).abs().max() > 0.1
    assert (end - wanted).abs().max() < 0.02


@pytest.mark.parametrize("options", [FEW, {"proxy": Unlabelled(), "student_steps": 3, "batch_size": 16}])
@pytest.mark.parametrize("model", [PLAIN, NORMALISED])
def test_a_teacher_that_is_the_student(
    options: dict[str, Any], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: one client's model is the mean, so nothing is to be learned: the gradient is below 1e-6.

    Adam would take a step of the learning rate on any gradient, so that is small with proxy data.
    """
    lr = 1e-7 if "proxy" in options else 0.1
    algorithm = FedDF(weight_decay=0.0, student_lr=lr, student_mode="eval", **options)
    settings: dict[str, Any] = {"partition": Cut(SAMPLES), "clients": 1, "rounds": 1}
    _, (phase,) = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, model, **settings)
    assert torch.equal(phase.start, phase.before[0])
    assert (phase.end - phase.start).abs().max() < 1e-6


def test_it_learns(tmp_path: Path) -> None:
    """Oracle: the digits, most of which it must know; by proxy data better than the mean of unlike clients."""
    settings: dict[str, Any] = {"model": NORMALISED, "rounds": 3, "evaluate_means": "cohort", "clients": 3}
    settings |= {"partition": Dirichlet(0.1), "local": LocalTraining(epochs=1, batch_size=20)}
    made = run(tmp_path / "run.h5", FedDF(Digits(), student_steps=20, student_lr=0.003), **settings)
    assert made.rounds["test_accuracy"].mean() > made.rounds["cohort_mean_accuracy"].mean()
    assert made.statistics().last > 0.6


# What cannot be


@pytest.mark.parametrize(
    ("proxy", "settings", "message"),
    [
        (
            Words(),
            {},
            r"--algorithm.proxy = tests.jobs.words.Words: has samples of int\d+ \(\d+,\) and \d+ tokens, but those",
        ),
        (
            Digits(),
            {"dataset": Words(), "model": BiLSTM()},
            r"--algorithm.proxy = Digits: has samples of uint8 \(1, 8",
        ),
    ],
)
def test_other_samples(proxy: Dataset, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Oracle: one line, before anything is written."""
    with pytest.raises(BadInput, match=message) as error:
        run(tmp_path / "run.h5", FedDF(proxy), **{"clients": 2, **settings})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run.h5").exists()


def test_texts_have_proxies_too(tmp_path: Path) -> None:
    """Oracle: it moves the model; a generator is refused."""
    settings: dict[str, Any] = {"dataset": Words(), "model": BiLSTM(embedding=4, hidden=4), "clients": 2}
    made = run(tmp_path / "run.h5", FedDF(Words(), student_steps=3), **settings)
    plain = run(tmp_path / "plain.h5", **settings)
    assert made.weights_sha256 != plain.weights_sha256
    with pytest.raises(BadInput, match="generator = ImageGenerator: cannot make text"):
        run(tmp_path / "none.h5", FedDF(), **settings)


def test_both_at_once() -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match="generator = ImageGenerator: cannot be combined with proxy data"):
        FedDF(Digits(), ImageGenerator())
