"""An experiment: the tree of its settings, and its course from start to end.

    from fedmpi import Experiment
    from fedmpi.algorithms import FedProx

    run = Experiment(algorithm=FedProx(mu=0.01), rounds=20).run()

Importing this module is cheap (no torch), because the command line is read from the constructor's signature.
"""

import inspect
import os
import shlex
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms import Algorithm, FedAvg
from fedmpi.checksum import REMEDY, checksum
from fedmpi.data import Dataset, Digits, Dirichlet, Partition
from fedmpi.described import as_yaml, leaves, settings_of
from fedmpi.errors import BadInput, named, require
from fedmpi.experiment.checkpoint import Checkpointing, Checkpoints, Layer, Place
from fedmpi.experiment.interruption import BY_HAND, Interrupted, Watch
from fedmpi.experiment.ownership import Lock, claim
from fedmpi.models import LeNet, Model
from fedmpi.mpi import whole_job
from fedmpi.options import Configured, shown
from fedmpi.policies import (
    All,
    Always,
    Availability,
    Bernoulli,
    Cohort,
    Conditions,
    Ideal,
    Pool,
    RoundPlan,
    Sampler,
    Uniform,
    Weighting,
)
from fedmpi.policies.attacks import Attack, NoAttack
from fedmpi.policies.compression import Compression, Dense
from fedmpi.policies.privacy import NoPrivacy, Privacy
from fedmpi.policies.server_optimizers import Replace, ServerOptimizer
from fedmpi.randomness import apart, globals_kept
from fedmpi.training.settings import LocalTraining

if TYPE_CHECKING:
    from fedmpi.federation.engine import Engine
    from fedmpi.federation.ledger import Outcome
    from fedmpi.mpi.world import World
    from fedmpi.results import Results, Run


