"""Distillation at the server: its model is the student, and the local models of the round are the teachers.

The teachers stay on the ranks that trained them (`Federation.ask_models`). Everything here exists at the server. On
the other ranks, batches and answers are empty tensors of the right shape, and steps do nothing, so that a method has
the same code on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.models.generators import Generator
from fedmpi.policies import Cohort
from fedmpi.training.flat import Net
from fedmpi.training.optimizers import SGD, Adam

Mode = Literal["restored", "train", "eval"]


@dataclass(frozen=True)
class Order:
    """The inputs for B samples of a generator.

    Attributes:
        noise: [B, noise], standard normal.
        labels: [B].
        parts: client number -> [B], the client's share of the cohort's samples of each label's class.
    """

    noise: Tensor
    labels: Tensor
    parts: dict[int, Tensor]


class Synthesizer:
    """A generator at the server. If it diverges, it is re-initialised.

    Args:
        fed: the federation, in the method's `setup`.
        generator: describes the network.
        weight_decay: of its optimizer, Adam, which is reset every round.

    Attributes:
        layout: of the network's vector.
        resets: how often it was re-initialised in this round.

    Raises:
        BadInput: its samples have another shape than the data set's; on every rank alike.
    """

    def __init__(self, fed: Federation, generator: Generator, weight_decay: float = 0.0) -> None:
        name = type(generator).__name__
        if fed.is_text:
            raise BadInput(f"= {name}: cannot make text, and the data set is text", "generator")
        self._fed = fed
        self._make = partial(generator.build, fed.shape, fed.classes)
        network = fed.at_server.build(self._make, "generator")
        one = torch.zeros(1, generator.noise, device=fed.device), torch.zeros(1, dtype=torch.int64, device=fed.device)
        made = tuple(network.module.eval()(*one).shape[1:])
        if made != fed.shape:
            raise BadInput(
                f"= {name}: makes samples of shape {made}, but the data set's are of {fed.shape}", "generator"
            )
        self.layout = network.layout
        self.resets = 0
        self._network = network if fed.is_server else None
        self._first = network.weights[0].cpu().clone()
        self._optimizer = Adam(torch.Size((1, self.layout.parameters)), fed.device, weight_decay)
        self._lr = 0.0

    @property
    def weights(self) -> Tensor:
        """[n], a copy of the weights; on the meta device on other ranks."""
        return (
            torch.empty(self.layout.size, device="meta")
            if self._network is None
            else self._network.weights[0].to("cpu", copy=True)
        )

    def begin(self, weights: Tensor, lr: float) -> None:
        """Start a round with these weights [n] and this learning rate."""
        self.resets, self._lr = 0, lr
        self._optimizer.reset()
        if self._network:
            self._network.load(weights)

    def make(self, order: Order) -> Tensor:
        """[B, ...] the samples, made in evaluation mode."""
        with torch.no_grad():
            return self._run(order, learning=False)

    def try_out(self, order: Order) -> Tensor:
        """The same in training mode, with the autograd graph that `descend` needs."""
        return self._run(order, learning=True)

    def _run(self, order: Order, learning: bool) -> Tensor:
        if self._network is None:
            return torch.empty(len(order.labels), *self._fed.shape)
        self._network.module.train(learning)
        made: Tensor = self._network.module(order.noise, order.labels)
        if not made.isfinite().all():
            self._reset()
            made = self._network.module(order.noise, order.labels)
        return made

    def descend(self, loss: Tensor) -> None:
        """One optimizer step on a loss of the samples from `try_out`."""
        if self._network is None:
            return
        network, parameters = self._network, self.layout.parameters
        network.backward(loss[None])
        if network.gradient.isfinite().all():
            with torch.no_grad():
                self._optimizer.advance()
                self._optimizer.step(network.weights[:, :parameters], network.gradient, self._lr)
        else:
            self._reset()

    def _reset(self) -> None:
        assert self._network
        self._network.load(self._fed.at_server.build(self._make, "generator").weights[0])
        self._optimizer.reset()
        self.resets += 1


class Student:
    """The server's model while it is trained on class probabilities.

    Args:
        fed: in a round, after the clients' training.
        weights: [P] from which it starts.
        optimizer: sgd or adam.
        weight_decay: as of `torch.optim`.
        mode: of batch normalisation and dropout in its steps. restored: train, but the running statistics are
            restored at the end.

    Attributes:
        skipped: number of steps that were skipped, because their gradient was not finite.
    """

    def __init__(
        self, fed: Federation, weights: Tensor, optimizer: Literal["sgd", "adam"], weight_decay: float, mode: Mode
    ) -> None:
        self.skipped = 0
        self._classes = fed.classes
        self._meta = torch.empty(weights.shape, device="meta")
        self._mode = mode
        self._received = weights
        self._model = fed.at_server.model(weights)
        shape = torch.Size((1, fed.layout.parameters))
        self._optimizer = (
            Adam(shape, fed.device, weight_decay)
            if optimizer == "adam"
            else SGD(shape, fed.device, 0.0, weight_decay)
        )

    @property
    def weights(self) -> Tensor:
        """[P], a copy of the weights; on the meta device on other ranks."""
        if self._model is None:
            return self._meta
        learnt, statistics = self._model.weights[0].to("cpu", copy=True), slice(self._model.layout.parameters, None)
        if self._mode == "restored":
            learnt[statistics] = self._received[statistics]
        return learnt

    def logits(self, x: Tensor) -> Tensor:
        """[B, classes] in evaluation mode; gradients flow only to `x`."""
        if self._model is None:
            return torch.empty(len(x), self._classes)
        return Net(self._model).at(self._model.weights[0])(x)

    def learn(self, x: Tensor, target: Tensor, lr: float) -> None:
        """One optimizer step towards the probabilities [B, classes] for `x`.

        The loss is the mean of sum_c -target_c log q_c, which has the gradient of KL(target || q).
        """
        if self._model is None:
            return
        model, parameters = self._model, self._model.layout.parameters
        statistics = model.weights[:, parameters:].clone()
        model.module.train(self._mode != "eval")
        model.backward(-(target * functional.log_softmax(Net(model)(x), 1)).sum(1))
        if model.gradient.isfinite().all():
            with torch.no_grad():
                self._optimizer.advance()
                self._optimizer.step(model.weights[:, :parameters], model.gradient, lr)
        else:
            with torch.no_grad():
                model.weights[:, parameters:] = statistics
            self.skipped += 1


def class_shares(label_counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[m, classes], from counts of the same shape: each client's share of the samples of a class.

    The shares of a class sum to 1, or to 0 if no client has samples of it.
    """
    shares: NDArray[np.float64] = label_counts / np.maximum(label_counts.sum(0), 1)
    return shares


