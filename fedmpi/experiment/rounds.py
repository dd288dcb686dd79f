"""One round: choosing clients, simulated conditions, the method's round, and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.algorithms import Algorithm
from fedmpi.checksum import REMEDY, checksum
from fedmpi.errors import BadInput, named
from fedmpi.experiment.interruption import Interruptions
from fedmpi.experiment.settings import Settings
from fedmpi.experiment.undeclared import Undeclared
from fedmpi.experiment.workload import MethodWorkload
from fedmpi.federation.engine import Engine
from fedmpi.federation.evaluation import Evaluation
from fedmpi.federation.ledger import Outcome
from fedmpi.options import acts_as
from fedmpi.policies import Always, Cohort, Pool, RoundPlan
from fedmpi.policies.clock import TICKS, to_ticks
from fedmpi.policies.privacy import NoPrivacy
from fedmpi.policies.server_optimizers import Replace
from fedmpi.policies.timeline import Timeline
from fedmpi.training.block import Block
from fedmpi.training.flat import Net
from fedmpi.training.samples import Batch


def play(
    experiment: Settings,
    engine: Engine,
    algorithm: Algorithm,
    round: int,
    interruptions: Interruptions,
    timeline: Timeline | None = None,
    undeclared: Undeclared | None = None,
) -> Outcome:
    """Play a round of the experiment, or of a stage.

    Args:
        timeline: the schedule of an asynchronous method; None: the method is synchronous.
        undeclared: what this rank has found; None: nothing is watched.
    """
    fed = engine.federation
    interruptions.begin_round()
    engine.begin(round)
    if timeline is None:
        plan = plan_round(experiment, engine, algorithm, round)
    else:
        claim = f"the schedule: ranks disagree; {REMEDY}"
        with _refused_alike(engine, [claim]):
            plan = timeline.row(round).plan
        engine.schedule = np.array(timeline.state)
        engine.vouch({claim: plan.cohort.checksum})
    clock = engine.clock + int(to_ticks(plan.row.get("virtual_seconds", 0.0)))
    is_selected = round == experiment.rounds or experiment.evaluated.selects(round, engine.clock, clock)
    is_evaluated = algorithm is experiment.algorithm and bool(experiment.evaluated) and is_selected
    if algorithm.pools_clients and plan.cohort.total_mass:
        plan = replace(plan, cohort=plan.cohort.pooled(fed.samples, by_steps=experiment.local.steps is not None))
    cohort, predict = plan.cohort, algorithm.predict if is_evaluated and experiment.evaluate_local else None
    engine.invite(plan, algorithm.client_metrics, predict)
    if is_evaluated and experiment.evaluate_means in ("cohort", "both"):
        engine.observe_cohort(cohort)
    # Without clients there is nothing to do, unless a private mean must hide this, or a schedule goes on.
    if cohort.total_mass or _is_private(experiment) or timeline is not None:
        with _by_server_optimizer(experiment, engine, algorithm):
            algorithm.round(fed, cohort)
    if is_evaluated:
        with fed.context.doing("evaluation"):
            algorithm.evaluate(fed)
            engine.evaluate_means()
            if experiment.evaluate_fine_tuned:
                weights = algorithm.weights if fed.is_server else torch.empty(fed.layout.size)
                hooks = FineTuning(algorithm)
                engine.evaluate_fine_tuned(hooks, weights, algorithm.predict, experiment.evaluate_fine_tuned)
        engine.account(experiment.sampler, experiment.cohort)
    engine.clock = clock
    kept = {name: value for part in algorithm.parts for name, value in vars(part).items()}
    return engine.finish(kept, *interruptions.asks(round), bool(undeclared and undeclared.found))


@contextmanager
def _by_server_optimizer(experiment: Settings, engine: Engine, algorithm: Algorithm) -> Iterator[None]:
    """Run a round of the method, which changes the global model only by the server optimizer that was asked for.

    Raises:
        BadInput: it changed the model without a step of the optimizer; on every rank alike.
    """
    optimizer = experiment.server_optimizer
    if algorithm is not experiment.algorithm or acts_as(optimizer, Replace):
        yield
        return
    step, is_server, is_used = optimizer.step, engine.federation.is_server, False

    def noting_step(weights: Tensor, mean: Tensor, parameters: int) -> Tensor:
        nonlocal is_used
        is_used = True
        return step(weights, mean, parameters)

    before = algorithm.weights.clone() if is_server else None
    vars(optimizer)["step"] = noting_step
    try:
        yield
    finally:
        del vars(optimizer)["step"]
    with engine.agreed():
        if before is not None and not is_used and not torch.equal(before, algorithm.weights):
            round, method = engine.federation.round, named(algorithm)
            reason = (
                f"{method} changed the model in round {round} without it: must be Replace, or the method must call"
            )
            raise BadInput(f"= {named(optimizer)}: {reason} self.server_step", "--server_optimizer")


class FineTuning:
    """The hooks of plain training by the method's task and prediction: what a client does with a received model."""

    direction_is_elementwise = True
    changes_loss = changes_direction = False

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return self._algorithm.task.loss(self._algorithm.predict(net, batch, client), batch.y)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient


