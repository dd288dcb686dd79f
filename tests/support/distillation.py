"""Distillation as anyone would write it in PyTorch, with all teachers in one place, and what it is compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from fedmpi import randomness, results
from fedmpi.algorithms.distilled import Distilled
from fedmpi.algorithms.feddf import FedDF
from fedmpi.algorithms.fedftg import FedFTG
from fedmpi.algorithms.toolbox.distillation import Synthesizer
from fedmpi.data import Dirichlet
from fedmpi.federation.federation import Federation
from fedmpi.models import Model
from fedmpi.policies import Cohort
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.digits import SHAPE, Few
from tests.support.experiments import CPU, SEED, network, run

SAMPLES = 77


@dataclass
class ServerPhase:
    """What the server's phase of a round began with, and what it made of it.

    Attributes:
        round: its number.
        counts: [m, classes] training labels of the cohort.
        teachers: [P] each, as they were afterwards; `before` are copies from before.
        start, end: [P], the server's model.
        generator, learned: [n], the generator; None: there is none.
        gradients: of the generator's steps.
    """

    round: int
    counts: NDArray[np.int64]
    teachers: list[Tensor]
    before: list[Tensor]
    start: Tensor
    end: Tensor
    generator: Tensor | None
    learned: Tensor | None
    gradients: list[Tensor]


class Watch:
    """Remembers the server's phases of an algorithm that runs on one rank."""

    def __init__(self, patch: pytest.MonkeyPatch, algorithm: Distilled) -> None:
        self.phases: list[ServerPhase] = []
        gradients: list[Tensor] = []
        distill, descend = algorithm.distill, Synthesizer.descend

        def watched(fed: Federation, cohort: Cohort, weights: Tensor) -> Tensor:
            teachers = dict(sorted(fed.at_server.teachers.items()))
            generator = getattr(algorithm, "generator_weights", None)
            start, before = weights.clone(), [teacher.clone() for teacher in teachers.values()]
            gradients.clear()
            end = distill(fed, cohort, weights)
            counts = fed.label_counts[list(teachers)]
            learned = getattr(algorithm, "generator_weights", None)
            self.phases.append(
                ServerPhase(
                    fed.round,
                    counts,
                    list(teachers.values()),
                    before,
                    start,
                    end.clone(),
                    generator,
                    learned,
                    list(gradients),
                )
            )
            return end

        def watched_descend(synthesizer: Synthesizer, loss: Tensor) -> None:
            descend(synthesizer, loss)
            assert synthesizer._network
            gradients.append(synthesizer._network.gradient[0].clone())

        patch.setattr(algorithm, "distill", watched)
        patch.setattr(Synthesizer, "descend", watched_descend)


def watched_run(
    patch: pytest.MonkeyPatch, path: Path, algorithm: Distilled, model: Model, **settings: Any
) -> tuple[results.Run, list[ServerPhase]]:
    """Two rounds on the first digits, with all of three unequal clients, of whom not all have all digits."""
    watch = Watch(patch, algorithm)
    chosen: dict[str, Any] = {
        "dataset": Few(SAMPLES),
        "partition": Dirichlet(0.3),
        "clients": 3,
        "rounds": 2,
        "local": LocalTraining(epochs=4),
        **settings,
    }
    return run(path, algorithm, model=model, **chosen), watch.phases


def loaded(module: nn.Module, weights: Tensor) -> nn.Module:
    """A copy of a network with other weights, in no flat vector."""
    flat = FlatModel(copy.deepcopy(module), CPU)
    flat.weights[0].copy_(weights)
    result = copy.deepcopy(module)
    result.load_state_dict(flat.module.state_dict())
    return result


def flat(module: nn.Module) -> Tensor:
    """[P]"""
    return FlatModel(copy.deepcopy(module), CPU).weights[0]


def diversity(x: Tensor, noise: Tensor) -> Tensor:
    made = (x[:, None] - x[None]).abs().flatten(2).mean(2)
    drawn = (noise[:, None] - noise[None]).pow(2).mean(2)
    return torch.exp((-made * drawn).mean())


