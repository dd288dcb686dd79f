"""Held-out clients: after the last round each of them fine-tunes the global model alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.algorithms import Algorithm
from fedmpi.federation.engine import Engine
from fedmpi.federation.evaluation import predict_with
from fedmpi.policies import Cohort, RoundPlan
from fedmpi.training.block import Phase


def train_held_out(
    engine: Engine,
    algorithm: Algorithm,
    held_out: Cohort,
    rounds: int,
    epochs: int,
    known: NDArray[np.float64] | None,
) -> Iterator[NDArray[np.float64]]:
    """[held_out, epochs + 1]: main metric of each client on its test samples, before training and after each epoch.

    Training starts from the global model, with the learning rate of the last round, and an optimizer that is reset
    every epoch. Whenever each rank has trained one client, all results so far are yielded, with NaN for the rest.

    Args:
        held_out: the held-out clients.
        rounds: the number of the last round.
        epochs: passes over the samples of a held-out client.
        known: results from before an interruption; None: there are none.
    """
    fed, context = engine.federation, engine.federation.context
    engine.begin(rounds)
    engine.invite(RoundPlan(held_out))
    context.observers.clear()  # of the clients of rounds
    received = context.distribute(algorithm.weights if fed.is_server else torch.empty(fed.layout.size))
    accuracy = np.full((len(held_out), epochs + 1), np.nan) if known is None else known
    waiting, workers = np.flatnonzero(np.isnan(accuracy[:, 0])), list(context.world.workers)
    for first in range(0, len(waiting), len(workers)):
        turn = waiting[first : first + len(workers)]
        found = np.zeros((len(turn), epochs + 1))
        for k in np.flatnonzero(np.array(workers[: len(turn)]) == context.world.rank):
            block = held_out.block(turn[k : k + 1])
            client, weights = int(block.clients[0]), received
            context.turn_to(client)
            for epoch in range(epochs + 1):
                if epoch:
                    phase = Phase(f"held-out {epoch} ", epochs=1)
                    trained = algorithm.train(fed, block, weights, received, phase).weights
                    weights = trained[0].clone()
                predict = predict_with(algorithm.predict, {"received": received})
                found[k, epoch] = context.evaluator.value_of_client(weights, client, predict)
        context.world.sum(found)
        accuracy[turn] = found
        yield accuracy
