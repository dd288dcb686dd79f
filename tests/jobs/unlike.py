"""Classes that give something else on every rank, or networks that give no logits; used by import path."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import IID, Arrays, Dataset, Digits
from fedmpi.models import Model
from fedmpi.policies import Always, Ideal, Uniform, Workload
from fedmpi.policies.attacks import Attack
from fedmpi.training.block import WHOLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from torch import Tensor, nn

    from fedmpi.data.base import Progress
    from fedmpi.federation.federation import Federation
    from fedmpi.federation.local import Trained
    from fedmpi.policies import Cohort, Pool, RoundPlan
    from fedmpi.training.block import Block, Phase
    from fedmpi.training.flat import Net
    from fedmpi.training.samples import Batch

RANK = MPI.COMM_WORLD.Get_rank()
#: Numbers of the process alone.
MINE = np.random.default_rng(os.getpid())


class Linear(torch.nn.Module):
    """Logistic regression whose inputs are multiplied by something that is no parameter."""

    def __init__(self, inputs: int, outputs: int, factor: object) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(inputs, outputs)
        self.factor = factor

    def forward(self, x: Tensor) -> Any:
        return self.layer(x.flatten(1))


class Network(Model):
    """Another one on every rank.

    Args:
        what: in which of its numbers.
    """

    def __init__(self, what: Literal["weights", "array", "tensors", "shape", "number", "each time"]) -> None:
        self.what = what

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        factor = {
            "array": np.full(3, RANK),
            "tensors": {"all": [torch.zeros(2), torch.full((2,), float(RANK))]},
            "number": 1.0 + RANK,
            "each time": torch.tensor(MINE.random() if RANK == 0 else 0.5),
        }
        made = Linear(math.prod(shape), classes, factor.get(self.what))
        if self.what == "weights":
            torch.nn.init.constant_(made.layer.bias, os.getpid() % 1000)
        if self.what == "shape" and RANK:
            return torch.nn.Sequential(torch.nn.Flatten(), made)
        return made


class Normal(Model):
    """A network with normally distributed weights, and a constant of such numbers."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        made = Linear(math.prod(shape), classes, torch.randn(50))
        torch.nn.init.normal_(made.layer.weight)
        return made


class Extending(FedAvg):
    """A method that makes another network of the model's on every rank."""

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        network.register_buffer("mark", torch.full((1,), float(RANK)), persistent=False)
        return network


