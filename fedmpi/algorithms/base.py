"""What every method is: an object that lives on all ranks and whose `round` reads like the paper's pseudo-code."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmpi.lazy import nn
from fedmpi.options import Configured
from fedmpi.training.block import WHOLE, Phase
from fedmpi.typing import (
    Batch,
    Block,
    Cohort,
    Dataset,
    Federation,
    Layout,
    Net,
    ServerOptimizer,
    Tensor,
    Trained,
    Vectors,
    Weighting,
)


class Algorithm(metaclass=Configured):
    """Base of the federated methods.

    A subclass writes `round`, and, where its local step differs from plain training, one or both of the hooks
    `loss` and `direction`. Its options are its annotated attributes (`fedmpi.options.with_options`).

    The state of a method is explicit. At the server: the attributes named in `server_state`, tensors that exist at
    the server and are of the same shape on the meta device elsewhere, so that the same line of server arithmetic
    runs on every rank but costs something on one. At the clients: what `Federation.client_state` hands out. Both
    are created in `setup`, and nothing else outlives a round. A checkpoint holds them, and the state of the server's
    optimizer.

    Attributes:
        weights: [P], the global model; written to the results file.
    """

    #: Names of the attributes that hold the server's state.
    server_state: tuple[str, ...] = ("weights",)
    #: Whether `direction` treats each parameter by itself, so that it may be asked for some of them at a time, with
    #: the block's rows of length d cut alike. It then runs while the gradient is still in the processor's cache.
    direction_is_elementwise: bool = False
    #: Whether the global model is moved by `server_step`, and so by any `--server_optimizer`.
    takes_server_optimizer: bool = False
    #: Whether clients send changes of a common model to means, so that any `--compression` applies to them.
    takes_compression: bool = True
    #: Whether all that leaves a client in a round is one vector of changes, for one mean: what `--privacy` bounds.
    takes_privacy: bool = False
    #: Default of `--weighting`: what the paper uses.
    weighting: Weighting = "samples"
    #: True if a client may count at most once per round; excludes samplers with replacement.
    counts_clients_once: bool = False
    #: Whether the server looks at single clients' models, beside the means.
    looks_at_models: bool = False
    #: Whether a client's part in a round is one model, that of its one `Federation.train` (not counting those in a
    #: `Phase` with a name), so that `--evaluate_means` can average these models.
    averages_models: bool = False
    #: Whether the method makes sense of an update that is only a part of the local training; else it is dropped.
    accepts_partial_work: bool = False
    #: Numbers a client that the method records with `Federation.record`; columns of /clients.
    client_metrics: tuple[str, ...] = ()

    weights: Tensor
    server_optimizer: ServerOptimizer

    @property
    def parts(self) -> tuple[Algorithm, ...]:
        """The objects that have state: the method itself, and one that it is a layer over."""
        return (self,)

    @property
    def networks(self) -> Mapping[str, Layout]:
        """Layout of each extra server network, by the name of its state."""
        return {}

    @property
    def trains_at_server(self) -> bool:
        """Whether the server trains as well, so that it wants a GPU where the clients have one."""
        return False

    @property
    def proxy(self) -> Dataset | None:
        """Samples without labels that the server has, of the kind of the data set's (`Federation.proxy_batch`)."""
        return None

    @property
    def counts_clients_alike(self) -> bool:
        """Whether clients count alike in any case, because the rule that takes the mean's place knows no weights."""
        return False

    @property
    def pools_clients(self) -> bool:
        """Whether the training samples of all clients lie in one place, with client 0 (`Cohort.pooled`)."""
        return False

    @property
    def changes_loss(self) -> bool:
        """Whether the method has a loss of its own."""
        cls = type(self)
        return cls.loss is not Algorithm.loss or cls.predict is not Algorithm.predict

    @property
    def changes_direction(self) -> bool:
        """Whether the method has a direction of its own."""
        return type(self).direction is not Algorithm.direction

    @property
    def has_stages(self) -> bool:
        """Whether the method does something before the first round."""
        return type(self).stages is not Algorithm.stages

    @property
    def takes_held_out(self) -> bool:
        """Whether a client that has never taken part can go on from the global model, by `train`."""
        return False

    def check(self, cohort: int) -> None:
        """Raise BadInput if the options do not go with so many clients a round."""

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        """The network that is trained, made of the experiment's own; a method may add modules to it.

        Args:
            network: freshly initialised; what is added draws from the same generators, after it.
            example: [2, ...] inputs of some values, in the shape and type of the data set's.
        """
        return network

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        """How many of the clients a round asks: the cohort, unless the method has to hear of more in this round."""
        return cohort

    @property
    def trainings(self) -> tuple[Phase, ...]:
        """The trainings that a client of a round goes through; `GRADIENT` is its part in `Federation.gradients`."""
        return (WHOLE,)

    @property
    def step_cost(self) -> float:
        """What one optimizer step costs on the virtual clock, in steps of plain training.

        A forward pass is a third of that: a method that runs the network forward once more has 4/3.
        """
        return 1.0

    @property
    def forward_passes(self) -> int:
        """Forward passes over all of a client's training samples in a round, beside its trainings."""
        return 0

    def count_steps(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        """[m] the optimizer steps that the coming round asks of each client, in all trainings; a collective.

        They are what /clients has when the round is over.
        """
        steps = np.zeros(len(cohort), dtype=np.int64)
        for phase in self.trainings:
            steps += fed.count_steps(cohort, phase)
        return steps

    def count_work(self, fed: Federation, cohort: Cohort) -> NDArray[np.float64]:
        """[m] what that, and all else a client computes in the round, costs in steps of plain training."""
        forward = self.forward_passes / 3 * fed.count_steps(replace(cohort, completed=None), Phase(epochs=1))
        return self.step_cost * self.count_steps(fed, cohort) + forward

    def received_beside(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        """[m] numbers that each client receives in the coming round beside `payload`; a collective."""
        return np.zeros(len(cohort), dtype=np.int64)

    def setup(self, fed: Federation) -> None:
        """Create the state before the first round."""
        self.weights = fed.initial_weights()

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        """Of each vector that a client receives, and of each that it sends in a round, what it is of the model."""
        whole = [slice(layout.size)]
        return whole, whole

    def stages(self, fed: Federation) -> Iterator[tuple[str, Federation, Algorithm]]:
        """What comes between setup and the first round; runs on every rank.

        Whenever another network is to be trained by the same clients, yield a name, a federation made by
        `fed.sibling`, and the algorithm: when the generator goes on, its rounds are over. A run that is resumed in a
        stage comes here with what `server_state` had then, and does no round a second time.
        """
        yield from ()

    @abstractmethod
    def round(self, fed: Federation, cohort: Cohort) -> None:
        """One round with the clients of `cohort`; runs on every rank, collectives are methods of `fed`.

        Whatever ranks decide by themselves they must decide alike. The global generators of random, numpy.random and
        torch are seeded for that, see docs/tutorial.md.
        """

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        """Local training of a block's clients, apart from all others.

        Args:
            start: [P], where training starts.
            received: [P], the global model: `start`, unless training goes on that has begun from it.
            phase: which part of the training it is.
        """
        return fed.train(block, start, self, phase)

    def server_step(self, fed: Federation, mean: Tensor) -> None:
        """Move the global model towards the mean [P] of the clients' models, as the server's optimizer does."""
        self.weights = self.server_optimizer.step(self.weights, mean, fed.layout.parameters)

    def evaluate(self, fed: Federation) -> None:
        """Measure the state after a round: the global model on the test set, unless a method has more to show."""
        fed.report(fed.evaluate(self.weights))

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        """[B], the loss of each sample of one client's batch; training minimises their mean.

        A term that is no sample's own (a penalty on the weights, say) is added to all of them. Samples apart, because
        clients with different numbers of samples are trained side by side, and only the engine knows which of a
        batch's rows are real.

        Args:
            net: runs the client's own weights: `net(x)`, `net.features(x)`, `net.classify(z)`; `net.at(weights)`
                runs any others.
            batch: inputs, labels and sample numbers.
            start: [P], the weights the client received.
            client: this client's rows of the vectors given to `Federation.train`.
        """
        from fedmpi.training.losses import cross_entropy

        return cross_entropy(self.predict(net, batch, client), batch.y)

    def predict(self, net: Net, batch: Batch, client: Mapping[str, Tensor]) -> Tensor:
        """[B, classes], the logits of a model, in training and where `Federation.evaluate` is given this method.

        Args:
            net: runs its weights.
            batch: inputs, and in training the samples' places.
            client: the vectors given to `Federation.train`, or to `Federation.evaluate`.
        """
        return net(batch.x)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        """What the local optimizer steps along, from the gradient of the loss.

        Args:
            gradient, weights, start: [K, d], the d trained parameters of K clients; buffers are not among them. The
                gradient may be overwritten, which is faster.
            block: the clients; `block["name"]` are their rows [K, ...] of the vectors given to `Federation.train`.
        """
        return gradient
