"""FedFTG: the paper's formulas in one graph with all teachers in one place, its signs, and what is left alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from fedmpi import randomness, results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.calibrated import FedLC
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddyn import FedDyn
from fedmpi.algorithms.fedexp import FedExP
from fedmpi.algorithms.fedftg import FedFTG
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.algorithms.ifca import IFCA
from fedmpi.algorithms.mimelite import MimeLite
from fedmpi.algorithms.moon import MOON
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.data import Arrays, Dataset, Progress
from fedmpi.errors import BadInput
from fedmpi.models import LeNet, Model
from fedmpi.models.generators import Generator
from fedmpi.models.generators.images import DeepImageGenerator, ImageGenerator
from fedmpi.policies import Cohort
from fedmpi.policies.attacks import LabelFlip
from fedmpi.policies.compression import Int8
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.results.summary import summarize
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import OneVector, Regression
from tests.jobs.words import Words
from tests.support.digits import DIGITS, SHAPE, Few
from tests.support.distillation import SAMPLES, Plain, ServerPhase, distance, flat, loaded, watched_run
from tests.support.experiments import CPU, SEED, Cut, Reader, network, run

PLAIN, NORMALISED = LeNet(norm="none"), LeNet()
FEW: dict[str, Any] = {"generator": ImageGenerator(20), "iterations": 2, "student_steps": 3, "batch_size": 16}


def discrepancy(plain: Plain, noise: Tensor, y: Tensor, generating: bool) -> float:
    """Of student and teachers on the same noise and labels, in the modes of a step of the one or the other."""
    counts = torch.from_numpy(plain.phase.counts)
    x = plain.generator.train(generating)(noise, y)
    log_q = log_softmax(plain.student.train(not generating)(x), 1)
    parts = [share[y] for share in counts / (counts.sum(0) + 1e-12)]
    return sum((a * plain.kl(t, x, log_q)).mean().item() for a, t in plain.pairs(parts))


# The whole method


@pytest.mark.parametrize("model", [PLAIN, NORMALISED])
@pytest.mark.parametrize("variant", ["paper", "repo"])
def test_teachers_on_their_ranks_and_in_one_place(
    variant: Any, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: plain PyTorch with all paths of a loss in one graph: the first gradient, and all of two phases.

    It tells a path that is cut, a mean in the wrong place, a mode, and a schedule from another.
    """
    options = {**FEW, "generator_steps": 2, "generator_lr": 1e-3, "student_lr": 0.05}
    options |= {"class_weight": 0.7, "diversity_weight": 1.3}
    algorithm = FedFTG(FedAvg(), variant, decay=0.5, **options)
    _, phases = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, model)
    assert len(phases) == 2
    for phase in phases:
        first: list[Tensor] = []
        plain = Plain(algorithm, model, phase)
        step = plain.step

        def noting(optimizer: Any, loss: Tensor, first: list[Tensor] = first, step: Any = step) -> None:
            step(optimizer, loss)
            if isinstance(optimizer, torch.optim.Adam) and not first:
                found = {name: p.grad for name, p in plain.generator.named_parameters()}  # noqa: B023
                layout = algorithm.synthesizer.layout
                first.append(torch.zeros(layout.size))
                for entry in layout.entries:
                    if entry.is_parameter:
                        gradient = found[entry.name]
                        assert gradient is not None
                        entry.view(first[0]).copy_(gradient)

        monkeypatch.setattr(plain, "step", noting)
        plain.fedftg()
        wanted = first[0][: algorithm.synthesizer.layout.parameters]
        assert (phase.gradients[0] - wanted).norm() < 1e-5 * wanted.norm()
        assert phase.generator is not None
        assert phase.learned is not None
        assert distance(phase.learned, flat(plain.generator), phase.generator) < 0.01
        assert distance(phase.end, flat(plain.student), phase.start) < 0.01
    assert torch.equal(phases[0].learned, phases[1].generator), "the generator lives on"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "base",
    [FedAvg(), FedProx(0.1), MOON(), FedDyn(), SCAFFOLD("I"), SCAFFOLD("II"), MimeLite(), FedExP(), FedLC()],
    ids=lambda b: type(b).__name__,
)
def test_without_iterations_it_is_the_base(base: Algorithm, tmp_path: Path) -> None:
    """Oracle: the base method, bit for bit, with its traffic and columns; and another model with iterations."""
    settings: dict[str, Any] = {"dataset": Few(60), "model": NORMALISED, "clients": 3, "rounds": 2}
    settings["local"] = LocalTraining(epochs=1)
    none = run(tmp_path / "none.h5", FedFTG(base, iterations=0), **settings)
    some = run(tmp_path / "some.h5", FedFTG(base, **FEW), **settings)
    plain = run(tmp_path / "plain.h5", base, **settings)
    assert none.weights_sha256 == plain.weights_sha256 != some.weights_sha256
    assert none.rounds.keys() == plain.rounds.keys() | {"server_seconds", "teacher_seconds"}
    for made in (none, some):
        for column in ("bytes_up", "bytes_down"):
            np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    for column in ("train_loss", "test_loss", "test_accuracy"):
        np.testing.assert_array_equal(none.rounds[column], plain.rounds[column])