class Plain:
    """The networks of a server's phase.

    Args:
        algorithm: whose options count.
        model: of clients and server.
        phase: what it begins with.
    """

    def __init__(self, algorithm: FedFTG | FedDF, model: Model, phase: ServerPhase) -> None:
        plain = network(model, SHAPE, 10)
        self.student = loaded(plain, phase.start)
        self.teachers = [loaded(plain, teacher).eval().requires_grad_(False) for teacher in phase.before]
        self.phase = phase
        self.options = algorithm
        self.decay = algorithm.decay ** (phase.round - 1)
        if algorithm.generator and phase.generator is not None:
            self.generator = loaded(algorithm.generator.build(SHAPE, 10), phase.generator)

    def labels(self, rng: np.random.Generator, number: int) -> Tensor:
        """[number, batch]"""
        counts = self.phase.counts.sum(0)
        total = number * self.options.batch_size
        ends = [round(total * counts[: label + 1].sum() / counts.sum()) for label in range(10)]
        in_order = [label for label in range(10) for _ in range(ends[label] - (ends[label - 1] if label else 0))]
        return torch.from_numpy(rng.permutation(np.array(in_order)).reshape(number, -1))

    def noise(self, rng: np.random.Generator) -> Tensor:
        assert self.options.generator
        shape = self.options.batch_size, self.options.generator.noise
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    def fedftg(self) -> None:
        """All of FedFTG's phase."""
        options = self.options
        assert isinstance(options, FedFTG)
        counts = torch.from_numpy(self.phase.counts)
        shares = counts / (counts.sum(0) + 1e-12)
        adam = torch.optim.Adam(self.generator.parameters(), lr=options.generator_lr * self.decay)
        rate = options.student_lr * self.decay
        sgd = torch.optim.SGD(self.student.parameters(), lr=rate, weight_decay=options.weight_decay)
        rng = randomness.stream(SEED, "FedFTG", self.phase.round)
        for y in self.labels(rng, options.iterations):
            noise = self.noise(rng)
            parts = [share[y] for share in shares]
            for _ in range(options.generator_steps):
                self.generator.train()
                self.student.eval()
                if options.variant == "paper":
                    self.step(adam, self.fedftg_loss(noise, y, parts))
                else:
                    for part, teacher in zip(parts, self.teachers, strict=True):
                        self.step(adam, self.fedftg_loss_of_one(noise, y, part, teacher))
            x = self.generator.eval()(noise, y).detach()
            self.student.train(options.student_mode == "train")
            for _ in range(options.student_steps):
                log_q = log_softmax(self.student(x), 1)
                if options.variant == "paper":
                    loss = torch.stack([(a * self.kl(t, x, log_q)).mean() for a, t in self.pairs(parts)]).sum()
                else:
                    target = sum(a[:, None] * t(x).softmax(1) for a, t in self.pairs(parts))
                    loss = (-log_q * target).mean()
                self.step(sgd, loss)

    def fedftg_loss(self, noise: Tensor, y: Tensor, parts: list[Tensor]) -> Tensor:
        """Of the generator, with all paths in one graph."""
        options = self.options
        assert isinstance(options, FedFTG)
        x = self.generator(noise, y)
        log_q = log_softmax(self.student(x), 1)
        disagree = [(a * self.kl(t, x, log_q)).mean() for a, t in self.pairs(parts)]
        recognise = [(a * cross_entropy(t(x), y, reduction="none")).mean() for a, t in self.pairs(parts)]
        terms = torch.stack(recognise).sum() * options.class_weight - torch.stack(disagree).sum()
        return terms + options.diversity_weight * diversity(x, noise)

    def fedftg_loss_of_one(self, noise: Tensor, y: Tensor, part: Tensor, teacher: nn.Module) -> Tensor:
        """As in the authors' code."""
        options = self.options
        assert isinstance(options, FedFTG)
        x = self.generator(noise, y)
        disagree = (part * (self.student(x) - teacher(x).detach()).abs().mean(1)).mean()
        recognise = cross_entropy(teacher(x), y) * part.mean()
        others = options.diversity_weight * diversity(x, noise) / len(self.teachers)
        return options.class_weight * recognise - disagree + others

    def feddf(self) -> None:
        """All of data-free FedDF's phase."""
        options = self.options
        assert isinstance(options, FedDF)
        rate, weakening = options.generator_lr * self.decay, options.weight_decay
        adam = torch.optim.Adam(self.generator.parameters(), lr=rate, weight_decay=weakening)
        rng = randomness.stream(SEED, "FedDF generator", self.phase.round)
        self.generator.train()
        for y in self.labels(rng, options.generator_steps):
            noise = self.noise(rng)
            x = self.generator(noise, y)
            losses = torch.stack([cross_entropy(teacher(x), y) for teacher in self.teachers])
            self.step(adam, losses.mean() + diversity(x, noise))
        rate = options.student_lr * self.decay
        sgd = torch.optim.SGD(self.student.parameters(), lr=rate, weight_decay=weakening)
        rng = randomness.stream(SEED, "FedDF student", self.phase.round)
        self.generator.eval()
        self.student.train()
        for y in self.labels(rng, options.student_steps):
            x = self.generator(self.noise(rng), y).detach()
            target = torch.stack([teacher(x).softmax(1) for teacher in self.teachers]).mean(0)
            self.step(sgd, kl_div(log_softmax(self.student(x), 1), target, reduction="batchmean"))

    def pairs(self, parts: list[Tensor]) -> list[tuple[Tensor, nn.Module]]:
        return list(zip(parts, self.teachers, strict=True))

    def kl(self, teacher: nn.Module, x: Tensor, log_q: Tensor) -> Tensor:
        """[B]"""
        return kl_div(log_q, log_softmax(teacher(x), 1), reduction="none", log_target=True).sum(1)

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        for module in (self.student, *([self.generator] if hasattr(self, "generator") else [])):
            module.zero_grad()
        loss.backward()
        optimizer.step()


def distance(found: Tensor, wanted: Tensor, start: Tensor) -> float:
    """How far apart, in parts of the way from the start."""
    way = (wanted - start).norm()
    assert way > 1e-4 * start.norm()
    return float((found - wanted).norm() / way)