class Experiment(metaclass=Configured):
    """One federated experiment.

    Every argument may be left out, as on the command line; a component that is null is the default one. A component
    may be given to several experiments.

    Args:
        algorithm: the federated method.
        dataset: the samples.
        partition: how the training samples are spread over the clients.
        model: the network that is trained.
        sampler: how the clients of a round, its cohort, are chosen.
        server_optimizer: how the server moves its model towards the mean of the clients'.
        privacy: how long the changes may be that clients send, and what noise the server adds to their mean.
        compression: how clients compress what they send.
        attack: what malicious clients send, or train on, and how many of the clients are malicious.
        availability: which clients can be reached in a round.
        conditions: how long the clients take in virtual time, and whose updates arrive.
        clients: number of clients.
        cohort: clients a round; null: 10, or all if there are fewer.
        rounds: number of communication rounds.
        weighting: what a client counts in a mean: its number of samples, or one. horvitz_thompson: its share of all
            samples, divided by the chance that it is drawn and that its update is used; what is missing in a round is
            made up for by the global model as it was, so that the expected mean is that over all clients that can be
            reached in the round. null: what a client counts in the method's paper, which is its number of samples
            unless the method says uniform.
        local: training at a client.
        evaluate_every: rounds from one evaluation to the next; the first and the last state are evaluated, too.
            0: no evaluation.
        evaluate_means: whose models' mean is measured beside the server's model: that of the round's cohort (column
            cohort_mean_accuracy), that of all clients' last models (clients_mean_accuracy; takes the memory of a
            model a client), or both.
        evaluate_local: whether each model that a client has trained is measured on the client's own test samples
            before anything is averaged: columns local_accuracy of /clients and, the mean over the cohort, of /rounds.
        newcomers: clients beyond `clients`, with samples of their own, that take part in no round. After the last one
            each starts from the global model and trains by itself; /newcomers has what becomes of it.
        newcomer_epochs: passes of a newcomer over its samples.
        device: what clients are trained on; auto takes GPUs where a rank sees any.
        threads: CPU threads a rank, whatever OMP_NUM_THREADS says. More than one rarely pays: start more ranks.
        seed: of everything random. The same seed gives the same results on any number of ranks.
        output: the results file; null: a name under runs/ made of method, data set, seed and time, which no other
            run has.
        overwrite: replace the results file if it exists.
        resume: go on from the checkpoint beside the results file, to the same bits as if nothing had come between, on
            any number of ranks. Where there is none the run starts anew; where it has finished nothing is done.
        checkpoint: when that is written, beside when the run is interrupted.
        deadline: seconds that a rank waits for the others at most, wherever that is; then it says which ranks did not
            come, and the job ends. auto: 20 times the longest round so far, at least 10 minutes; 30 minutes before
            the first round.

    Attributes:
        names_output: whether `output` is a name that was made up here.
        exit_status: of the program when the run is over: 0; 85 if it was interrupted by SIGUSR1 or SIGTERM, or by
            itself, shortly before Slurm's time limit; 130 if by SIGINT.
        arguments: of the command line that the experiment is of; None: it is from Python.
    """

    arguments: list[str] | None = None

    def __init__(
        self,
        algorithm: Algorithm | None = None,
        dataset: Dataset | None = None,
        partition: Partition | None = None,
        model: Model | None = None,
        sampler: Sampler | None = None,
        server_optimizer: ServerOptimizer | None = None,
        privacy: Privacy | None = None,
        compression: Compression | None = None,
        attack: Attack | None = None,
        availability: Availability | None = None,
        conditions: Conditions | None = None,
        clients: int = 100,
        cohort: int | None = None,
        rounds: int = 50,
        weighting: Weighting | None = None,
        local: LocalTraining = LocalTraining(),  # noqa: B008 (frozen)
        evaluate_every: int = 1,
        evaluate_means: Literal["none", "cohort", "clients", "both"] = "none",
        evaluate_local: bool = False,
        newcomers: int = 0,
        newcomer_epochs: int = 20,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int = 1,
        seed: int = 0,
        output: Path | str | None = None,
        overwrite: bool = False,
        resume: bool = False,
        checkpoint: Checkpointing = Checkpointing(),  # noqa: B008 (frozen)
        deadline: float | Literal["auto"] = "auto",
    ) -> None:
        algorithm = FedAvg() if algorithm is None else algorithm
        dataset = Digits() if dataset is None else dataset
        partition = Dirichlet() if partition is None else partition
        model = LeNet() if model is None else model
        sampler = Uniform() if sampler is None else sampler
        server_optimizer = Replace() if server_optimizer is None else server_optimizer
        privacy = NoPrivacy() if privacy is None else privacy
        compression = Dense() if compression is None else compression
        attack = NoAttack() if attack is None else attack
        availability = Always() if availability is None else availability
        conditions = Ideal() if conditions is None else conditions
        require(clients >= 1, "clients", clients, "at least 1")
        require(cohort is None or cohort >= 1, "cohort", cohort, "at least 1")
        require(cohort is None or cohort <= clients, "cohort", cohort, f"at most the number of clients, {clients}")
        require(rounds >= 1, "rounds", rounds, "at least 1")
        require(evaluate_every >= 0, "evaluate_every", evaluate_every, "at least 0")
        require(newcomers >= 0, "newcomers", newcomers, "at least 0")
        require(newcomer_epochs >= 1, "newcomer_epochs", newcomer_epochs, "at least 1")
        strangers = f"0 with {type(algorithm).__name__}, whose clients have more than the global model"
        require(newcomers == 0 or algorithm.welcomes_newcomers, "newcomers", newcomers, strangers)
        require(threads >= 1, "threads", threads, "at least 1")
        require(seed >= 0, "seed", seed, "at least 0")
        require(seed < 2**63, "seed", seed, "below 2^63")
        require(output is not None or not resume, "output", "null", "given with resume")
        require(not (overwrite and resume), "overwrite", "true", "false with resume")
        require(deadline == "auto" or deadline >= 1, "deadline", deadline, "auto, or at least 1 (second)")
        size = cohort or min(10, clients)
        sampler.check(clients, size)
        availability.check(clients)
        conditions.check(local)
        algorithm.check(size)
        if weighting == "horvitz_thompson":
            _check_chances(algorithm, sampler, availability, conditions, size, clients)
        _check_privacy(privacy, algorithm, sampler, compression, availability, conditions, weighting)
        _check_fit(algorithm, sampler, server_optimizer, compression, attack, conditions, weighting, evaluate_means)
        self.algorithm = algorithm
        self.dataset = dataset
        self.partition = partition
        self.model = model
        self.sampler = sampler
        self.server_optimizer = server_optimizer
        self.privacy = privacy
        self.compression = compression
        self.attack = attack
        self.availability = availability
        self.conditions = conditions
        self.clients = clients
        self.cohort = size
        self.rounds = rounds
        self.weighting: Weighting = weighting or algorithm.weighting
        self.local = local
        self.evaluate_every = evaluate_every
        self.evaluate_means: Literal["none", "cohort", "clients", "both"] = evaluate_means
        self.evaluate_local = evaluate_local
        self.newcomers = newcomers
        self.newcomer_epochs = newcomer_epochs
        self.device: Literal["auto", "cpu", "cuda"] = device
        self.threads = threads
        self.seed = seed
        self.output = Path(output) if output else _readable_name(algorithm, dataset, seed)
        self.names_output = output is None
        self.overwrite = overwrite
        self.resume = resume
        self.checkpoint = checkpoint
        self.deadline: float | Literal["auto"] = deadline
        self.exit_status = 0
        _ = self.settings  # what cannot be written down is said before anything runs

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the constructor takes, as it was completed: what YAML can hold, but for paths."""
        return {name: settings_of(getattr(self, name), name) for name in inspect.signature(Experiment).parameters}

    @property
    def config(self) -> str:
        """The settings as YAML: what the results file keeps, and what --config reads."""
        return as_yaml(self.settings)

    def load(self) -> None:
        """Import what a run needs; with PyTorch, which starts its threads then."""
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        import fedmpi.experiment.assembly  # noqa: F401

    def run(self, world: "World | None" = None, config: str | None = None) -> "Run":
        """Run to the end, on every rank of the job if there are several, see `outcomes`.

        Returns:
            What the results file holds, on every rank; its status is interrupted if the run was (`exit_status`).

        Raises:
            BadInput: on every rank alike, before anything is trained or written.
            KeyboardInterrupt: somebody wanted it to end (SIGINT); the file and its checkpoint are written.
            SystemExit: with `exit_status`, if it was to end (SIGUSR1, SIGTERM) before there was a results file.
        """
        world = world or whole_job()
        status = self.complete(world, config)
        if status == BY_HAND:
            raise KeyboardInterrupt
        if status and not self.output.exists():
            raise SystemExit(status)
        from fedmpi import results

        run: Run | None = results.open(self.output) if world.is_server else None
        return world.from_server(cast("Run", run))

    def complete(self, world: "World", config: str | None = None) -> int:
        """Run to the end, and return `exit_status`; arguments as of `outcomes`."""
        self.exit_status = 0
        self.load()
        with globals_kept():
            for _ in self._outcomes(world, config):
                pass
        return self.exit_status

    def outcomes(self, world: "World | None" = None, config: str | None = None) -> "Iterator[Outcome]":
        """Run, and give what each round left when it is over; to be called, and used up, on every rank of the job.

        An error other than bad input ends a job of several ranks (`fedmpi.experiment.failure.end_job`). Where there
        is one, the results file says failed, and the error is raised again. What the caller draws from the generators
        of `random`, `numpy.random` and `torch` is not disturbed, and the run does not depend on it.

        Args:
            world: the ranks; None: all of the job.
            config: what the results file keeps as the settings, and a run is resumed with; None: `config`.

        Raises:
            BadInput: on every rank alike, before anything is trained or written.
        """
        world = world or whole_job()
        self.exit_status = 0
        self.load()
        yield from apart(self._outcomes(world, config))

    def _outcomes(self, world: "World", config: str | None) -> "Generator[Outcome, None, None]":
        from fedmpi.experiment.assembly import assemble, open_results
        from fedmpi.experiment.failure import end_job
        from fedmpi.experiment.newcomers import train_newcomers
        from fedmpi.experiment.progress import Progress
        from fedmpi.experiment.resume import restore_weights
        from fedmpi.mpi.failures import Silence
        from fedmpi.streams import say

        engine: Engine | None = None
        results: Results | None = None
        lock = Lock()

        def fail(error: BaseException) -> NoReturn:
            end_job(world, error, engine.where() if engine else "setting up", results, lock)

        try:
            with world.guard.running(lambda: fail(Silence())), Watch(world, self, lock) as watch:
                self._agree(world)
                self._own_output(world, lock)
                place = self._place(world, config, watch.checkpoints)
                done = place.round if place and not place.stage else 0
                if place and place.is_end:
                    if world.is_server and not self.checkpoint.keep:
                        watch.checkpoints.remove()
                    return
                engine = assemble(self, world)
                watch.whole = Layer("rounds", engine, self.algorithm)
                if place:
                    self._check_data(world, engine)
                if place and place.is_in_results:
                    restore_weights(watch.whole, self.output)
                elif place:
                    watch.checkpoints.restore(watch.whole)
                watch.is_set_up = True
                watch.results = results = open_results(self, engine, world, config, lock, watch.checkpoints, place)
                context = engine.federation.context
                context.pause = watch.pause
                if results:
                    context.when_idle, context.keep = results.write_if_due, results.keep
                if self.algorithm.has_stages and (place is None or place.stage):
                    self._run_stages(engine, watch, place)
                    watch.save(0)
                if not done:
                    self._measure_start(engine, results)
                    watch.pause()
                progress = Progress(self.rounds, done=done) if results else None
                for round in range(done + 1, self.rounds + 1):
                    outcome = self._round(engine, self.algorithm, round, watch)
                    if results and progress:
                        outcome.store(results)
                        progress.show(outcome.row)
                    yield outcome
                    watch.heed(outcome, self.rounds)
                if self.newcomers:
                    known = world.from_server(results.newcomers if results else None)
                    watch.begin_round()
                    for accuracy in train_newcomers(engine, self.algorithm, self.newcomer_epochs, known):
                        if results:
                            results.set_newcomers(accuracy)
                            results.write_if_due()
                        watch.pause()
                if self.checkpoint.keep:
                    watch.save(self.rounds)
                if results and progress:
                    results.finish("finished")
                    progress.end(results.path)
                    if not self.checkpoint.keep:
                        watch.checkpoints.remove()
                world.meet()  # the file is there when any rank returns
        except Interrupted as end:
            self.exit_status = end.status
            if world.is_server:
                say(f"interrupted (exit status {end.status}); to go on: {self.continuation(world.size)}")
            if world.size > 1 and not watch.is_set_up:
                lock.release()
                world.failures.abort(status=end.status)  # the others may wait for this rank
        except GeneratorExit:  # whoever asked for outcomes wants no more
            if results:
                results.finish("interrupted")
        except BaseException as error:
            if isinstance(error, BadInput) and error.agreed:
                if results:
                    with suppress(OSError):
                        results.finish("failed")
                raise
            fail(error)
        finally:
            lock.release()

    def continuation(self, ranks: int) -> str:
        """What goes on with the run when it was interrupted, on so many ranks."""
        if self.arguments is None:
            return f"the same experiment with output={str(self.output)!r} and resume=True"
        options = [argument.partition("=")[0] for argument in self.arguments]
        flags = ("--overwrite", "--resume")
        kept = [argument for argument, name in zip(self.arguments, options, strict=True) if name not in flags]
        anew = ["--overwrite=false"] if self.overwrite and "--config" in options else []  # which may say so, too
        named = ["--output", str(self.output)] if self.names_output else []
        command = shlex.join(["python", "-m", "fedmpi", *kept, *anew, *named, "--resume"])
        return f"mpirun -n {ranks} {command}" if ranks > 1 else command

    def _agree(self, world: "World") -> None:
        """Raise BadInput, on every rank alike, if the ranks were not all told to run the same.

        Where files lie may be another place on each node.
        """
        mine = {name: value for name, value in leaves(self.settings) if not isinstance(value, Path)}
        first = world.from_server(mine)
        with world.agreed():
            for name in [*mine, *first]:
                value, wanted = (shown(settings.get(name)) for settings in (mine, first))  # as texts, for NaN
                reason = f"= {value} on rank {world.rank}: must be {wanted}, as on rank 0"
                if value != wanted:
                    raise BadInput(reason, f"--{name}")

    def _own_output(self, world: "World", lock: Lock) -> None:
        """Lock the output, whose name every rank knows then, also if nobody gave one."""
        with world.agreed():
            if world.is_server:
                claim(self, lock)
        self.output = world.from_server(self.output)

    def _place(self, world: "World", config: str | None, checkpoints: Checkpoints) -> Place | None:
        """Where the run goes on, on every rank; None: at its start."""
        from fedmpi.experiment.resume import find

        place: Place | None = None
        if self.resume:
            with world.agreed():
                place = find(self, config or self.config, checkpoints) if world.is_server else None
            place = world.from_server(place)
        return place

    def _check_data(self, world: "World", engine: "Engine") -> None:
        """Raise BadInput if the data are others than those with which the run that goes on has begun."""
        from fedmpi import results
        from fedmpi.experiment import inputs

        with world.agreed():
            if world.is_server:
                inputs.check_data(results.open(self.output), engine.checksums)

    def _run_stages(self, engine: "Engine", watch: Watch, place: Place | None) -> None:
        """What the method trains before the first round, from this place on."""
        from fedmpi.experiment.assembly import set_up
        from fedmpi.experiment.progress import Progress
        from fedmpi.federation.engine import Engine

        results, resumed = watch.results, place.stage if place else None
        engine.begin(0)
        engine.invite(RoundPlan(Cohort.nobody()), self.algorithm.client_metrics)
        stages = self.algorithm.stages(engine.federation)
        for number in count(1):
            engine.federation.context.reseed(f"stage {number}")
            stage = next(stages, None)
            if stage is None:
                break
            name, sibling, algorithm = stage
            if resumed and resumed != name:
                continue  # it was over before
            other = Engine(sibling)
            engine.stage = name, other
            sibling.context.when_idle = engine.federation.context.when_idle
            set_up(algorithm, other)
            layer, done = Layer(name, other, algorithm), 0
            if place and resumed:
                watch.checkpoints.restore(layer)
                done, resumed = place.round, None
            if results:
                results.begin_stage(name, done)
            rounds = sibling.context.rounds
            progress = Progress(rounds, f"{name} round", done) if results else None
            for round in range(done + 1, rounds + 1):
                outcome = self._round(other, algorithm, round, watch)
                if results and progress:
                    results.add_stage_round(name, outcome.row)
                    progress.show(outcome.row)
                watch.heed(outcome, rounds, layer)
            if progress:
                progress.close()
            engine.stage = None

    def _round(self, engine: "Engine", algorithm: Algorithm, round: int, watch: Watch) -> "Outcome":
        watch.begin_round()
        fed = engine.federation
        engine.begin(round)
        plan = self.plan(engine, algorithm, round)
        is_evaluated = algorithm is self.algorithm and self._is_evaluated(round)
        if algorithm.pools_clients and plan.cohort.total_mass:
            plan = replace(plan, cohort=plan.cohort.pooled(fed.samples, by_steps=self.local.steps is not None))
        cohort, predict = plan.cohort, algorithm.predict if is_evaluated and self.evaluate_local else None
        engine.invite(plan, algorithm.client_metrics, predict)
        if is_evaluated and self.evaluate_means in ("cohort", "both"):
            engine.observe_cohort(cohort)
        if cohort.total_mass or self._is_private:  # else there is nothing to learn from, nor to hide
            algorithm.round(fed, cohort)
        if is_evaluated:
            with fed.context.doing("evaluation"):
                algorithm.evaluate(fed)
                engine.evaluate_means()
            engine.account(self.sampler, self.cohort)
        kept = {name: value for part in algorithm.parts for name, value in vars(part).items()}
        return engine.finish(kept, *watch.asks(round))

    def plan(self, engine: "Engine", algorithm: Algorithm, round: int) -> RoundPlan:
        """How the round goes; the same on every rank.

        Raises:
            RanksDiffer: it is not, because of user code; sooner or later, see `World.vouch`.
        """
        import torch

        from fedmpi.experiment.workload import MethodWorkload

        fed = engine.federation
        present = self.availability.present(round, self.clients, self.seed)
        pool = Pool(fed.samples, fed.label_counts, np.flatnonzero(present), may_be_empty=self._is_private)
        wanted = algorithm.clients_to_ask(round, self.cohort, self.clients)
        size = self.conditions.asked(wanted)
        drawn = self.sampler.cohort(round, size, pool, self.weighting, self.seed)
        reached, chosen = checksum(present), drawn.checksum

        def losses() -> NDArray[np.float64]:
            engine.vouch(self._claims(reached, chosen))  # before ranks exchange a number for each of those drawn
            weights = algorithm.weights if fed.is_server else torch.empty(fed.layout.size)
            return engine.current_losses(weights, drawn.clients)

        asked = self.sampler.choose(drawn, size, losses)
        if self._is_private:
            # Whoever came: a mean over them would tell how many they are.
            asked = replace(asked, expected_mass=self.clients if isinstance(self.sampler, All) else self.cohort)
        plan = self.conditions.plan(asked, wanted, MethodWorkload(engine, algorithm), self.seed)
        arrival = self.conditions.arrival(len(asked), algorithm.accepts_partial_work)
        if asked.inclusion and arrival is not None:
            thinned = plan.cohort.expecting(asked.inclusion.thinned(arrival), fed.samples)
            plan = replace(plan, cohort=thinned)
        engine.vouch(self._claims(reached, checksum(chosen, asked.checksum), plan.cohort.checksum))
        row = plan.row
        if not isinstance(self.availability, Always):
            row = {**row, "unavailable": self.clients - len(pool.available)}
        lost = 4 * fed.layout.size * (len(drawn) - len(asked)) + plan.bytes_lost  # what others received
        return replace(plan, row=row, bytes_lost=lost)

    def _claims(self, *checksums: int) -> dict[str, int]:
        """What is wrong -> a checksum of what an availability, a sampler and conditions have decided."""
        parts = {"availability": "can be reached", "sampler": "were drawn", "conditions": "take part"}
        claims = [
            f"--{option} = {named(getattr(self, option))}: ranks disagree on which clients {what}; {REMEDY}"
            for option, what in parts.items()
        ]
        return dict(zip(claims, checksums, strict=False))

    def _measure_start(self, engine: "Engine", results: "Results | None") -> None:
        """Evaluate the initial model."""
        if self.evaluate_every:
            engine.begin(0)
            engine.invite(RoundPlan(Cohort.nobody()), self.algorithm.client_metrics)
            self.algorithm.evaluate(engine.federation)
            evaluation = engine.finish({}).evaluation
            if results and evaluation:
                results.set_initial(evaluation.loss, evaluation.accuracy)

    @property
    def _is_private(self) -> bool:
        return not isinstance(self.privacy, NoPrivacy)

    def _is_evaluated(self, round: int) -> bool:
        return bool(self.evaluate_every) and (round % self.evaluate_every == 0 or round == self.rounds)


def _check_fit(
    algorithm: Algorithm,
    sampler: Sampler,
    server_optimizer: ServerOptimizer,
    compression: Compression,
    attack: Attack,
    conditions: Conditions,
    weighting: Weighting | None,
    evaluate_means: str,
) -> None:
    """Raise BadInput if a method does not go with the rest."""
    name, by_chance = type(algorithm).__name__, weighting == "horvitz_thompson"

    def refuse(is_wrong: bool, option: str, value: object, reason: str) -> None:
        if is_wrong:
            raise BadInput(f"= {value if isinstance(value, str) else type(value).__name__}: {reason}", option)

    by_losses = type(sampler).choose is not Sampler.choose and algorithm.has_stages
    refuse(by_losses, "sampler", sampler, f"{name} also trains a network that has no such losses")
    other_rule = not (algorithm.takes_server_optimizer or isinstance(server_optimizer, Replace))
    refuse(other_rule, "server_optimizer", server_optimizer, f"{name} has a rule of its own")
    fits = algorithm.takes_compression or isinstance(compression, Dense)
    refuse(not fits, "compression", compression, f"does not go with {name}")
    attacked = not isinstance(attack, NoAttack)
    refuse(attacked and algorithm.pools_clients, "attack", attack, f"{name} has no clients that could be malicious")
    reason = f"{name}'s server looks at single clients' models"
    refuse(attacked and algorithm.looks_at_models, "attack", attack, reason)
    sees_bits = algorithm.looks_at_models and not isinstance(compression, Dense)
    refuse(sees_bits, "compression", compression, reason)
    by_weight = algorithm.counts_clients_alike and weighting not in (None, "uniform")
    refuse(by_weight, "weighting", weighting, f"{name} counts all clients alike")
    own_weights = algorithm.counts_clients_once and bool(sampler.weighting)
    refuse(own_weights, "sampler", sampler, f"says itself what clients count, which does not go with {name}")
    reason = f"{name}'s server keeps a mean of its own over all clients"
    refuse(by_chance and algorithm.counts_clients_once, "weighting", weighting, reason)
    apart = not isinstance(conditions, Ideal)
    refuse(apart and algorithm.pools_clients, "conditions", conditions, f"{name} has no clients that work apart")
    reason = f"{name} does not form one mean of all its clients' models"
    has_one = any("weights" in part.server_state for part in algorithm.parts) and not algorithm.pools_clients
    refuse(by_chance and not has_one, "weighting", weighting, reason)
    means = evaluate_means != "none" and not algorithm.averages_models
    refuse(means, "evaluate_means", evaluate_means, f"{name} does not average its clients' models")


def _check_chances(
    algorithm: Algorithm,
    sampler: Sampler,
    availability: Availability,
    conditions: Conditions,
    cohort: int,
    clients: int,
) -> None:
    """Raise BadInput if it is not known with what chance a client's update is used, or if that may be zero."""

    def accept(is_right: bool, reason: str) -> None:
        require(is_right, "weighting", "horvitz_thompson", f"another with {reason}")

    accept(sampler.chance(cohort, clients) is not None, type(sampler).__name__)
    # Of fewer clients that are asked at a time, fewer can be left when stragglers are dropped.
    is_full = isinstance(availability, Always) and not isinstance(sampler, Bernoulli)
    fewest, kind = cohort if is_full else 1, type(conditions).__name__
    arrival = conditions.arrival(fewest, algorithm.accepts_partial_work)
    accept(arrival is not None, f"{kind}, when the chance of an update to be used depends on the client's speed")
    accept(arrival != 0, f"{kind}, when a round that asks {fewest} of the clients uses no update")


def _check_privacy(
    privacy: Privacy,
    algorithm: Algorithm,
    sampler: Sampler,
    compression: Compression,
    availability: Availability,
    conditions: Conditions,
    weighting: Weighting | None,
) -> None:
    """Raise BadInput if the server learns more of clients than a mean whose noise is accounted for."""
    if isinstance(privacy, NoPrivacy):
        return
    kind, name = type(privacy).__name__, type(algorithm).__name__
    privacy.check(sampler)
    allowed = f"a method that sees one mean of models and no more of clients, with {kind}"
    require(algorithm.takes_privacy, "algorithm", name, allowed)
    counted = weighting or algorithm.weighting
    require(counted == "uniform", "weighting", counted, f"uniform with {kind}")
    for option, value, plain in (
        ("compression", compression, Dense),
        ("availability", availability, Always),
        ("conditions", conditions, Ideal),
    ):
        require(isinstance(value, plain), option, type(value).__name__, f"{plain.__name__} with {kind}")


def _readable_name(algorithm: Algorithm, dataset: Dataset, seed: int) -> Path:
    what = f"{type(algorithm).__name__}-{type(dataset).__name__}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs", f"{what}.h5")