def test_clients_start_from_the_fine_tuned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the second round begins with what the first phase made; a server's optimizer starts there, too."""
    received: list[Tensor] = []

    class Noting(FedAvg):
        def round(self, fed: Any, cohort: Cohort) -> None:
            received.append(self.weights.clone())
            super().round(fed, cohort)

    algorithm = FedFTG(Noting(), **FEW)
    settings = {"server_optimizer": Momentum(lr=0.5, momentum=0.0)}
    _, (first, second) = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, PLAIN, **settings)
    assert torch.equal(received[1], first.end)
    assert not torch.equal(received[1], first.start)
    mean = torch.stack([n * t for n, t in zip(second.counts.sum(1), second.before, strict=True)]).sum(0)
    mean /= second.counts.sum()
    torch.testing.assert_close(second.start, (received[1] + mean) / 2, rtol=1e-4, atol=1e-6)


# Its signs, and what must stay as it is


@pytest.mark.parametrize("model", [PLAIN, NORMALISED])
def test_signs(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: with the disagreement alone, a small step of the generator makes it larger, of the student smaller."""
    options = {**FEW, "iterations": 1, "class_weight": 0.0, "diversity_weight": 0.0, "weight_decay": 0.0}
    # Of the generator alone
    algorithm = FedFTG(FedAvg(), generator_lr=1e-4, **{**options, "student_steps": 0})
    trained: dict[str, Any] = {"rounds": 1, "local": LocalTraining(epochs=20)}
    _, (phase,) = watched_run(monkeypatch, tmp_path / "generator.h5", algorithm, model, **trained)
    assert torch.equal(phase.start, phase.end)
    before, noise, y = given(algorithm, model, phase)
    assert phase.learned is not None
    apart = discrepancy(before, noise, y, generating=True)
    before.generator = loaded(before.generator, phase.learned)
    assert discrepancy(before, noise, y, generating=True) > 1.0001 * apart
    # Of the student alone
    algorithm = FedFTG(FedAvg(), student_lr=0.01, **{**options, "student_steps": 1, "generator_steps": 0})
    _, (phase,) = watched_run(monkeypatch, tmp_path / "student.h5", algorithm, model, **trained)
    before, noise, y = given(algorithm, model, phase)
    apart = discrepancy(before, noise, y, generating=False)
    before.student = loaded(before.student, phase.end)
    assert discrepancy(before, noise, y, generating=False) < 0.9999 * apart


def given(algorithm: FedFTG, model: Model, phase: ServerPhase) -> tuple[Plain, Tensor, Tensor]:
    """The networks at the begin of a phase, and its first noise and labels."""
    plain, rng = Plain(algorithm, model, phase), randomness.stream(SEED, "FedFTG", phase.round)
    labels = plain.labels(rng, 1)[0]
    return plain, plain.noise(rng), labels


@pytest.mark.parametrize(("variant", "mode"), [("paper", "eval"), ("repo", "eval"), ("paper", "restored")])
def test_what_stays_as_it_is(variant: Any, mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the same bits of the teachers before and after; of the student's statistics in these modes."""
    algorithm = FedFTG(FedAvg(), variant, student_mode=mode, **FEW)
    _, phases = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, NORMALISED)
    statistics = FlatModel(network(NORMALISED, SHAPE, 10), CPU).layout.segments["statistics"]
    for phase in phases:
        for before, after in zip(phase.before, phase.teachers, strict=True):
            assert torch.equal(before, after)
        assert not torch.equal(phase.start, phase.end)
        assert torch.equal(phase.start[statistics], phase.end[statistics])
    assert statistics.stop > statistics.start


