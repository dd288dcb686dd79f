"""The federation as the round loop sees it: beginning and end of rounds, and general measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.federation.client_state import StateKeeper
from fedmpi.federation.context import Round
from fedmpi.federation.evaluation import Prediction
from fedmpi.federation.federation import Federation
from fedmpi.federation.ledger import Ledger, Outcome
from fedmpi.federation.observers import CohortMean, LastModels, LocalEvaluation
from fedmpi.policies import Cohort, RoundPlan, Sampler
from fedmpi.training.block import Hooks
from fedmpi.training.layout import Columns


class Engine:
    """Drives a federation from round to round. The calls are made on every rank in the same order.

    Args:
        federation: of clients around one network.

    Attributes:
        federation: the interface for methods.
        stage: name and engine of the current stage before the rounds.
        clock: virtual time of all rounds so far, in ticks (`fedmpi.policies.clock`).
        schedule: how far the schedule of an asynchronous method has come (`Timeline.state`).
    """

    stage: tuple[str, Engine] | None = None
    clock: int = 0

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self._context = federation.context
        self._cohort_mean: CohortMean | None = None
        self._last_models: LastModels | None = None
        self.schedule = np.zeros(3, dtype=np.int64)

    # What ranks agree on

    def agreed(self) -> AbstractContextManager[None]:
        """See `World.agreed`."""
        return self._context.world.agreed()

    def vouch(self, claims: Mapping[str, int]) -> None:
        """See `World.vouch`."""
        self._context.world.vouch(claims)

    def where(self) -> str:
        """What this rank is doing, for failure reports."""
        if self.stage:
            name, other = self.stage
            return f"{name} {other.where()}"
        round = self._context.round
        return f"round {round.number}, {round.activity}" if round.number else round.activity

    # What a checkpoint has

    @property
    def states(self) -> StateKeeper:
        """Vectors that clients keep between rounds."""
        return self._context.states

    @property
    def estimates(self) -> dict[str, NDArray]:
        """What the placement has learnt, privacy cost, virtual time and schedule so far; on every rank."""
        counts = {"released": np.array(self._context.released.means), "clock": np.array(self.clock)}
        return {**self._context.costs.learnt, **counts, "schedule": self.schedule}

    @estimates.setter
    def estimates(self, estimates: dict[str, NDArray]) -> None:
        self._context.costs.learnt = estimates
        self._context.released.means = int(estimates["released"])
        self.clock = int(estimates["clock"])
        self.schedule = estimates["schedule"]

    # A round

    def begin(self, number: int) -> None:
        """Start a round."""
        activity = "aggregation, or another step of the algorithm" if number else "before the first round"
        self._context.round = Round(number, activity)
        self._context.world.begin_round()
        self._context.energy.begin()
        self._context.reseed("cohort")
        self._cohort_mean = None

    def invite(
        self, plan: RoundPlan, client_metrics: tuple[str, ...] = (), predict: Prediction | None = None
    ) -> None:
        """Open the round's ledger, for the clients of a plan.

        Args:
            client_metrics: names of the values that the method records per client.
            predict: computes logits with a client's trained model, which is evaluated on the client's test samples
                (column local_accuracy, or that of another main metric); None: no such evaluation.
        """
        context, round = self._context, self._context.round
        averaged: tuple[str, ...] = ()
        if predict is not None:
            local = LocalEvaluation(context, predict)
            averaged = (local.column,)
            round.observers.append(local)
        metrics = (*client_metrics, *averaged)
        round.ledger = Ledger(
            context.world, round.number, plan, metrics, averaged, round.began, context.layout.name_at
        )
        context.reseed("method")

    def finish(
        self, kept: Mapping[str, object], status: int = 0, checkpoint: bool = False, hearing: bool = False
    ) -> Outcome:
        """End a round.

        Args:
            kept: the algorithm's attributes.
            status, checkpoint, hearing: requests of this rank, see `Outcome`.

        Raises:
            RuntimeError: an attribute is a broadcast vector, which the next round would overwrite.
        """
        context, round = self._context, self._context.round
        for name, value in kept.items():
            if (
                isinstance(value, Tensor)
                and value.device.type == "cpu"
                and context.world.lent(value.detach().numpy())
            ):
                raise RuntimeError(
                    f"{name} is a broadcast vector, which is valid only in its round: keep its clone()"
                )
        with context.doing("ending the round"):
            for model in (context.trainer.model, context.evaluator.model):
                model.check_constants()
            context.be_idle()
            self.federation.at_clients.show_last()
            round.ledger.ask(status, checkpoint, hearing)
            malicious = context.adversary.malicious if context.adversary else None
            outcome = round.ledger.close(
                sum(uplink.bytes for uplink in round.uplinks), context.costs.columns(), malicious, context.energy
            )
        context.costs.learn(round.ledger.observed)
        context.released.means += len(round.uplinks)
        return outcome

    # Further measurements

    def observe_cohort(self, cohort: Cohort) -> None:
        """Form the mean of the models of this round's cohort."""
        if cohort.total_mass:
            self._cohort_mean = CohortMean(self._context, cohort)
            self._context.round.observers.append(self._cohort_mean)

    def observe_everyone(self, everyone: Cohort) -> None:
        """From now on keep the last model of each client; the initial model at first."""
        self._last_models = LastModels(self._context, everyone, self.federation.initial_weights())
        self._context.observers.append(self._last_models)

    def evaluate_means(self) -> None:
        """Evaluate the means of client models, and log the results."""
        fed = self.federation
        fed.at_clients.show_last()
        if self._cohort_mean is not None:
            fed.log(**{f"cohort_mean_{fed.task.main}": fed.evaluate(self._cohort_mean.reduce()).main})
        if self._last_models is not None:
            fed.log(**{f"clients_mean_{fed.task.main}": fed.evaluate(self._last_models.reduce()).main})

    def evaluate_fine_tuned(self, hooks: Hooks, weights: Tensor, predict: Prediction, epochs: int) -> None:
        """Evaluate clients that have fine-tuned the global model, see `Reports.evaluate_fine_tuned`, and log it."""
        fed = self.federation
        found = fed.reports.evaluate_fine_tuned(weights, hooks, predict, epochs)
        self._context.round.ledger.fine_tuned = found
        fed.log(**{f"fine_tuned_{fed.task.main}": found.main})

    def account(self, sampler: Sampler, cohort: int) -> None:
        """Log the privacy budget that the means so far, including this round, have spent (column epsilon)."""
        context = self._context
        if context.world.is_server:
            means = context.released.means + len(context.round.uplinks)
            epsilon = context.privacy.epsilon(means, sampler, cohort, context.clients)
            if epsilon is not None:
                self.federation.log(epsilon=epsilon)

    # What a round costs

    def payload(self, received: Sequence[Columns | int], sent: Sequence[Columns | int]) -> tuple[int, int]:
        """Bytes that a client receives, and bytes that it sends after compression.

        Args:
            received, sent: for each vector, the part of the model, see `Algorithm.payload`.
        """
        layout, compression = self.federation.layout, self._context.compression
        bytes_down = 4 * sum(layout.extent(columns)[0] for columns in received)
        return bytes_down, sum(compression.payload(*layout.extent(columns)) for columns in sent)

    def current_losses(self, weights: Tensor, clients: NDArray[np.int64]) -> NDArray[np.float64]:
        """[m]: the mean loss of the server's `weights` [P] on the training samples of each of these clients.

        The same on every rank.
        """
        received = self._context.distribute(weights)
        return self.federation.at_clients.losses_of_all(clients, received[None])[:, 0]
