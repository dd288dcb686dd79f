"""One round: who is asked, how it goes for them, what the method does, and what is measured."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms import Algorithm
from fedmpi.checksum import REMEDY, checksum
from fedmpi.errors import named
from fedmpi.experiment.interruption import Interruptions
from fedmpi.experiment.settings import Experiment
from fedmpi.federation.engine import Engine
from fedmpi.federation.evaluation import Evaluation
from fedmpi.federation.ledger import Outcome
from fedmpi.policies import All, Always, Cohort, Course, Pool
from fedmpi.policies.privacy import NoPrivacy


def play(
    experiment: Experiment, fed: Engine, algorithm: Algorithm, round: int, interruptions: Interruptions
) -> Outcome:
    """A round of this federation by this method, which is the experiment's own or that of a stage."""
    began = time.perf_counter()
    interruptions.begin_round()
    fed.begin(round)
    plan, bytes_lost = plan_round(experiment, fed, algorithm, round)
    cohort, is_evaluated = plan.cohort, algorithm is experiment.algorithm and _is_evaluated(experiment, round)
    if algorithm.pools_clients and cohort.total_mass:
        cohort = cohort.pooled(fed.samples, by_steps=experiment.local.steps is not None)
    predict = algorithm.predict if is_evaluated and experiment.evaluate_local else None
    fed.invite(cohort, algorithm.client_metrics, predict)
    if is_evaluated and experiment.evaluate_means in ("cohort", "both"):
        fed.collect_models(cohort)
    if cohort.total_mass or _is_private(experiment):  # else there is nothing to learn from, nor to hide
        algorithm.round(fed, cohort)
    if is_evaluated:
        with fed.doing("evaluation"):
            algorithm.evaluate(fed)
            fed.evaluate_means()
        fed.account(experiment.sampler, experiment.cohort)
    kept = {name: value for part in algorithm.parts for name, value in vars(part).items()}
    outcome = fed.finish(kept, *interruptions.asks(round))
    outcome.row["bytes_down"] += bytes_lost
    outcome.row.update(plan.row)
    outcome.row["seconds"] = time.perf_counter() - began
    outcome.clients.update(plan.clients)
    return outcome


def evaluate_start(experiment: Experiment, fed: Engine) -> Evaluation | None:
    """The initial model on the test samples, at the server; None: elsewhere."""
    begin_before(fed, experiment.algorithm)
    experiment.algorithm.evaluate(fed)
    return fed.finish({}).evaluation


def begin_before(fed: Engine, algorithm: Algorithm) -> None:
    """Begin what comes before the first round, in which no client takes part."""
    fed.begin(0)
    fed.invite(Cohort.nobody(), algorithm.client_metrics)


def plan_round(experiment: Experiment, fed: Engine, algorithm: Algorithm, round: int) -> tuple[Course, int]:
    """How the round goes for those who are asked, and the bytes that others received than those it uses.

    The same on every rank.

    Raises:
        RanksDiffer: it is not, because of user code; sooner or later, see `World.vouch`.
    """
    seed, is_private = experiment.seed, _is_private(experiment)
    present = experiment.availability.present(round, experiment.clients, seed)
    pool = Pool(fed.samples, fed.label_counts, np.flatnonzero(present), may_be_empty=is_private)
    wanted = algorithm.asks(round, experiment.cohort, experiment.clients)
    size = experiment.conditions.asked(wanted)
    drawn = experiment.sampler.cohort(round, size, pool, experiment.weighting, seed)
    reached, chosen = checksum(present), drawn.checksum

    def losses() -> NDArray[np.float64]:
        fed.vouch(_claims(experiment, reached, chosen))  # before ranks exchange a number for each of those drawn
        return fed.current_losses(drawn.clients, algorithm)

    asked = experiment.sampler.choose(drawn, size, losses)
    if is_private:
        # Whoever came: a mean over them would tell how many they are.
        takes_all = isinstance(experiment.sampler, All)
        asked = replace(asked, expected_mass=experiment.clients if takes_all else experiment.cohort)
    plan = experiment.conditions.course(asked, wanted, fed, algorithm, seed)
    arrival = experiment.conditions.arrival(len(asked), algorithm.accepts_partial_work)
    if asked.inclusion and arrival is not None:
        thinned = plan.cohort.expecting(asked.inclusion.thinned(arrival), fed.samples)
        plan = replace(plan, cohort=thinned)
    fed.vouch(_claims(experiment, reached, checksum(chosen, asked.checksum), plan.cohort.checksum))
    if not isinstance(experiment.availability, Always):
        plan.row["unavailable"] = experiment.clients - len(pool.available)
    return plan, 4 * fed.layout.size * (len(drawn) - len(asked)) + plan.bytes_lost


def _claims(experiment: Experiment, *checksums: int) -> dict[str, int]:
    """What is wrong -> a checksum of what an availability, a sampler and conditions have decided."""
    parts = {"availability": "can be reached", "sampler": "were drawn", "conditions": "take part"}
    claims = [
        f"--{option} = {named(getattr(experiment, option))}: ranks disagree on which clients {what}; {REMEDY}"
        for option, what in parts.items()
    ]
    return dict(zip(claims, checksums, strict=False))


def _is_private(experiment: Experiment) -> bool:
    return not isinstance(experiment.privacy, NoPrivacy)


def _is_evaluated(experiment: Experiment, round: int) -> bool:
    every = experiment.evaluate_every
    return bool(every) and (round % every == 0 or round == experiment.rounds)
