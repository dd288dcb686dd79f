"""The tree of an experiment's settings, which are checked when it is made, and do not change.

Importing this module is cheap (no torch), because the command line is read from the constructor's signature.
"""

import inspect
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedmpi.algorithms import Algorithm, FedAvg
from fedmpi.data import Dataset, Digits, Dirichlet, Partition
from fedmpi.described import as_yaml, settings_of
from fedmpi.errors import require
from fedmpi.experiment import compatibility
from fedmpi.models import LeNet, Model
from fedmpi.options import Configured
from fedmpi.policies import (
    Always,
    Availability,
    Conditions,
    Ideal,
    Sampler,
    Uniform,
    Weighting,
)
from fedmpi.policies.attacks import Attack, NoAttack
from fedmpi.policies.compression import Compression, Dense
from fedmpi.policies.privacy import NoPrivacy, Privacy
from fedmpi.policies.server_optimizers import Replace, ServerOptimizer
from fedmpi.training.settings import LocalTraining

#: Exit statuses of a run that `--resume` continues: the job is to be queued again, or somebody wanted it to end.
REQUEUE, BY_HAND = 85, 130


@dataclass(frozen=True)
class Checkpointing(metaclass=Configured):
    """When a run writes down all that it needs to go on (`--resume`): at times, and when it is interrupted.

    Args:
        every_minutes: from the end of one checkpoint to the next; null: none by time.
        every_rounds: from one checkpoint to the next; null: none by rounds.
        keep: whether the last one stays when the run has finished, so that it can be resumed with more rounds also
            where more is remembered from round to round than the global model.
        copies: how many of the last ones are kept, in case that the last one is damaged.
    """

    every_minutes: float | None = 10.0
    every_rounds: int | None = None
    keep: bool = False
    copies: int = 2

    def __post_init__(self) -> None:
        minutes, rounds = self.every_minutes, self.every_rounds
        require(minutes is None or minutes > 0, "every_minutes", minutes, "above 0")
        require(rounds is None or rounds >= 1, "every_rounds", rounds, "at least 1")
        require(1 <= self.copies <= 100, "copies", self.copies, "from 1 to 100")


@dataclass
class Latest:
    """What the latest run of an experiment has come to; all that a run changes.

    Attributes:
        output: the results file.
        exit_status: see `Experiment`.
    """

    output: Path
    exit_status: int = 0


class Settings(metaclass=Configured):
    """One federated experiment: its settings, which do not change once it is made.

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
        checkpoint: Checkpointing = Checkpointing(),
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
        self.cohort = cohort or min(10, clients)
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
        self._latest = Latest(Path(output) if output else _readable_name(algorithm, dataset, seed))
        self.names_output = output is None
        self.overwrite = overwrite
        self.resume = resume
        self.checkpoint = checkpoint
        self.deadline: float | Literal["auto"] = deadline
        require(clients >= 1, "clients", clients, "at least 1")
        require(cohort is None or cohort >= 1, "cohort", cohort, "at least 1")
        require(cohort is None or cohort <= clients, "cohort", cohort, f"at most the number of clients, {clients}")
        require(rounds >= 1, "rounds", rounds, "at least 1")
        require(evaluate_every >= 0, "evaluate_every", evaluate_every, "at least 0")
        require(newcomers >= 0, "newcomers", newcomers, "at least 0")
        require(newcomer_epochs >= 1, "newcomer_epochs", newcomer_epochs, "at least 1")
        compatibility.check(compatibility.NEWCOMERS, self)
        require(threads >= 1, "threads", threads, "at least 1")
        require(seed >= 0, "seed", seed, "at least 0")
        require(seed < 2**63, "seed", seed, "below 2^63")
        require(output is not None or not resume, "output", "null", "given with resume")
        require(not (overwrite and resume), "overwrite", "true", "false with resume")
        require(deadline == "auto" or deadline >= 1, "deadline", deadline, "auto, or at least 1 (second)")
        sampler.check(clients, self.cohort)
        availability.check(clients)
        conditions.check(local)
        algorithm.check(self.cohort)
        compatibility.check(compatibility.CHANCES, self)
        privacy.check(sampler)
        compatibility.check(compatibility.PRIVATE, self)
        compatibility.check(compatibility.METHODS, self)
        _ = self.settings  # what cannot be written down is said before anything runs

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            raise AttributeError(f"{name} is set already: an experiment does not change, make another one")
        super().__setattr__(name, value)

    @property
    def output(self) -> Path:
        """The results file; once the experiment runs, the one that this run has made its own."""
        return self._latest.output

    @property
    def exit_status(self) -> int:
        """Of the program when the run is over, see `Experiment`."""
        return self._latest.exit_status

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the constructor takes, as it was completed: what YAML can hold, but for paths."""
        return {name: settings_of(getattr(self, name), name) for name in inspect.signature(Settings).parameters}

    @property
    def config(self) -> str:
        """The settings as YAML: what the results file keeps, and what --config reads."""
        return as_yaml(self.settings)


def _readable_name(algorithm: Algorithm, dataset: Dataset, seed: int) -> Path:
    what = f"{type(algorithm).__name__}-{type(dataset).__name__}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs", f"{what}.h5")
