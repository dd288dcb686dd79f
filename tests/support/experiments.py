"""Small experiments in this process, and the slow, plain computations that they are compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness, results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddf import FedDF
from fedmpi.algorithms.fedftg import FedFTG
from fedmpi.algorithms.genfl import GenFL
from fedmpi.data import IID, Arrays, Dataset, Partition
from fedmpi.experiment.experiment import Experiment
from fedmpi.federation.engine import Engine
from fedmpi.federation.evaluation import Evaluation
from fedmpi.federation.federation import Federation
from fedmpi.federation.local import Trained
from fedmpi.models import BiLSTM, Model
from fedmpi.models.mlp import LogisticRegression
from fedmpi.mpi.world import World
from fedmpi.policies import All
from fedmpi.tasks import Classification
from fedmpi.training.block import WHOLE, Block, Phase, Work
from fedmpi.training.flat import FlatModel
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.trainer import LocalWork

torch.set_num_threads(1)  # as in a job: threads that wait for one another take seconds on a busy machine

CPU = torch.device("cpu")
SEED = 3


class Alone(World):
    """The only rank of a job."""


def run(path: Path, algorithm: Algorithm | None = None, **settings: Any) -> results.Run:
    """Run an experiment in this process.

    By default 4 clients, all in every round, go once over the digits with logistic regression.
    """
    few: dict[str, Any] = {
        "partition": IID(),
        "model": LogisticRegression(),
        "sampler": All(),
        "local": LocalTraining(epochs=1),
        "clients": 4,
        "rounds": 1,
        "device": "cpu",
        "seed": SEED,
    }
    finished = Experiment(algorithm, output=path, **few | settings).run()
    assert finished.status == "finished"
    is_ours = type(algorithm).__module__.startswith("fedmpi.")
    assert not is_ours or "undeclared_state" not in finished.attributes
    return finished


class Reader(BiLSTM):
    """A model of texts of 30 different tokens, of whatever data set."""

    vocabulary = 30


def texts(rng: np.random.Generator, count: int, longest: int, vocabulary: int) -> NDArray[np.int64]:
    """[count, longest] tokens, a text of each length in turn: 1, 2, .. `longest`, 1, and so on; 0 pads."""
    tokens = rng.integers(1, vocabulary, (count, longest))
    tokens[np.arange(longest) > (np.arange(count) % longest)[:, None]] = 0
    return tokens


class Cut(Partition):
    """So many samples for each client, in order; the rest nobody has."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        ends = np.cumsum(self.sizes)
        return [np.arange(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]


def shortened(method: type[Algorithm]) -> Algorithm:
    """The method as it is by default, but for long stages before the rounds or at the server."""
    if method is GenFL:
        return GenFL(pretrain=False, cas_epochs=0)
    if method is FedDF:
        return FedDF(generator_steps=2, student_steps=2)
    return FedFTG(iterations=1) if method is FedFTG else method()


def read(dataset: Dataset) -> Arrays:
    return dataset.read(lambda line: None)


def network(model: Model, shape: tuple[int, ...], classes: int, seed: int = SEED, number: int = 0) -> nn.Module:
    """What an experiment of this seed starts from."""
    torch.manual_seed(randomness.key(seed, "initial weights", client=number))
    return model.build(shape, classes)


def tensors(run: results.Run, weights: NDArray[np.float32] | None = None) -> dict[str, Tensor]:
    """The tensors of a run's global model, or of other `weights` of the same shape."""
    return {name: torch.from_numpy(tensor) for name, tensor in run.state_dict(weights).items()}


def state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers of a module."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def normalised(x: NDArray, dataset: Dataset) -> Tensor:
    """uint8 images [n, C, H, W] as the network sees them."""
    assert dataset.mean
    assert dataset.std
    mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return (torch.from_numpy(np.ascontiguousarray(x)).float() / 255 - mean) / std


def order(epoch: int, round: int, client: int, samples: int, seed: int = SEED, phase: str = "") -> NDArray[np.int64]:
    """The order in which a client goes over its samples."""
    key = randomness.keys(seed, f"{phase}order {epoch}", round, [client])
    return randomness.hashed_bits(key, samples)[0].argsort(kind="stable")


def plain_training(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: LocalTraining,
    client: int = 0,
    round: int = 1,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    phase: str = "",
) -> float:
    """One client's local training as anyone would write it in PyTorch, in place; returns the mean training loss.

    The client holds the samples x, y and nothing else. Parameters that require no gradient are not trained, and
    batch normalisation with such parameters is in evaluation mode.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    normalises = bool(layers)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decay, momentum = settings.weight_decay, settings.momentum
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(trained, settings.lr, momentum=momentum, weight_decay=decay)
        if settings.optimizer == "sgd"
        else {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer](
            trained, settings.lr, weight_decay=decay
        )
    )
    module.train(not (normalises and len(y) == 1))
    for layer in layers:
        if not layer.weight.requires_grad:
            layer.eval()
    orders = (order(epoch, round, client, len(y), phase=phase) for epoch in count())
    batches = (batch for seen in orders for batch in plain_batches(seen, settings.batch_size, normalises))
    a_pass = sum(1 for _ in plain_batches(np.arange(len(y)), settings.batch_size, normalises))
    total, samples = 0.0, 0
    for chosen in islice(batches, settings.steps or settings.epochs * a_pass):
        optimizer.zero_grad()
        value = loss(module(x[chosen]), y[chosen])
        value.backward()
        total += value.item() * len(chosen)
        samples += len(chosen)
        if settings.clip_norm is not None:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            for gradient in gradients:
                gradient.mul_((settings.clip_norm / norm).clamp(max=1))
        optimizer.step()
    return total / samples


def plain_batches(samples: NDArray[np.int64], size: int, normalises: bool) -> Iterator[NDArray[np.int64]]:
    """Batches in order; batch normalisation cannot train on a last batch of one, which joins the one before."""
    while len(samples):
        if normalises and len(samples) == size + 1:
            size += 1
        yield samples[:size]
        samples = samples[size:]


def plain_partly_shared(
    start: nn.Module,
    keeps: Collection[str],
    clients: int,
    rounds: int,
    train: Callable[[nn.Module, int, int], object],
) -> tuple[list[nn.Module], dict[str, Tensor]]:
    """Federated averaging in PyTorch of all tensors but those that `keeps` names; the clients are equally large.

    Args:
        train: (network, client, round), in place.

    Returns:
        The clients' networks after their last training, and the server's tensors.
    """
    networks = [copy.deepcopy(start) for _ in range(clients)]
    server = {name: tensor.clone() for name, tensor in state(start).items()}
    for round in range(1, rounds + 1):
        for client, module in enumerate(networks):
            received = {name: tensor for name, tensor in server.items() if name not in keeps}
            module.load_state_dict(received, strict=False)
            train(module, client, round)
        for name in server.keys() - set(keeps):
            server[name] = torch.stack([state(module)[name] for module in networks]).mean(0)
    return networks, server


def block(*clients: int, samples: int = 1, mass: int = 1) -> Block:
    """Clients that hold, and count, equally much."""
    return Block(np.array(clients), np.full(len(clients), samples), np.full(len(clients), mass))


class Client:
    """Client 0 of a federation of one, with the samples x (uint8 images or float32 features) and y."""

    def __init__(
        self,
        module: nn.Module,
        x: NDArray,
        y: NDArray[np.int64],
        settings: LocalTraining,
        dataset: Dataset | None = None,
        pixels: Tensor | None = None,
    ) -> None:
        self.model = FlatModel(module, CPU)
        self.start = self.model.weights.clone()
        self.samples = len(y)
        mean, std = (dataset.mean, dataset.std) if dataset else (None, None)
        shards = [np.arange(len(y))]
        task = LocalWork(
            Classification(), self.model, Samples(x, y, mean, std, CPU), shards, lambda client: pixels, settings, SEED
        )
        self._trainer = PlainTrainer(task)

    def train(
        self,
        algorithm: Algorithm | None = None,
        round: int = 1,
        rounds: int = 1,
        phase: Phase = WHOLE,
        start: Tensor | None = None,
        **vectors: Tensor,
    ) -> Work:
        """Train it, by default from the first weights; `model` then holds the result."""
        one = block(0, samples=self.samples, mass=self.samples)
        one.vectors = vectors
        received = self.start if start is None else start
        return self._trainer.train(one, received, algorithm or FedAvg(), round, rounds, phase)

    @property
    def moved(self) -> Tensor:
        """[P], how far training went."""
        return (self.model.weights - self.start)[0]


class Spy:
    """What the federation trains and measures.

    Attributes:
        trained: {client: [P]} of each round.
        measured: the vectors [P] of each round, the first of them the server's model.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.trained: list[dict[int, NDArray[np.float64]]] = []
        self.measured: list[list[Tensor]] = []
        train, evaluate, begin = Federation.train, Federation.evaluate, Engine.begin

        def noting_begin(engine: Engine, number: int) -> None:
            self.trained.append({})
            self.measured.append([])
            begin(engine, number)

        def noting_train(fed: Federation, block: Block, *arguments: Any, **options: Any) -> Trained:
            result = train(fed, block, *arguments, **options)
            for client, row in zip(block.clients.tolist(), result.weights, strict=True):
                self.trained[-1][client] = row.double().numpy().copy()
            return result

        def noting_evaluate(fed: Federation, weights: Tensor, *arguments: Any, **options: Any) -> Evaluation:
            self.measured[-1].append(weights.clone())
            return evaluate(fed, weights, *arguments, **options)

        patch.setattr(Engine, "begin", noting_begin)
        patch.setattr(Federation, "train", noting_train)
        patch.setattr(Federation, "evaluate", noting_evaluate)