class Split(IID):
    """What one rank makes of it differs.

    Args:
        what: of what; members: which samples of a class a client has, not how many.
    """

    relabels = permutes_pixels = False

    def __init__(self, what: Literal["split", "members", "groups", "labels", "pixels"] = "split") -> None:
        self.what = what
        self.relabels, self.permutes_pixels = what == "labels", what == "pixels"

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> Sequence[NDArray[np.int64]]:
        parts = super().split(labels, clients, rng)
        if self.what == "members" and RANK == 1:  # two clients exchange samples of one class
            first, second = parts[0], parts[1]
            other = np.flatnonzero(labels[second] == labels[first[0]])[0]
            first[0], second[other] = second[other], first[0]
        return [*parts[1:], parts[0]] if self.what == "split" and RANK == 1 else parts

    def groups(self, clients: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return (np.arange(clients) + RANK * (self.what == "groups")) % 2

    def relabelled(self, group: int, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.roll(np.arange(classes), RANK)

    def pixels(self, group: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return MINE.permutation(count)


class Poison(Attack):
    def __init__(self) -> None:
        super().__init__(0.5)

    def poison(self, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        return (labels + RANK) % classes


class Draw(Uniform):
    """From the second round on one rank draws others, or more of them."""

    def __init__(self, more: int = 0) -> None:
        self.more = more

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        drawn = super().draw(round, size, pool, rng)
        if round < 2 or RANK != 1:
            return drawn
        return pool.available[: size + self.more]


class Wrong(Uniform):
    """From the second round on draws clients that do not exist, on every rank or on one."""

    def __init__(self, everywhere: bool = True) -> None:
        self.everywhere = everywhere

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        drawn = super().draw(round, size, pool, rng)
        return drawn - 6 if round > 1 and (self.everywhere or RANK == 1) else drawn


class Numbers(Always):
    """From the second round on gives numbers of clients, and no mask, on every rank or on one."""

    def __init__(self, everywhere: bool = True) -> None:
        self.everywhere = everywhere

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        mask = super().present(round, clients, seed)
        return np.flatnonzero(mask) if round > 1 and (self.everywhere or RANK == 1) else mask  # type: ignore[return-value]


class Reach(Always):
    """Some ranks can reach nobody."""

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return super().present(round, clients, seed) & (round < 2 or RANK == 0)


class Lose(Ideal):
    """One rank loses a client."""

    def plan(self, asked: Cohort, size: int, workload: Workload, seed: int) -> RoundPlan:
        return super().plan(asked.subset(np.arange(len(asked) - (RANK == 2))), size, workload, seed)


class Part(FedAvg):
    """Trains others of the cohort on every rank, and begins with those that keep something."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.kept = fed.client_state("kept", torch.zeros(3))

    def round(self, fed: Federation, cohort: Cohort) -> None:
        some = cohort.subset(np.arange(RANK % 2, len(cohort)))
        for block in fed.my_clients(some):
            fed.train(block, torch.zeros(fed.layout.size), self)


class Halves(Dataset):
    """A node's own half of the digits, or all of them with pixels of the node's own."""

    classes = 10

    def __init__(self, part: Literal["samples", "pixels"] = "samples") -> None:
        self.part = part

    def read(self, progress: Progress) -> Arrays:
        digits = Digits().read(progress)
        if self.part == "pixels":
            return Arrays(digits.train_x // (1 + RANK), digits.train_y, digits.test_x, digits.test_y)
        return Arrays(digits.train_x[RANK::2], digits.train_y[RANK::2], digits.test_x, digits.test_y)


class Output:
    """What some libraries' networks give."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Gives(Linear):
    def __init__(self, inputs: int, classes: int, kind: str) -> None:
        width = {"wide": 1000, "narrow": classes - 1, "single": 1}.get(kind, classes)
        super().__init__(inputs, width, None)
        self.norm, self.kind = torch.nn.BatchNorm1d(width), kind

    def forward(self, x: Tensor) -> Any:
        logits = self.norm(super().forward(x)) if self.kind == "normalised" else super().forward(x)
        if self.kind == "fails" or (self.kind == "fails in evaluation" and not self.training and len(x) > 1):
            return self.reshaped(x)
        if self.kind == "fails below":
            json.loads("{")
        if self.kind == "normalised by deviation":
            return logits / logits.std(0)
        made = {
            "tuple": lambda: (logits, logits[:, :2]),
            "second": lambda: [logits[:, :2], logits],
            "twice": lambda: [logits, logits.softmax(1)],
            "dict": lambda: {"loss": logits.mean(), "logits": logits},
            "object": lambda: Output(logits),
            "text": lambda: "logits",
            "map": lambda: logits[..., None, None],
            "flat": logits.flatten,
            "column": lambda: logits[:, 0],
            "transposed": lambda: logits.T,
            "squeezed": logits.squeeze,
            "integer": lambda: logits.argmax(1, keepdim=True).expand(logits.shape),
            "nan": lambda: logits / 0 * 0,
            "detached": logits.detach,
            "nothing": lambda: None,
            "training only": lambda: logits if self.training else logits.argmax(1),
        }
        return made.get(self.kind, lambda: logits)()

    def reshaped(self, x: Tensor) -> Tensor:
        return x.view(10, -1)


class Odd(Model):
    """A network that gives something else than logits."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Gives(math.prod(shape), classes, self.kind)


class TwoClasses(Digits):
    """Small digits and large ones."""

    classes = 2

    def read(self, progress: Progress) -> Arrays:
        digits = super().read(progress)
        return Arrays(digits.train_x, digits.train_y // 5, digits.test_x, digits.test_y // 5)


class Predicts(FedAvg):
    """Gives probabilities of some classes alone, with the help of what a client has received."""

    def predict(self, net: Net, batch: Batch, client: Mapping[str, Tensor]) -> Tensor:
        return net(batch.x)[:, :3] + 0 * client["received"][0]

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        return fed.train(block, start, self, phase, received=received)
