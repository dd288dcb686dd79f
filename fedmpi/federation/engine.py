"""The federation as the round loop sees it: rounds begin and end, and what no algorithm asks for is measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.federation.clients import Prediction
from fedmpi.federation.federation import Federation
from fedmpi.federation.ledger import Ledger, Outcome
from fedmpi.policies import Cohort, Sampler

if TYPE_CHECKING:
    from fedmpi.algorithms import Algorithm


class Engine(Federation):
    """A federation with what surrounds an algorithm's rounds; the calls are made on every rank in the same order.

    Attributes:
        stage: name and federation of what comes before the rounds, while it lasts.
    """

    stage: tuple[str, Engine] | None = None

    def agreed(self) -> AbstractContextManager[None]:
        """See `World.agreed`."""
        return self._world.agreed()

    def vouch(self, claims: Mapping[str, int]) -> None:
        """See `World.vouch`."""
        self._world.vouch(claims)

    @property
    def estimates(self) -> dict[str, NDArray]:
        """What the rounds so far have taught the placement, and what they have cost in privacy; on every rank."""
        return {**self._costs.learnt, "released": np.array(self._released.means)}

    @estimates.setter
    def estimates(self, estimates: dict[str, NDArray]) -> None:
        self._costs.learnt = estimates
        self._released.means = int(estimates["released"])

    def begin(self, round: int) -> None:
        """Start a round."""
        self.round = round
        self._activity = "aggregation, or another step of the algorithm" if round else "before the first round"
        self._world.begin_round()
        self._channels.clear()
        self.reseed("cohort")
        self._cohort_mean = self._kept_models = self._predict_locally = None
        self._was_idle = False

    def invite(self, cohort: Cohort, client_metrics: tuple[str, ...], predict: Prediction | None = None) -> None:
        """Open the round's books, for these clients.

        Args:
            predict: how logits are made with the model that a client has trained, which is measured on the client's
                own test samples (column local_accuracy); None: it is not.
        """
        self._predict_locally = predict
        metrics = client_metrics if predict is None else (*client_metrics, "local_accuracy")
        self._ledger = Ledger(self._world, self.round, cohort, metrics, self.layout.name_at)
        self.reseed("method")

    def finish(self, kept: Mapping[str, object], status: int = 0, checkpoint: bool = False) -> Outcome:
        """End a round.

        Args:
            kept: the algorithm's attributes.
            status, checkpoint: what this rank asks for, see `Outcome`.

        Raises:
            RuntimeError: one of them is a vector that was broadcast, which the next round would overwrite.
        """
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.device.type == "cpu" and self._world.lent(value.detach().numpy()):
                raise RuntimeError(f"{name} is kept beyond the round in which it was broadcast: keep its clone()")
        with self.doing("ending the round"):
            self._be_idle()
            self._ledger.ask(status, checkpoint)
            outcome = self._ledger.close(sum(channel.bytes for channel in self._channels))
        if self._adversary:
            outcome.clients["malicious"] = self._adversary.malicious[self._ledger.cohort.clients].astype(np.int64)
        workers = list(self._world.workers)
        for name, values in self._costs.columns().items():
            outcome.ranks[name] = np.full(self._world.size, np.nan)
            outcome.ranks[name][workers] = values
        self._costs.learn(self._ledger.observed)
        self._released.means += len(self._channels)
        return outcome

    def account(self, sampler: Sampler, cohort: int) -> None:
        """Log what the means that were formed so far, and in this round, cost in privacy (column epsilon)."""
        if self.is_server:
            epsilon = self._privacy.epsilon(self._released.means + len(self._channels), sampler, cohort, self.clients)
            if epsilon is not None:
                self.log(epsilon=epsilon)

    def where(self) -> str:
        """Where this rank is in the experiment, for the report of a failure."""
        if self.stage:
            name, other = self.stage
            return f"{name} {other.where()}"
        return f"round {self.round}, {self._activity}" if self.round else self._activity

    def payload(self, algorithm: Algorithm, cohort: Cohort) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[m] bytes of vectors that each client receives, and sends in the compressed form, in the coming round."""
        down, up = algorithm.payload(self.layout)
        received, sent = (map(self.layout.extent, vectors) for vectors in (down, up))
        bytes_down = 4 * (sum(size for size, _ in received) + algorithm.received_beside(self, cohort))
        bytes_up = sum(self._compression.payload(*extent) for extent in sent)
        return bytes_down, np.full(len(cohort), bytes_up)

    def current_losses(self, clients: NDArray[np.int64], algorithm: Algorithm) -> NDArray[np.float64]:
        """[m]: the mean loss of the global model on the training samples of each of these, on every rank alike."""
        received = self._distribute(algorithm.weights if self.is_server else torch.empty(self.layout.size))
        return self.losses_of_all(clients, received[None])[:, 0]

    def keep_last_models(self, everyone: Cohort) -> None:
        """Keep the last model of each client, the initial one at first, and measure the mean over `everyone`."""
        self._everyone = everyone
        self._last_models = self.client_state("last model", self.initial_weights())

    def collect_models(self, cohort: Cohort) -> None:
        """Form the mean of the models that this round's cohort trains, and measure it."""
        self._cohort_mean = self._mean_over(cohort) if cohort.total_mass else None

    def evaluate_means(self) -> None:
        """Measure the means of the clients' models that are formed, beside the server's model, and log them."""
        if self._cohort_mean is not None:
            self.log(cohort_mean_accuracy=self.evaluate(self._cohort_mean.reduce()).accuracy)
        if self._last_models is not None:
            mean = self._mean_over(self._everyone)
            with self.doing("averaging all clients' models"):
                for client in self._at_home().tolist():
                    block = self._everyone.block(np.array([client]))
                    mean.add(self._last_models[block], block)
            self.log(clients_mean_accuracy=self.evaluate(mean.reduce()).accuracy)