def test_restored_statistics_are_all_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the bits of the parameters in mode train, and of no other mode, after the first round."""
    parameters, ends = FlatModel(network(NORMALISED, SHAPE, 10), CPU).layout.parameters, {}
    for mode in ("restored", "train", "eval"):
        algorithm = FedFTG(FedAvg(), student_mode=mode, **FEW)
        _, phases = watched_run(monkeypatch, tmp_path / f"{mode}.h5", algorithm, NORMALISED)
        ends[mode] = phases[0].end
    assert torch.equal(ends["restored"][:parameters], ends["train"][:parameters])
    assert not torch.equal(ends["restored"][parameters:], ends["train"][parameters:])
    assert not torch.equal(ends["restored"][:parameters], ends["eval"][:parameters])


@pytest.mark.parametrize("model", [PLAIN, NORMALISED])
def test_a_teacher_that_is_the_student(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: one client's model is the mean, so nothing is to be learned: no step, in mode eval."""
    algorithm = FedFTG(FedAvg(), weight_decay=0.0, student_mode="eval", **FEW)
    settings: dict[str, Any] = {"partition": Cut(SAMPLES), "clients": 1}
    _, phases = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, model, **settings)
    for phase in phases:
        assert torch.equal(phase.start, phase.before[0])
        assert (phase.end - phase.start).abs().max() < 1e-6
    algorithm = FedFTG(FedAvg(), weight_decay=0.1, student_mode="eval", **FEW)
    _, phases = watched_run(monkeypatch, tmp_path / "decay.h5", algorithm, model, **settings)
    assert (phases[0].end - phases[0].start).abs().max() > 1e-4, "the test could fail: weight decay moves it"


# What is in the file


def test_the_file_has_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the last phase's vector, tensor by tensor in a network of its own; the time split of the summary."""
    algorithm = FedFTG(**FEW)
    made, phases = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, NORMALISED)
    module = ImageGenerator(20).build(SHAPE, 10)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in made.tensors("generator_weights").items()}
    assert not module.load_state_dict(tensors, strict=False).unexpected_keys
    assert torch.equal(flat(module), phases[-1].learned)  # type: ignore[arg-type]
    assert "control" not in made.model, "as long as the parameters, not as the model"
    assert (made.rounds["server_seconds"] > 0).all()
    assert (made.rounds["teacher_seconds"] > 0).all()
    assert (made.rounds["generator_resets"] == 0).all()
    assert " server " in summarize(made)
    spent = sum(made.rounds[f"{name}_seconds"] for name in ("train", "evaluation", "teacher", "server"))
    assert (spent <= made.rounds["seconds"]).all()


# Networks that diverge


class Hopeless(Generator):
    """Makes nothing but NaN."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Nothing(shape)


class Nothing(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.scale * torch.full((len(labels), *self.shape), torch.nan)


def test_a_generator_that_diverges_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: counted, and finite networks, where a step is beyond all bounds."""
    algorithm = FedFTG(generator_lr=1e30, **{**FEW, "iterations": 4, "generator_steps": 2})
    made, phases = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, NORMALISED)
    assert (made.rounds["generator_resets"] > 0).all()
    assert np.isfinite(made.weights).all()
    assert phases[-1].learned is not None
    assert phases[-1].learned.isfinite().all()


