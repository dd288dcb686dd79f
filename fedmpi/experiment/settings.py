"""The settings of an experiment. They are checked when it is made, and do not change.

Importing this module is fast (no torch), because the command line reads the constructor's signature.
"""

import inspect
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fedmpi.algorithms import Algorithm, FedAvg
from fedmpi.algorithms.asynchronous import Asynchronous
from fedmpi.data import Dataset, Digits, Dirichlet, Partition
from fedmpi.described import as_yaml, settings_of
from fedmpi.errors import BadInput, require
from fedmpi.experiment import compatibility
from fedmpi.experiment.evaluated import Evaluated
from fedmpi.experiment.stopping import Stopping
from fedmpi.experiment.tracking import TrackerName
from fedmpi.models import LeNet, Model
from fedmpi.options import Configured, with_ranges
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
from fedmpi.policies.timeline import check_asynchronous
from fedmpi.ranges import NonNegativeInt, PositiveFloat, PositiveInt, interval
from fedmpi.tasks import Task
from fedmpi.tasks.measures import described, named_metrics
from fedmpi.training.settings import LocalTraining

#: Exit statuses of a run that `--resume` continues: the job should be queued again, or the user has interrupted it.
REQUEUE, BY_HAND = 85, 130
#: Up to so many clients, the results file has values of each, unless the user says otherwise.
FEW_CLIENTS = 100_000


@with_ranges
@dataclass(frozen=True)
class Checkpointing(metaclass=Configured):
    """When a run writes a checkpoint, from which `--resume` continues. An interrupted run always writes one.

    Args:
        every_minutes: minutes from the end of one checkpoint to the next; null: no checkpoints by time.
        every_rounds: rounds from one checkpoint to the next; null: no checkpoints by rounds.
        keep: whether the last checkpoint is kept when the run has finished. Methods that keep more between rounds
            than the global model need it if rounds are added later.
        copies: number of checkpoints that are kept, in case the last one is damaged.
    """

    every_minutes: Annotated[float, interval("(0, inf]")] | None = 10.0
    every_rounds: PositiveInt | None = None
    keep: bool = False
    copies: Annotated[int, interval("[1, 100]", "from 1 to 100")] = 2


@dataclass
class Latest:
    """State of the latest run of an experiment: the only part that a run changes.

    Attributes:
        output: the results file.
        exit_status: see `Experiment`.
    """

    output: Path
    exit_status: int = 0