def stratified_labels(counts: NDArray[np.int64], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Labels in the proportions of `counts` [classes], rounded to whole numbers, in random order."""
    ends = np.rint(np.cumsum(counts) * (number / counts.sum())).astype(np.int64)
    return rng.permutation(np.repeat(np.arange(len(counts)), np.diff(ends, prepend=0)))


def draw_orders(fed: Federation, cohort: Cohort, number: int, size: int, noise: int, purpose: str) -> Iterator[Order]:
    """Draw orders with labels in the proportions of the cohort's samples; the same on every rank.

    Args:
        size, noise: B, and the length of the noise vector.
        purpose: of the random numbers.
    """
    counts, rng = fed.label_counts[cohort.clients], fed.stream(purpose)
    labels = stratified_labels(counts.sum(0), number * size, rng).reshape(number, size)
    shares = dict(zip(cohort.clients.tolist(), class_shares(counts).astype(np.float32), strict=True))
    for chosen in labels:
        drawn = rng.standard_normal((size, noise), dtype=np.float32)
        parts = {client: torch.from_numpy(share[chosen]).to(fed.device) for client, share in shares.items()}
        yield Order(torch.from_numpy(drawn).to(fed.device), torch.from_numpy(chosen).to(fed.device), parts)


def diversity_loss(x: Tensor, noise: Tensor) -> Tensor:
    """exp(-mean over pairs i, j of |x_i - x_j| |z_i - z_j|), in (0, 1]: small if samples vary with the noise.

    The first distance is the mean absolute difference, the second the mean squared difference.
    """
    flat = x.flatten(1)
    made = torch.cdist(flat, flat, p=1) / flat.shape[1]
    drawn = (noise[:, None] - noise).square().mean(2)
    return torch.exp(-(made * drawn).mean())


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[B], KL(p || q), from the logarithms of the probabilities [B, classes]."""
    return (log_p.exp() * (log_p - log_q)).sum(1)
