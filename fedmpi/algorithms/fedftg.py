"""FedFTG.

Zhang, Shen, Ding, Tao, Duan: Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated
Learning. CVPR 2022. https://arxiv.org/abs/2203.09249
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.distilled import Distilled
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.lazy import functional, torch
from fedmpi.models.generators import Generator
from fedmpi.models.generators.images import ImageGenerator
from fedmpi.options import null_for, with_options
from fedmpi.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, UpToOne, interval
from fedmpi.typing import Cohort, Federation, Layout, Net, Order, Student, Tensor


@with_options
class FedFTG(Distilled):
    """An averaging method whose server then fine-tunes the model on hard generated samples (Zhang et al., 2022).

    The generator is trained to make samples that the clients' models recognise, but on which the global model
    disagrees with them. Labels are drawn from the cohort's label distribution. The weight of a client's model for a
    class is the client's share of that class's samples. Learning rates fall by `decay` per round.

    Variant "paper" takes one step of the generator on the sum over the clients, with the Kullback-Leibler divergence
    as disagreement. Variant "repo" follows the authors' code. It takes one step for each client in turn. Its
    disagreement is the mean absolute difference of logits, whose gradient reaches the sample through the global model
    alone. Class weights are applied after the means over the batch, and the loss of the global model is divided by
    the number of classes.

    Args:
        base: the method that is extended; null: SCAFFOLD, as in the paper's tables.
        variant: paper: one step of the generator per batch, on the sum over all clients. repo: as in the authors'
            code, one step per client in turn, and other losses.
        generator: network that makes the samples; null: ImageGenerator.
        iterations: batches per round; 0 is the base method.
        generator_steps: passes of the generator over each batch.
        student_steps: steps of the global model on each batch.
        batch_size: samples per batch.
        generator_lr: learning rate of the generator (Adam) in the first round.
        student_lr: learning rate of the global model (SGD) in the first round; null: 0.01, in variant repo 0.1,
            because that loss is smaller by the number of classes.
        decay: factor per round of both learning rates.
        weight_decay: weight decay of the global model's steps.
        class_weight: weight of the class loss in the generator's loss.
        diversity_weight: weight of the diversity loss in the generator's loss.
        student_mode: batch normalisation in the global model's steps. train: running statistics follow the samples.
            restored: like train, but afterwards the running statistics of the clients' mean are restored. eval: they
            do not change.
    """

    base: Algorithm = null_for(SCAFFOLD)
    variant: Literal["paper", "repo"] = "paper"
    generator: Generator = null_for(ImageGenerator)
    iterations: NonNegativeInt = 10
    generator_steps: NonNegativeInt = 1
    student_steps: NonNegativeInt = 5
    batch_size: Annotated[int, interval("[2, inf)")] = 50
    generator_lr: PositiveFloat = 0.01
    student_lr: PositiveFloat = null_for()
    decay: UpToOne = 0.998
    weight_decay: NonNegativeFloat = 1e-3
    class_weight: NonNegativeFloat = 1.0
    diversity_weight: NonNegativeFloat = 1.0
    student_mode: Literal["restored", "train", "eval"] = "train"

    needs_classes = True
    server_state = ("generator_weights",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_lr = self.student_lr or (0.01 if self.variant == "paper" else 0.1)

    def setup(self, fed: Federation) -> None:
        from fedmpi.algorithms.toolbox.distillation import Synthesizer

        super().setup(fed)
        self.synthesizer = Synthesizer(fed, self.generator)
        self.generator_weights = self.synthesizer.weights

    @property
    def networks(self) -> Mapping[str, Layout]:
        return {"generator_weights": self.synthesizer.layout}

    def distill(self, fed: Federation, cohort: Cohort, weights: Tensor) -> Tensor:
        from fedmpi.algorithms.toolbox.distillation import Student, draw_orders

        if not self.iterations:
            return weights
        decay, size, noise = self.decay ** (fed.round - 1), self.batch_size, self.generator.noise
        explore = self.explore if self.variant == "paper" else self.explore_in_turn
        student = Student(fed, weights, "sgd", self.weight_decay, self.student_mode)
        self.synthesizer.begin(self.generator_weights, decay * self.generator_lr)
        for order in draw_orders(fed, cohort, self.iterations, size, noise, "FedFTG"):
            for _ in range(self.generator_steps):
                explore(fed, cohort, student, order)
            x = self.synthesizer.make(order)
            (target,) = fed.at_server.ask_models(partial(self.answer, order), [x], [(size, fed.classes)])
            for _ in range(self.student_steps):
                student.learn(x, target if self.variant == "paper" else target / fed.classes, decay * self.student_lr)
        self.generator_weights = self.synthesizer.weights
        fed.log(generator_resets=self.synthesizer.resets, skipped_steps=student.skipped)
        return student.weights

    def answer(self, order: Order, teacher: Net, client: int, x: Tensor) -> tuple[Tensor]:
        """[B, classes], a client's contribution to the target of the student."""
        return (order.parts[client][:, None] * teacher(x).softmax(1),)

    def explore(self, fed: Federation, cohort: Cohort, student: Student, order: Order) -> None:
        """One step of the generator: -L_md + class_weight L_cls + diversity_weight L_dis, summed over the clients.

        The clients' models compute the gradient of their terms with respect to the samples, with the student's
        outputs as constants, and the mixture of their predictions. The server adds the gradient through the student.
        """
        from fedmpi.algorithms.toolbox.distillation import diversity_loss

        x = self.synthesizer.try_out(order)
        log_q = functional.log_softmax(student.logits(x), 1)
        slope, mixture = fed.at_server.ask_models(partial(self.judge, order), [x, log_q], [x.shape, log_q.shape])
        if fed.is_server:
            loss = (slope * x).sum() + (mixture * log_q).sum() / len(x)
            self.synthesizer.descend(loss + self.diversity_weight * diversity_loss(x, order.noise))

    def judge(self, order: Order, teacher: Net, client: int, x: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """For one client: gradient of its terms in the samples [B, ...], and its part of the mixture [B, classes]."""
        from fedmpi.algorithms.toolbox.distillation import divergence

        part, log_p = order.parts[client], functional.log_softmax(teacher(x.requires_grad_()), 1)
        recognised = functional.nll_loss(log_p, order.labels, reduction="none")
        loss = part * (self.class_weight * recognised - divergence(log_p, log_q))
        (slope,) = torch.autograd.grad(loss.mean(), x)
        return slope, part[:, None] * log_p.detach().exp()

    def explore_in_turn(self, fed: Federation, cohort: Cohort, student: Student, order: Order) -> None:
        """The same for variant "repo": one step for each client in turn."""
        from fedmpi.algorithms.toolbox.distillation import diversity_loss

        clients, ask = cohort.clients[cohort.mass > 0].tolist(), partial(self.judge_logits, order)
        for client in clients:
            x = self.synthesizer.try_out(order)
            logits = student.logits(x)
            slope, push = fed.at_server.ask_models(ask, [x, logits], [x.shape, logits.shape], only=client)
            if fed.is_server:
                loss = (slope * x).sum() + (push * logits).sum()
                diversity = diversity_loss(x, order.noise) / len(clients)
                self.synthesizer.descend(loss + self.diversity_weight * diversity)

    def judge_logits(
        self, order: Order, teacher: Net, client: int, x: Tensor, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For one client: gradients of its terms in the samples [B, ...] and in the student's logits [B, classes]."""
        part, own = order.parts[client], teacher(x.requires_grad_())
        (slope,) = torch.autograd.grad(
            self.class_weight * part.mean() * functional.cross_entropy(own, order.labels), x
        )
        return slope, part[:, None] * (own.detach() - logits).sign() / logits.numel()