def evaluate_start(experiment: Settings, engine: Engine) -> Evaluation | None:
    """Evaluate the initial model; returns the result at the server, and None on other ranks."""
    begin_before(engine, experiment.algorithm)
    experiment.algorithm.evaluate(engine.federation)
    return engine.finish({}).evaluation


def begin_before(engine: Engine, algorithm: Algorithm) -> None:
    """Begin the time before the first round, in which no client takes part."""
    engine.begin(0)
    engine.invite(RoundPlan(Cohort.nobody()), algorithm.client_metrics)


def plan_round(experiment: Settings, engine: Engine, algorithm: Algorithm, round: int) -> RoundPlan:
    """The plan of the round, the same on every rank.

    Raises:
        RanksDiffer: user code made different plans. It may be raised later, see `World.vouch`.
        BadInput: availability or sampler give what they may not; on every rank alike.
    """
    fed, seed, is_private = engine.federation, experiment.seed, _is_private(experiment)
    claims = _claims(experiment)
    with _refused_alike(engine, claims):
        present, waited = _reachable(experiment, engine, round)
    reachable = None if present.all() else np.flatnonzero(present)
    pool = Pool(fed.samples, lambda: fed.label_counts, reachable, may_be_empty=is_private)
    wanted = algorithm.clients_to_ask(round, experiment.cohort, experiment.clients)
    size = experiment.conditions.asked(wanted)
    reached = checksum(present)
    with _refused_alike(engine, claims, reached):
        drawn = experiment.sampler.cohort(round, size, pool, experiment.weighting, seed)
    chosen = drawn.checksum

    def losses() -> NDArray[np.float64]:
        # before ranks exchange a number for each of those drawn
        engine.vouch(dict(zip(claims, (reached, chosen), strict=False)))
        weights = algorithm.weights if fed.is_server else torch.empty(fed.layout.size)
        return engine.current_losses(weights, drawn.clients)

    asked = experiment.sampler.choose(drawn, size, losses)
    if is_private:
        # The expected number of clients, because a mean over those that came would reveal their number.
        asked = replace(asked, expected_mass=experiment.cohort)
    plan = experiment.conditions.plan(asked, wanted, MethodWorkload(engine, algorithm), seed)
    arrival = experiment.conditions.arrival(len(asked), algorithm.accepts_partial_work)
    if asked.inclusion and arrival is not None:
        thinned = plan.cohort.expecting(asked.inclusion.thinned(arrival), fed.samples)
        plan = replace(plan, cohort=thinned)
    engine.vouch(dict(zip(claims, (reached, checksum(chosen, asked.checksum), plan.cohort.checksum), strict=True)))
    row = plan.row
    if waited:
        row = {**row, "virtual_seconds": waited + row.get("virtual_seconds", 0.0)}
    if not isinstance(experiment.availability, Always):
        row = {**row, "unavailable": experiment.clients - pool.size}
    lost = 4 * fed.layout.size * (len(drawn) - len(asked)) + plan.bytes_lost  # what others received
    return replace(plan, row=row, bytes_lost=lost)


def _reachable(experiment: Settings, engine: Engine, round: int) -> tuple[NDArray[np.bool_], float]:
    """[clients] whether each client can be reached, and the virtual seconds for which a round waits for the first.

    Only rounds that begin by the virtual clock wait. If nobody comes any more, they do not wait either.
    """
    availability, clients, seed = experiment.availability, experiment.clients, experiment.seed
    if not availability.by_clock:
        return availability.reachable(round, clients, seed), 0.0
    now = engine.clock
    present = availability.reachable(now, clients, seed)
    later = None if present.any() else availability.arrival(now, ~present, seed)
    if later is None:
        return present, 0.0
    return availability.reachable(later, clients, seed), (later - now) / TICKS


def _claims(experiment: Settings) -> list[str]:
    """The problem if ranks differ in the decisions of availability, sampler and conditions."""
    parts = {"availability": "can be reached", "sampler": "were drawn", "conditions": "take part"}
    return [
        f"--{option} = {named(getattr(experiment, option))}: ranks disagree on which clients {what}; {REMEDY}"
        for option, what in parts.items()
    ]


@contextmanager
def _refused_alike(engine: Engine, claims: Sequence[str], *before: int) -> Iterator[None]:
    """Run user code that decides alike on every rank, and may raise bad input.

    If only some ranks raise it, or others, ranks differ in the next claim. No rank waits for a message that never
    comes.

    Args:
        claims: what ranks vouch for, one after another.
        before: checksums of the first ones, which were decided before.
    """
    try:
        yield
    except BadInput as error:
        engine.vouch(dict(zip(claims, (*before, checksum(str(error))), strict=False)))
        with engine.agreed():
            raise


def _is_private(experiment: Settings) -> bool:
    return not isinstance(experiment.privacy, NoPrivacy)