def test_samples_that_are_not_finite_teach_nothing(tmp_path: Path) -> None:
    """Oracle: the base method's model, bit for bit, statistics and all, and a count of the steps not taken."""
    settings: dict[str, Any] = {"dataset": Few(60), "model": NORMALISED, "clients": 3}
    made = run(tmp_path / "made.h5", FedFTG(FedAvg(), **{**FEW, "generator": Hopeless(5)}), **settings)
    plain = run(tmp_path / "plain.h5", **settings)
    assert made.weights_sha256 == plain.weights_sha256
    assert made.rounds["skipped_steps"].tolist() == [6]
    assert made.rounds["generator_resets"].tolist() == [2 * 3], "in each pass before, within and after the step"


# What cannot be


class TooSmall(ImageGenerator):
    """Makes a quarter of what it should."""

    def build(self, shape: tuple[int, ...], classes: int) -> Any:
        return super().build((shape[0], shape[1] // 2, shape[2] // 2), classes)


class Flat(Dataset):
    """Digits that are no images."""

    classes = 10

    def read(self, progress: Progress) -> Arrays:
        x = DIGITS.train_x[:40].reshape(40, -1).astype(np.float32)
        return Arrays(x, DIGITS.train_y[:40], x, DIGITS.train_y[:40])


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        (FedFTG(generator=TooSmall()), {}, "--algorithm.generator = TooSmall: makes samples of shape"),
        (FedFTG(generator=DeepImageGenerator()), {}, "--algorithm.generator = DeepImageGenerator: cannot make"),
        (FedFTG(), {"dataset": Flat()}, r"--algorithm.generator = ImageGenerator: cannot make samples of shape \(64"),
        (
            FedFTG(),
            {"dataset": Words(), "model": Reader(embedding=4, hidden=4)},
            "--algorithm.generator = ImageGenerator: cannot make text, and the data set is text",
        ),
        (FedFTG(), {"compression": Int8()}, "compression = Int8: FedFTG's server uses the models of single clients"),
        (
            FedFTG(),
            {"attack": LabelFlip(0.5)},
            "attack = LabelFlip: FedFTG's server uses the models of single clients",
        ),
        (
            FedFTG(FedDyn()),
            {"server_optimizer": Momentum()},
            "server_optimizer = Momentum: must be Replace with FedFTG",
        ),
        (
            FedFTG(MOON()),
            {"model": OneVector(), "dataset": Regression()},
            "--model: MOON needs one built as Backbone",
        ),
    ],
)
def test_what_does_not_fit(algorithm: FedFTG, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Oracle: one line, before anything is written."""
    with pytest.raises(BadInput, match=message) as error:
        run(tmp_path / "run.h5", algorithm, **{"clients": 2, **settings})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize("base", [IFCA(), FedFTG()], ids=lambda base: type(base).__name__)
def test_a_base_that_cannot_carry_it(base: Algorithm) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=f"base = {type(base).__name__}: must be a method whose server only averages"):
        FedFTG(base)


def test_a_class_that_nobody_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: finite numbers, and none of its labels, with the first eight digits alone, 0 to 7, in the cohort."""
    algorithm = FedFTG(**FEW)
    settings: dict[str, Any] = {"dataset": Few(8, copies=4), "partition": Cut(16, 16), "clients": 2}
    made, phases = watched_run(monkeypatch, tmp_path / "run.h5", algorithm, NORMALISED, **settings)
    assert (phases[0].counts.sum(0) == 0).tolist() == [False] * 8 + [True] * 2
    assert np.isfinite(made.weights).all()
    assert made.rounds["skipped_steps"].tolist() == [0, 0]


def test_it_learns(tmp_path: Path) -> None:
    """Oracle: chance; and the accuracy of the aggregated models before, from which fine-tuning must not fall far."""
    settings: dict[str, Any] = {"model": NORMALISED, "rounds": 6, "evaluate_means": "cohort"}
    made = run(tmp_path / "run.h5", FedFTG(FedAvg(), iterations=3), local=LocalTraining(epochs=1), **settings)
    assert results.open(made.path).statistics().last > 0.8
    before, after = made.rounds["cohort_mean_accuracy"], made.rounds["test_accuracy"]
    assert (after > before - 0.1).all()
    assert all(later > earlier - 0.1 for earlier, later in pairwise(after))
