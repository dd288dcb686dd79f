"""The options of local training (`--local.*`)."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import require
from fedmpi.options import Configured, with_ranges
from fedmpi.ranges import BelowOne, NonNegativeFloat, PositiveFloat, PositiveInt, UpToOne, interval

Count = TypeVar("Count", int, NDArray[np.int64])
Augmentation = Literal["none", "flip", "crop_flip"]
LocalOptimizer = Literal["sgd", "adam", "adamw"]


@with_ranges
@dataclass(frozen=True)
class LocalTraining(metaclass=Configured):
    """How a client trains on its own samples in one round.

    Args:
        epochs: passes over the client's samples.
        steps: number of optimizer steps, used instead of epochs. A client with few samples repeats them.
        batch_size: samples per batch. The last, smaller batch of an epoch is kept.
        accumulate: batches per step. The step follows the gradient of the mean loss over all of their samples, as one
            batch of accumulate times batch_size samples would, with the memory of one batch. The last step of an
            epoch has the samples that are left.
        lr: learning rate, which warm-up and schedule change.
        optimizer: sgd, adam or adamw. Its state is reset every round.
        momentum: momentum of sgd.
        weight_decay: strength of the weights' decay. sgd and adam add weight_decay times the weights to the gradient
            (L2 regularisation). adamw multiplies the weights by 1 - lr weight_decay before each step.
        schedule: how the learning rate changes. linear and cosine end near 0 with the last round, so no rounds can be
            added later.
        decay: factor per round of the exponential schedule.
        warmup: number of rounds in which the learning rate rises. It rises linearly up to lr, and the schedule begins
            after it. It may be a fraction, such as 0.5 with schedule_by step.
        schedule_by: when the learning rate changes. round: it is constant within a round. step: it also changes with
            each step, in proportion to the part of the round's steps that the client has done. A client with half as
            many steps changes its rate twice as much per step.
        clip_norm: maximum L2 norm of the gradient of a step. The gradient is clipped after a method's correction and
            before weight decay. null: no clipping.
        augmentation: augmentation of training images. flip: random mirroring. crop_flip: also random crops after
            padding with 4 zero pixels.
        vectorize: how many clients a rank trains in one batched call (torch.vmap); off trains one client after
            another. auto uses a fixed rule: several clients on a GPU; many clients if the network is small and has no
            convolutions and the cohort has 32 clients or more; else one. Before the first round two clients are
            trained both ways. If PyTorch cannot run the network for several clients, or gives other results then,
            auto trains one after another, and a number is refused.
        compile: on compiles the local step of clients in one batched call (torch.compile), see vectorize. That takes
            some seconds at the first use, and a C++ compiler. Every call then has the full number of clients, filled
            up with copies. Results differ from those of off in their last digits, and are the same on any number of
            ranks. auto compiles if clients are trained in batched calls on a CPU and the run is long, by a fixed
            rule.
        precision: bf16 uses bfloat16 in the forward and backward pass where PyTorch's autocast considers it safe,
            mainly matrix products and convolutions. Weights, losses, gradients as methods see them, optimizers, means
            and all evaluation stay float32. To keep results bit-identical, clients in one batched call are then
            trained in full blocks, filled up with copies, so vectorize should not exceed a rank's share of the
            cohort.
    """

    epochs: PositiveInt = 5
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 10
    accumulate: PositiveInt = 1
    lr: PositiveFloat = 0.1
    optimizer: LocalOptimizer = "sgd"
    momentum: BelowOne = 0.0
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "exponential", "linear", "cosine"] = "constant"
    decay: UpToOne = 0.99
    warmup: NonNegativeFloat = 0.0
    schedule_by: Literal["round", "step"] = "round"
    clip_norm: Annotated[float, interval("(0, inf]")] | None = None
    augmentation: Augmentation = "none"
    vectorize: Annotated[int, interval("[1, inf)", "auto, off or at least 1")] | Literal["auto", "off"] = "auto"
    compile: Literal["auto", "on", "off"] = "off"
    precision: Literal["float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        allowed = f"0 with optimizer {self.optimizer}"
        require(self.momentum == 0 or self.optimizer == "sgd", "momentum", self.momentum, allowed)

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is just w -= lr g."""
        return self.optimizer == "sgd" and not (self.momentum or self.weight_decay or self.clip_norm)

    @property
    def step_size(self) -> int:
        """Samples per step."""
        return self.batch_size * self.accumulate

    @property
    def varies_within_rounds(self) -> bool:
        """Whether the learning rate may change from step to step."""
        return self.schedule_by == "step" and (self.schedule != "constant" or self.warmup > 0)

    def rate(self, round: int, rounds: int, step: int = 0, steps: int = 1) -> float:
        """The learning rate of a step.

        Args:
            round: from 1 to `rounds`.
            step: from 0 to below `steps`, the number that the client does in the round. They matter only if the rate
                varies within rounds.
        """
        begun, length = (round - 1 + step / steps, 1 / steps) if self.varies_within_rounds else (round - 1, 1)
        if begun < self.warmup:
            return self.lr * min((begun + length) / self.warmup, 1.0)
        since, left = begun - self.warmup, rounds - self.warmup
        if self.schedule == "exponential":
            return self.lr * self.decay**since
        if self.schedule == "linear":
            return self.lr * (1 - since / left)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * since / left))
        return self.lr

    def rates(self, round: int, rounds: int, steps: int) -> NDArray[np.float64]:
        """[steps] the learning rate of each of a client's steps."""
        return np.array([self.rate(round, rounds, step, steps) for step in range(steps)])

    def normaliser(self, steps: NDArray[np.int64], pull: float = 0.0) -> NDArray[np.float64]:
        """[K] FedNova's |a_k|_1 (Wang et al., 2020): the summed coefficients of the gradients in (w_0 - w_end) / lr.

        Without momentum it is the number of steps. For 0 steps it is 1, so that one may divide by it. It is for sgd,
        and does not account for clipping and weight decay.

        Args:
            pull: the part of the update that each step takes back; lr mu for a proximal term mu.
        """
        way, velocity = [1.0, 1.0], 1.0
        for _ in range(1, int(steps.max(initial=0))):
            velocity = self.momentum * velocity + 1 - pull * way[-1]
            way.append(way[-1] + velocity)
        return np.array(way)[steps]

    def batches(self, samples: int, merge_single: bool) -> list[slice]:
        """The samples of each step of one pass over this number of samples.

        With `merge_single`, a last batch of one sample is merged with the one before, because batch normalisation
        cannot train on it.
        """
        cuts = [self.step_size * number for number in range(self.count_cuts(samples, merge_single))]
        return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], samples], strict=True)] if samples else []

    def count_steps(self, samples: Count, merge_single: bool) -> Count:
        """Optimizer steps of a client with this number of samples, or of each of several clients."""
        a_pass = self.count_cuts(samples, merge_single)
        return self.steps * (a_pass > 0) if self.steps else self.epochs * a_pass

    def count_cuts(self, samples: Count, merge_single: bool) -> Count:
        """Number of steps in one pass over this number of samples, or over each of several numbers."""
        cuts = -(-samples // self.step_size)
        return cuts - ((cuts > 1) & (samples % self.step_size == 1)) if merge_single else cuts


@lru_cache
def changed(
    local: LocalTraining,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: LocalOptimizer | None = None,
) -> LocalTraining:
    """`local` with other values, where one is given. Epochs are used instead of its steps, and only sgd has momentum.

    Results are kept, because a trainer asks for them for each of its blocks.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs = {epochs} and steps = {steps}: only one can be given")
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "optimizer": optimizer}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if epochs is not None or steps is not None:
        changes["steps"] = steps
    if optimizer not in (None, "sgd"):
        changes["momentum"] = 0.0
    return replace(local, **changes) if changes else local


@dataclass(frozen=True)
class Choice:
    """The largest number of clients that a rank trains at once, and why.

    Attributes:
        at_once: number of clients; 1: one after another.
        reason: the reason, as a clause.
        is_compiled: whether their local step is compiled.
    """

    at_once: int
    reason: str
    is_compiled: bool = False
