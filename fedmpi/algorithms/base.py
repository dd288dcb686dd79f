"""The base of all methods: an object on every rank with a method `round`, which follows the paper's pseudo-code."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmpi.lazy import nn
from fedmpi.options import Configured
from fedmpi.tasks import Classification, Task
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

    A subclass defines `round`. If its local step differs from plain training, it also defines one or both of the
    hooks `loss` and `direction`. Its options are its annotated attributes (`fedmpi.options.with_options`).

    The state of a method is explicit. The server's state are the attributes named in `server_state`. They are tensors
    at the server, and meta tensors of the same shape on the other ranks, so the same line of server arithmetic runs
    on every rank and costs time only at the server. The clients' state is created by `Federation.client_state`. Both
    are created in `setup`, and nothing else is kept between rounds. A checkpoint holds them, and the state of the
    server optimizer.

    Attributes:
        weights: [P], the global model; written to the results file.
        task: what is learned; set by the experiment.
    """

    #: Names of the attributes that hold the server's state.
    server_state: tuple[str, ...] = ("weights",)
    #: Names of attributes that change from round to round and need no checkpoint, because they are computed again.
    recomputed: tuple[str, ...] = ()
    #: Whether `direction` is elementwise. It is then called for parts of the parameters (with the block's rows of
    #: length d cut in the same way), which stay in the processor's cache from one operation to the next.
    direction_is_elementwise: bool = False
    #: Whether the global model is updated by `server_step`, so that `--server_optimizer` applies.
    takes_server_optimizer: bool = False
    #: Whether clients send changes of a common model to means, so that `--compression` applies.
    takes_compression: bool = True
    #: Whether a client sends only one vector of changes per round, for one mean, so that `--privacy` can bound it.
    takes_privacy: bool = False
    #: Whether `--local.clip_norm` can bound the gradient of a step. It cannot if parts of the model learn by losses
    #: of their own, because the clipping of one part would depend on the other.
    takes_clip_norm: bool = True
    #: Whether the learning rate may vary within a round. It may not if the server divides by that of the round.
    takes_rate_per_step: bool = True
    #: Whether the batch of a step may be computed in parts. It cannot if a loss depends on the whole batch.
    takes_accumulation: bool = True
    #: Default of `--weighting`, as in the paper.
    weighting: Weighting = "samples"
    #: Whether a client may count only once per round, which excludes samplers with replacement.
    counts_clients_once: bool = False
    #: Whether every client must take part in every round, and receive the plain mean of all models after it.
    needs_all_clients: bool = False
    #: Whether the server uses the models of single clients, in addition to means.
    looks_at_models: bool = False
    #: Whether a client trains one model per round, by one call of `Federation.train` (not counting a `Phase` with a
    #: name, unless all have one: then it is the last), so that `--evaluate_means` can average these models.
    averages_models: bool = False
    #: Names of those of `server_state` that are no models of the method, and so are not written to /model.
    hidden_state: tuple[str, ...] = ()
    #: Whether clients train at the same time from different versions of the model, see `Asynchronous`.
    is_asynchronous: bool = False
    #: Whether the method uses updates from a part of the local training; else they are dropped.
    accepts_partial_work: bool = False
    #: Whether samples must have classes (`Task.has_classes`).
    needs_classes: bool = False
    #: Names of the values per client that the method records with `Federation.record`; columns of /clients.
    client_metrics: tuple[str, ...] = ()

    weights: Tensor
    server_optimizer: ServerOptimizer
    task: Task = Classification()

    @property
    def parts(self) -> tuple[Algorithm, ...]:
        """The objects that have state: the method itself, and the method that it extends."""
        return (self,)

    @property
    def networks(self) -> Mapping[str, Layout]:
        """Layout of each extra server network, by the name of its state."""
        return {}

    @property
    def trains_at_server(self) -> bool:
        """Whether the server trains as well, so that it gets a GPU if clients are trained on GPUs."""
        return False

    @property
    def proxy(self) -> Dataset | None:
        """Unlabelled samples at the server, of the same kind as those of the data set (`Federation.proxy_batch`)."""
        return None

    @property
    def counts_clients_alike(self) -> bool:
        """Whether all clients have equal weights, because the aggregation rule has no weights."""
        return False

    @property
    def pools_clients(self) -> bool:
        """Whether the training samples of all clients are pooled, as those of client 0 (`Cohort.pooled`)."""
        return False

    @property
    def has_global_model(self) -> bool:
        """Whether `weights` is a model for all clients, so that `--evaluate_fine_tuned` can start from it."""
        return not self.pools_clients and any("weights" in part.server_state for part in self.parts)

    @property
    def changes_loss(self) -> bool:
        """Whether the method overrides `loss`."""
        cls = type(self)
        return cls.loss is not Algorithm.loss or cls.predict is not Algorithm.predict

    @property
    def changes_direction(self) -> bool:
        """Whether the method overrides `direction`."""
        return type(self).direction is not Algorithm.direction

    @property
    def has_stages(self) -> bool:
        """Whether the method trains something before the first round."""
        return type(self).stages is not Algorithm.stages

    @property
    def takes_held_out(self) -> bool:
        """Whether a client that has never taken part can fine-tune the global model by `train`."""
        return False

    def check(self, cohort: int) -> None:
        """Raise BadInput if the options do not fit this number of clients per round."""

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        """The network that is trained: the experiment's network, to which a method may add modules.

        Args:
            network: freshly initialised. Added modules draw from the same random generators after it.
            example: [2, ...] inputs with the shape and type of the data set's inputs.
        """
        return network

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        """Number of clients that are asked in this round: the cohort, unless the method needs more."""
        return cohort

    @property
    def trainings(self) -> tuple[Phase, ...]:
        """The trainings of a client in a round. `GRADIENT` stands for its part in `Federation.gradients`."""
        return (WHOLE,)

    @property
    def step_cost(self) -> float:
        """Cost of one optimizer step on the virtual clock, in steps of plain training.

        A forward pass counts as a third of a step, so a method with one additional forward pass has 4/3.
        """
        return 1.0

    @property
    def forward_passes(self) -> int:
        """Forward passes over all of a client's training samples in a round, in addition to its trainings."""
        return 0

    def count_steps(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        """[m] optimizer steps of each client in all trainings of the coming round; a collective.

        /clients has them after the round.
        """
        steps = np.zeros(len(cohort), dtype=np.int64)
        for phase in self.trainings:
            steps += fed.count_steps(cohort, phase)
        return steps

    def count_work(self, fed: Federation, cohort: Cohort) -> NDArray[np.float64]:
        """[m] cost of everything that a client computes in the round, in steps of plain training."""
        forward = self.forward_passes / 3 * fed.count_steps(replace(cohort, completed=None), Phase(epochs=1))
        return self.step_cost * self.count_steps(fed, cohort) + forward

    def received_beside(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        """[m] numbers that each client receives in the coming round in addition to `payload`; a collective."""
        return np.zeros(len(cohort), dtype=np.int64)

    def setup(self, fed: Federation) -> None:
        """Create the state before the first round."""
        self.weights = fed.initial_weights()

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        """The vectors that a client receives, and those that it sends in a round: for each, the part of the model."""
        whole = [slice(layout.size)]
        return whole, whole

    def stages(self, fed: Federation) -> Iterator[tuple[str, Federation, Algorithm]]:
        """Trainings between setup and the first round; runs on every rank.

        To train another network with the same clients, yield a name, a federation made by `fed.sibling`, and an
        algorithm. When the generator continues, the rounds of this stage are done. A run that is resumed in a stage
        starts here with the `server_state` of that time, and repeats no round.
        """
        yield from ()

    @abstractmethod
    def round(self, fed: Federation, cohort: Cohort) -> None:
        """One round with the clients of `cohort`. It runs on every rank; collectives are methods of `fed`.

        All ranks must make the same decisions. For that, the global generators of random, numpy.random and torch are
        seeded alike, see docs/tutorial.md.
        """

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        """Local training of a block's clients.

        Args:
            start: [P], where training starts.
            received: [P], the global model. It differs from `start` if a training is continued that began from it.
            phase: the part of the training.
        """
        return fed.train(block, start, self, phase)

    def server_step(self, fed: Federation, mean: Tensor) -> None:
        """Update the global model with the mean [P] of the clients' models, by the server optimizer."""
        self.weights = self.server_optimizer.step(self.weights, mean, fed.layout.parameters)

    def evaluate(self, fed: Federation) -> None:
        """Evaluate the state after a round: by default the global model on the test set."""
        fed.report(fed.evaluate(self.weights))

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        """[B], the loss of each sample of one client's batch; training minimises their mean.

        A term that does not belong to a sample, such as a penalty on the weights, is added to all of them. The losses
        are per sample because clients with different numbers of samples are trained together, and only the engine
        knows which rows of a batch are padding.

        Args:
            net: the network with the client's weights: `net(x)`, `net.features(x)`, `net.classify(z)`;
                `net.at(weights)` is the network with other weights.
            batch: inputs, targets and sample numbers.
            start: [P], the weights the client received.
            client: this client's rows of the vectors that were given to `Federation.train`.
        """
        return self.task.loss(self.predict(net, batch, client), batch.y)

    def predict(self, net: Net, batch: Batch, client: Mapping[str, Tensor]) -> Tensor:
        """[B, ...], the output of a model, in training and in `Federation.evaluate` with this method.

        Args:
            net: the network with the model's weights.
            batch: inputs, and in training the positions of the samples.
            client: the vectors given to `Federation.train`, or to `Federation.evaluate`.
        """
        return net(batch.x)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        """The direction of the local optimizer's step, computed from the gradient of the loss.

        Args:
            gradient, weights, start: [K, d], the d trained parameters of K clients; without buffers. The gradient may
                be overwritten, which is faster.
            block: the clients; `block["name"]` are their rows [K, ...] of the vectors given to `Federation.train`.
                Unless the method is elementwise, rows may be changed in place, and `block.gradient` computes further
                gradients; see `Trained.rows` and `Block.gradient`.
        """
        return gradient