class Settings(metaclass=Configured):
    """One federated experiment. Its settings do not change once it is made.

    Every argument may be left out, as on the command line. Where a component is null, the default is used. A
    component may be given to several experiments.

    Args:
        algorithm: the federated method.
        dataset: the data set.
        partition: how the samples are divided among the clients.
        model: the network that is trained.
        sampler: how the cohort (the clients of a round) is chosen.
        server_optimizer: how the server updates the model with the clients' mean.
        privacy: differential privacy. Client updates are clipped, and the server adds noise to their mean.
        compression: how clients compress their updates.
        attack: what malicious clients do. The classes have an option for the share of malicious clients.
        availability: which clients can be reached in a round.
        conditions: simulated speed of clients, and lost updates. Time is that of a virtual clock.
        task: what is learned. It says what the targets are, the loss, and the metrics. null: the data set's own task.
        metrics: further metrics of the evaluated models. One or a list: names of metrics of the task, or import paths
            of functions (measured rows, targets, owners) -> number. Columns test_NAME.
        clients: number of clients.
        cohort: clients per round; null: 10, or all clients if there are fewer. The samplers All and FixedList say
            themselves how many there are.
        rounds: number of communication rounds.
        stop: when the run ends before all rounds are done.
        weighting: weight of a client in a mean. samples: its number of training samples. uniform: 1.
            horvitz_thompson: its share of all samples, divided by the probability that it is drawn and that its
            update is used. The old global model gets the weight that is missing in a round, so the expected mean is
            the mean over all clients that can be reached in the round. null: as in the method's paper (usually
            samples).
        local: local training at a client.
        evaluate_every: rounds from one evaluation to the next. The initial and the last model are always evaluated.
            0: no evaluation.
        evaluate_seconds: virtual seconds from one evaluation to the next, instead of evaluate_every. The first round
            that ends at or after each multiple is evaluated. null: by rounds.
        evaluate_means: also evaluate means of client models. cohort: the mean over the round's cohort (column
            cohort_mean_accuracy). clients: the mean over all clients' last models (column clients_mean_accuracy;
            needs memory for one model per client).
        evaluate_local: also evaluate client models before aggregation. After local training, each client's model is
            evaluated on the client's own test samples. Of several trainings in a round it is the one without a name
            (the global model of Ditto), or the last one (the body of FedRep). Columns: local_accuracy of /clients,
            and its mean over the cohort in /rounds.
        evaluate_fine_tuned: epochs for which each client fine-tunes the global model on its own training samples, in
            every evaluated round, only to be measured: its model is evaluated on its own test samples and then thrown
            away. Column fine_tuned_accuracy, over all test samples, and per client in /evaluation. This is the
            baseline of every personalised method. It costs a training of all clients per evaluation. null: none.
        every_client: whether the results file has values of every single client: /partition, and the columns
            client_accuracy and fine_tuned_accuracy (or those of another main metric) of /evaluation. auto: with up to
            100,000 clients. Statistics over clients are in /rounds in any case.
        validation: share of training samples to validate on. Each client sets this share apart, at least one of ten
            samples, and never trains on it. Together they are the validation set, on which models are evaluated as on
            the test set (columns validation_loss, validation_accuracy, ...). The best round is then chosen by it, and
            its model is kept in /best. null: no validation set.
        held_out: number of additional clients that take part in no round. They have their own samples. After the last
            round each of them fine-tunes the global model alone; the accuracies are in /held_out.
        held_out_epochs: epochs of a held-out client's fine-tuning.
        device: where clients are trained. auto uses a GPU if the rank sees one, else the CPU.
        threads: CPU threads per rank. OMP_NUM_THREADS is ignored. More than one is rarely faster: start more ranks.
        seed: seed of all random numbers. The same seed gives bit-identical results on any number of ranks.
        init: results file whose model is the initial model. It is the last global model of another run. Both networks
            must have the same tensors. Tensors that training does not change are also taken from the file. null:
            initial weights are drawn.
        output: the results file; null: a new file under runs/, named by method, data set, seed and time.
        overwrite: replace the results file if it exists.
        store_frozen: also write tensors that training does not change to the results file. Otherwise it has only
            their SHA-256 and where they came from, and programs that read the model need that source.
        resume: continue an interrupted run from the checkpoint next to its results file. The number of ranks may be
            another one. The results are bit-identical to those of a run without an interruption. If there is no
            checkpoint, a new run starts. If the run has finished, nothing is done, unless rounds are added (or it was
            stopped early, and no longer would be). They start from the checkpoint if it was kept. Else they start
            from the model in the results file, if the method keeps nothing else between rounds.
        checkpoint: when checkpoints are written, in addition to those of interrupted runs.
        deadline: longest time in seconds that a rank waits for other ranks. Then the missing ranks are named and the
            job ends. auto: 20 times the longest round so far, but at least 10 minutes; 30 minutes before the first
            round has ended.
        track: also write the rows of /rounds for another program during the run, as files next to the results file.
            Nothing is sent. tensorboard: NAME.tensorboard. wandb-offline: NAME.wandb, for `wandb sync`. mlflow: the
            store mlruns, which all runs of the folder share. A failing tracker is a warning, and not a failed run.

    Attributes:
        measured: the metrics of evaluated models, by name.
        names_output: whether `output` was named automatically.
        exit_status: exit status of the program after the run: 0; 85 if the run was interrupted by SIGUSR1 or SIGTERM,
            or by itself shortly before Slurm's time limit; 130 if it was interrupted by SIGINT.
        arguments: the command line's arguments; None: the experiment was made in Python.
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
        task: Task | None = None,
        metrics: tuple[str, ...] | str | None = None,
        clients: PositiveInt = 100,
        cohort: PositiveInt | None = None,
        rounds: PositiveInt = 50,
        stop: Stopping = Stopping(),  # noqa: B008 (frozen)
        weighting: Weighting | None = None,
        local: LocalTraining = LocalTraining(),  # noqa: B008 (frozen)
        evaluate_every: NonNegativeInt = 1,
        evaluate_seconds: PositiveFloat | None = None,
        evaluate_means: Literal["none", "cohort", "clients", "both"] = "none",
        evaluate_local: bool = False,
        evaluate_fine_tuned: PositiveInt | None = None,
        every_client: bool | Literal["auto"] = "auto",
        validation: Annotated[float, interval("(0, 1)", "above 0 and below 1")] | None = None,
        held_out: NonNegativeInt = 0,
        held_out_epochs: PositiveInt = 20,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: PositiveInt = 1,
        seed: Annotated[int, interval(f"[0, {2**63})", "at least 0 and below 2^63")] = 0,
        init: Path | str | None = None,
        output: Path | str | None = None,
        overwrite: bool = False,
        store_frozen: bool = False,
        resume: bool = False,
        checkpoint: Checkpointing = Checkpointing(),
        deadline: Annotated[float, interval("[1, inf]", "auto, or at least 1 (second)")] | Literal["auto"] = "auto",
        track: TrackerName = "none",
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
        self.task = dataset.task if task is None else task
        self.metrics = metrics
        self.measured = named_metrics(self.task, metrics)
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
        self.cohort = sampler.clients_per_round(cohort, clients)
        self.rounds = rounds
        self.stop = stop
        self.weighting: Weighting = weighting or algorithm.weighting
        self.local = local
        self.evaluate_every = evaluate_every
        self.evaluate_seconds = evaluate_seconds
        self.evaluate_means: Literal["none", "cohort", "clients", "both"] = evaluate_means
        self.evaluate_local = evaluate_local
        self.evaluate_fine_tuned = evaluate_fine_tuned
        self.every_client: bool | Literal["auto"] = every_client
        self.validation = validation
        self.held_out = held_out
        self.held_out_epochs = held_out_epochs
        self.device: Literal["auto", "cpu", "cuda"] = device
        self.threads = threads
        self.seed = seed
        self.init = Path(init) if init else None
        self._latest = Latest(Path(output) if output else _readable_name(algorithm, dataset, seed))
        self.names_output = output is None
        self.overwrite = overwrite
        self.store_frozen = store_frozen
        self.resume = resume
        self.checkpoint = checkpoint
        self.deadline: float | Literal["auto"] = deadline
        self.track: TrackerName = track
        compatibility.check(compatibility.HELD_OUT, self)
        compatibility.check(compatibility.EVALUATIONS, self)
        compatibility.check(compatibility.STOPPING, self)
        require(output is not None or not resume, "output", "null", "given with resume")
        if init and Path(init).resolve() == self.output.resolve():
            raise BadInput(f"= {init}: must be another file than the output", "init")
        if overwrite and resume:
            raise BadInput("and --resume cannot be combined", "overwrite")
        sampler.check(clients, self.cohort)
        attack.check(clients)
        availability.check(clients)
        conditions.check(clients, local)
        algorithm.check(self.cohort)
        if isinstance(algorithm, Asynchronous):
            flying, buffer = algorithm.in_flight(self.cohort, clients), algorithm.buffer(self.cohort)
            check_asynchronous(flying, clients, buffer, sampler, conditions, self.weighting)
        compatibility.check(compatibility.CHANCES, self)
        privacy.check(sampler)
        compatibility.check(compatibility.PRIVATE, self)
        compatibility.check(compatibility.CLOCK, self)
        compatibility.check(compatibility.TASKS, self)
        compatibility.check(compatibility.SHARED, self)
        compatibility.check(compatibility.METHODS, self)
        _ = self.settings  # settings that YAML cannot hold are refused before anything runs

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            raise AttributeError(f"{name} cannot be changed: make another experiment")
        super().__setattr__(name, value)

    @property
    def output(self) -> Path:
        """The results file; when the experiment runs, the file that the run has locked."""
        return self._latest.output

    @property
    def exit_status(self) -> int:
        """Exit status of the program after the run, see `Experiment`."""
        return self._latest.exit_status

    @property
    def evaluated(self) -> Evaluated:
        """Which rounds are evaluated."""
        return Evaluated(self.evaluate_every, self.evaluate_seconds)

    @property
    def records_every_client(self) -> bool:
        """Whether the results file has values of every single client."""
        return self.clients <= FEW_CLIENTS if self.every_client == "auto" else self.every_client

    @property
    def described_metrics(self) -> dict[str, str]:
        """Attributes of the results file that describe the metrics."""
        return described(self.task, self.measured)

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments of the constructor, with defaults filled in, as values for YAML (and paths)."""
        found = {name: settings_of(getattr(self, name), name) for name in inspect.signature(Settings).parameters}
        return {**found, "task": None} if self.task is self.dataset.task else found

    @property
    def config(self) -> str:
        """The settings as YAML, for the results file and --config."""
        return as_yaml(self.settings)


def _readable_name(algorithm: Algorithm, dataset: Dataset, seed: int) -> Path:
    what = f"{type(algorithm).__name__}-{type(dataset).__name__}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs", f"{what}.h5")
