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


@with_ranges
@dataclass(frozen=True)
class LocalTraining(metaclass=Configured):
    """How a client trains on its own samples in one round.

    Args:
        epochs: passes over the client's samples.
        steps: number of optimizer steps, used instead of epochs. A client with few samples repeats them.
        batch_size: samples per step. The last, smaller batch of an epoch is kept.
        lr: learning rate of the first round.
        optimizer: sgd or adam. Its state is reset every round.
        momentum: momentum of sgd.
        weight_decay: L2 regularisation. weight_decay times the weights is added to the gradient.
        schedule: how the learning rate changes from round to round. It is constant within a round. cosine ends near 0
            in the last round, so no rounds can be added later.
        decay: factor per round of the exponential schedule.
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
    lr: PositiveFloat = 0.1
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: BelowOne = 0.0
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "exponential", "cosine"] = "constant"
    decay: UpToOne = 0.99
    clip_norm: Annotated[float, interval("(0, inf]")] | None = None
    augmentation: Augmentation = "none"
    vectorize: Annotated[int, interval("[1, inf)", "auto, off or at least 1")] | Literal["auto", "off"] = "auto"
    compile: Literal["auto", "on", "off"] = "off"
    precision: Literal["float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        require(self.momentum == 0 or self.optimizer == "sgd", "momentum", self.momentum, "0 with optimizer adam")

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is just w -= lr g."""
        return self.optimizer == "sgd" and not (self.momentum or self.weight_decay or self.clip_norm)

    def rate(self, round: int, rounds: int) -> float:
        """The learning rate of a round (the first is 1) out of `rounds`."""
        if self.schedule == "exponential":
            return self.lr * self.decay ** (round - 1)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (round - 1) / rounds))
        return self.lr

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
        """The batches of one pass over this number of samples.

        With `merge_single`, a last batch of one sample is merged with the one before, because batch normalisation
        cannot train on it.
        """
        cuts = [self.batch_size * number for number in range(self.count_cuts(samples, merge_single))]
        return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], samples], strict=True)] if samples else []

    def count_steps(self, samples: int, merge_single: bool) -> int:
        """Optimizer steps of a client with this number of samples."""
        a_pass = self.count_cuts(samples, merge_single)
        return self.steps if self.steps and a_pass else self.epochs * a_pass

    def count_cuts(self, samples: Count, merge_single: bool) -> Count:
        """Number of batches in one pass over this number of samples, or over each of several numbers."""
        cuts = -(-samples // self.batch_size)
        return cuts - ((cuts > 1) & (samples % self.batch_size == 1)) if merge_single else cuts


@lru_cache
def changed(
    local: LocalTraining,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: Literal["sgd", "adam"] | None = None,
) -> LocalTraining:
    """`local` with other values, where one is given. Epochs are used instead of its steps, and Adam has no momentum.

    Results are kept, because a trainer asks for them for each of its blocks.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs = {epochs} and steps = {steps}: only one can be given")
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "optimizer": optimizer}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if epochs is not None or steps is not None:
        changes["steps"] = steps
    if optimizer == "adam":
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
