"""FedDF.

Lin, Kong, Stich, Jaggi: Ensemble Distillation for Robust Model Fusion in Federated Learning. NeurIPS 2020.
https://arxiv.org/abs/2006.07242
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import numpy as np

from fedmpi.algorithms.distilled import Distilled
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Dataset
from fedmpi.errors import BadInput
from fedmpi.lazy import functional, torch
from fedmpi.models.generators import Generator
from fedmpi.models.generators.images import ImageGenerator
from fedmpi.options import null_for, with_options
from fedmpi.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, UpToOne, interval
from fedmpi.typing import Cohort, Federation, Layout, Net, Student, Tensor


@with_options
class FedDF(Distilled):
    """FedAvg whose server then distils the ensemble of the clients' models into the global model (Lin et al., 2020).

    The global model is the student, and the clients' models are the teachers. With proxy data, as in the paper, the
    target is the softmax of the teachers' mean logits on unlabelled samples; the student uses Adam, with a learning
    rate that falls as a cosine within the round. Without proxy data, as in FedFTG's comparison (Zhang et al., 2022),
    the target is the mean of the teachers' probabilities on generated samples; the student uses SGD. The generator is
    trained so that the teachers recognise its samples and the samples differ from each other.

    Args:
        proxy: data set whose training samples the server has, without labels; null: a generator makes samples.
        generator: network that makes samples; null: ImageGenerator.
        generator_steps: steps of the generator per round.
        student_steps: steps of the global model per round; null: 20, with proxy data 500.
        batch_size: samples per step; null: 50, with proxy data 128.
        generator_lr: learning rate of the generator (Adam) in the first round.
        student_lr: learning rate of the global model in the first round; null: 0.1, with proxy data 0.001.
        decay: factor per round of both learning rates.
        weight_decay: weight decay for generator and global model; null: 0.001, with proxy data 0.
        student_mode: batch normalisation in the global model's steps. train: running statistics follow the samples.
            restored: like train, but afterwards the running statistics of the clients' mean are restored. eval: they
            do not change.
    """

    proxy: Dataset | None = None
    generator: Generator | None = None
    generator_steps: NonNegativeInt = 50
    student_steps: NonNegativeInt = null_for()
    batch_size: Annotated[int, interval("[2, inf)")] = null_for()
    generator_lr: PositiveFloat = 0.01
    student_lr: PositiveFloat = null_for()
    decay: UpToOne = 0.998
    weight_decay: NonNegativeFloat = null_for()
    student_mode: Literal["restored", "train", "eval"] = "train"

    needs_classes = True

    def __post_init__(self) -> None:
        self.base = FedAvg()
        super().__post_init__()
        if self.proxy and self.generator:
            kind = type(self.generator).__name__
            raise BadInput(f"= {kind}: cannot be combined with proxy data", "generator")
        steps, size, lr, weakening = (500, 128, 0.001, 0.0) if self.proxy else (20, 50, 0.1, 0.001)
        self.generator = None if self.proxy else self.generator or ImageGenerator()
        self.student_steps = steps if self.student_steps is None else self.student_steps
        self.batch_size = self.batch_size or size
        self.student_lr = self.student_lr or lr
        self.weight_decay = weakening if self.weight_decay is None else self.weight_decay
        if self.generator:
            self.server_state = ("generator_weights",)

    def setup(self, fed: Federation) -> None:
        from fedmpi.algorithms.toolbox.distillation import Synthesizer

        super().setup(fed)
        if self.generator:
            self.synthesizer = Synthesizer(fed, self.generator, self.weight_decay)
            self.generator_weights = self.synthesizer.weights

    @property
    def networks(self) -> Mapping[str, Layout]:
        return {"generator_weights": self.synthesizer.layout} if self.generator else {}

    def distill(self, fed: Federation, cohort: Cohort, weights: Tensor) -> Tensor:
        from fedmpi.algorithms.toolbox.distillation import Student

        student = Student(fed, weights, "adam" if self.proxy else "sgd", self.weight_decay, self.student_mode)
        learn = self.learn_from_generated if self.generator else self.learn_from_proxies
        learn(fed, cohort, student, self.decay ** (fed.round - 1))
        fed.log(skipped_steps=student.skipped)
        return student.weights

    def learn_from_generated(self, fed: Federation, cohort: Cohort, student: Student, decay: float) -> None:
        """Train the generator on the clients' models, and then the student on its samples."""
        from fedmpi.algorithms.toolbox.distillation import diversity_loss, draw_orders

        assert self.generator
        size, noise, teachers = self.batch_size, self.generator.noise, int((cohort.mass > 0).sum())

        def recognise(labels: Tensor, teacher: Net, client: int, x: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(functional.cross_entropy(teacher(x.requires_grad_()), labels) / teachers, x)

        def answer(teacher: Net, client: int, x: Tensor) -> tuple[Tensor]:
            return (teacher(x).softmax(1) / teachers,)

        self.synthesizer.begin(self.generator_weights, decay * self.generator_lr)
        for order in draw_orders(fed, cohort, self.generator_steps, size, noise, "FedDF generator"):
            x = self.synthesizer.try_out(order)
            (slope,) = fed.at_server.ask_models(partial(recognise, order.labels), [x], [x.shape])
            if fed.is_server:
                self.synthesizer.descend((slope * x).sum() + diversity_loss(x, order.noise))
        for order in draw_orders(fed, cohort, self.student_steps, size, noise, "FedDF student"):
            x = self.synthesizer.make(order)
            (target,) = fed.at_server.ask_models(answer, [x], [(size, fed.classes)])
            student.learn(x, target, decay * self.student_lr)
        self.generator_weights = self.synthesizer.weights
        fed.log(generator_resets=self.synthesizer.resets)

    def learn_from_proxies(self, fed: Federation, cohort: Cohort, student: Student, decay: float) -> None:
        """Train the student on the server's samples, which every rank reads from its own copy."""
        steps, size, rng = self.student_steps, self.batch_size, fed.stream("FedDF proxies")
        teachers, passes = int((cohort.mass > 0).sum()), -(-steps * size // fed.at_server.samples)

        def answer(x: Tensor, teacher: Net, client: int) -> tuple[Tensor]:
            return (teacher(x) / teachers,)

        order = np.concatenate(
            [np.empty(0, np.int64), *(rng.permutation(fed.at_server.samples) for _ in range(passes))]
        )
        for step, index in enumerate(order[: steps * size].reshape(steps, size)):
            x = fed.at_server.batch(index)
            (logits,) = fed.at_server.ask_models(partial(answer, x), [], [(size, fed.classes)])
            cosine = (1 + math.cos(math.pi * step / steps)) / 2
            student.learn(x, logits.softmax(1), decay * self.student_lr * cosine)
