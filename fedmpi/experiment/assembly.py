"""From the settings of an experiment to a federation that is ready for its first round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmpi import randomness
from fedmpi.algorithms import Algorithm
from fedmpi.allocator import keep_freed_memory, return_freed_memory
from fedmpi.arrays import read_only
from fedmpi.data import Arrays, Dataset, Split, make_split
from fedmpi.data.base import check_targets
from fedmpi.data.client_samples import ClientSamples, ListedSamples
from fedmpi.errors import named, option_of
from fedmpi.experiment import compatibility
from fedmpi.experiment.alike import check_rebuilt, check_set_up
from fedmpi.experiment.checkpoint import declared
from fedmpi.experiment.initial_model import read_initial_model
from fedmpi.experiment.networks import Networks, networks_of
from fedmpi.experiment.samples import PixelOrders, load_shared
from fedmpi.experiment.schedule import timeline_of
from fedmpi.experiment.settings import Settings
from fedmpi.federation.adversary import Adversary
from fedmpi.federation.context import Context
from fedmpi.federation.energy import Energy
from fedmpi.federation.engine import Engine
from fedmpi.federation.evaluation import Evaluator, Measured
from fedmpi.federation.federation import Federation
from fedmpi.mpi import leftovers
from fedmpi.mpi.devices import computes_bf16, pick_device
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort
from fedmpi.policies.attacks import Trigger
from fedmpi.policies.privacy import Released
from fedmpi.policies.sampling import masses
from fedmpi.policies.timeline import Timeline
from fedmpi.streams import say
from fedmpi.tasks import Measures, Strata
from fedmpi.training.choice import choose, make_trainer
from fedmpi.training.flat import FlatModel
from fedmpi.training.output_check import check_outputs
from fedmpi.training.samples import Samples
from fedmpi.training.settings import Choice, LocalTraining
from fedmpi.training.trainer import LocalWork


@dataclass(frozen=True)
class Assembled:
    """Everything that a run needs for its rounds.

    Attributes:
        engine: of the federation.
        held_out: the held-out clients.
        timeline: the schedule of an asynchronous method; None: the method is synchronous.
        choice: how many clients a rank trains at once, and why.
        checksums: of the data, as in the results file (data_sha256, proxy_sha256); on rank 0.
    """

    engine: Engine
    held_out: Cohort
    timeline: Timeline | None
    choice: Choice
    checksums: Mapping[str, str]


def assemble(experiment: Settings, world: World) -> Assembled:
    """Load the data, split it, build the model and set the algorithm up; on every rank.

    Raises:
        BadInput: on every rank alike.
    """
    keep_freed_memory()
    _connect(experiment)
    removed = _remove_leftovers(world)
    device = pick_device(world, experiment.device, experiment.algorithm.trains_at_server)
    task, dataset = experiment.task, experiment.dataset
    arrays = load_shared(world, dataset, task)
    proxy = load_shared(world, experiment.algorithm.proxy) if experiment.algorithm.proxy else None
    with world.agreed():
        check_targets(dataset, arrays, task)
    outputs = task.outputs(arrays.train_y, dataset)
    networks = networks_of(experiment, arrays, outputs, device, read_initial_model(world, experiment.init))
    with world.agreed():
        model = networks(0)
        compatibility.check_loaded(_loaded(experiment, arrays, proxy, model, outputs))
        everyone = _split(experiment, arrays, world)
    measures = Measures(task, experiment.measured, outputs)
    shared = _put_together(experiment, world, arrays, proxy, everyone, measures, model)
    del model  # with its own copy of what is frozen
    networks.share(world)
    fed, choice = shared.federation(
        networks,
        shared.train,
        experiment.local,
        experiment.rounds,
        experiment.seed,
        f"--model = {named(experiment.model)}",
    )
    if fed.layout.frozen:  # of which every network that was built had a copy at first
        return_freed_memory()
    fed.sibling = shared.sibling
    engine = Engine(fed)
    set_up(experiment.algorithm, engine)
    if experiment.evaluate_means in ("clients", "both"):
        counted = masses(fed.samples, experiment.weighting)
        engine.observe_everyone(Cohort(np.arange(fed.clients), fed.samples, counted))
    _check_room(experiment, world, fed)
    strangers = np.arange(experiment.clients, len(everyone.train))
    held_out = Cohort(strangers, everyone.samples[strangers], np.ones_like(strangers))
    read = {"data_sha256": arrays, "proxy_sha256": proxy}
    checksums = {name: data.checksum for name, data in read.items() if data} if world.is_server else {}
    if removed and world.is_server:
        say(f"removed files that killed jobs had left in /dev/shm: {', '.join(removed)}")
    return Assembled(engine, held_out, timeline_of(experiment, engine), choice, checksums)


def set_up(algorithm: Algorithm, engine: Engine) -> None:
    """Create the algorithm's state, replacing that of an earlier run.

    Raises:
        BadInput: its options do not fit the federation; on every rank alike.
    """
    for part in algorithm.parts:
        part.task = engine.federation.task
        if "server_optimizer" in vars(part):
            part.server_optimizer.state.clear()
    fed = engine.federation
    with engine.agreed(), option_of("algorithm"):
        fed.context.reseed("setup")
        algorithm.setup(fed)
        state = [(part, name, declared(part, name)) for part in algorithm.parts for name in part.server_state]
    if not fed.is_server:
        for part, name, tensor in state:
            setattr(part, name, tensor.to("meta"))


@dataclass(frozen=True)
class _Shared:
    """Objects that all federations of an experiment share: the ranks, the clients and their samples.

    Attributes:
        everyone: the samples of all clients, including held-out clients.
        split: the samples of the clients that take part in rounds.
        shards: for each client, the numbers of its training samples.
        count_labels: gives [clients, strata], numbers of training samples by the labels that clients train on.
        triggered: test samples that carry the trigger of the attack; None: there are none.
        measures: what evaluations measure.
        pixels: the order in which a client sees the pixels of its samples.
    """

    experiment: Settings
    world: World
    device: torch.device
    everyone: Split
    split: Split
    shards: ClientSamples
    count_labels: Callable[[], NDArray[np.int64]]
    measures: Measures
    pixels: PixelOrders
    train: Samples
    test: Measured
    validation: Measured | None
    triggered: Measured | None
    proxy: Samples | None
    adversary: Adversary | None
    released: Released
    energy: Energy

    def federation(
        self, networks: Networks, train: Samples, local: LocalTraining, rounds: int, seed: int, what: str
    ) -> tuple[Federation, Choice]:
        """The federation of the clients for networks of the kind `what`, and how a rank trains them."""
        experiment, world, everyone = self.experiment, self.world, self.everyone
        with world.agreed():
            work = LocalWork(experiment.task, networks(0), train, self.shards, self.pixels, local, seed)
            measured = networks(0)
            check_rebuilt(work.model.module, measured.module, what)
        at_most = 1 if experiment.algorithm.pools_clients else experiment.cohort
        choice = choose(world, work, at_most, rounds, experiment.algorithm)
        evaluator = Evaluator(
            measured,
            self.measures,
            train,
            everyone.train,
            self.test,
            self.validation,
            self.triggered,
            self.pixels,
            experiment.clients,
        )
        context = Context(
            world=world,
            trainer=make_trainer(work, choice),
            evaluator=evaluator,
            split=self.split,
            count_labels=self.count_labels,
            train=train,
            build=networks,
            rounds=rounds,
            weighting=experiment.weighting,
            adversary=self.adversary,
            privacy=experiment.privacy,
            released=self.released,
            compression=experiment.compression,
            proxy=self.proxy,
            seed=seed,
            energy=self.energy,
        )
        return Federation(context), choice

    def sibling(self, make: Callable[[], nn.Module], local: LocalTraining, rounds: int, name: str) -> Federation:
        """A federation of the same clients for another network, which sees images on the scale 0..1.

        See `Algorithm.stages`.
        """
        seed = randomness.key(self.experiment.seed, name)
        what = f"--algorithm = {named(self.experiment.algorithm)}: its {name}"
        networks = Networks(make, seed, self.device)
        return self.federation(networks, self.train.unnormalised(), local, rounds, seed, what)[0]


def _connect(experiment: Settings) -> None:
    """Connect the components. This is done here because a component may be used in several experiments."""
    experiment.model.vocabulary = experiment.dataset.vocabulary
    for part in experiment.algorithm.parts:
        part.task = experiment.task
    if experiment.algorithm.takes_server_optimizer:
        experiment.algorithm.server_optimizer = experiment.server_optimizer


def _remove_leftovers(world: World) -> list[str]:
    """Remove files that killed jobs have left in the nodes' shared memory; a collective.

    Returns: The removed size per node, in words.
    """
    removed = leftovers.remove_listed() if world.leads and world.size > 1 else 0
    return [
        f"{int(text) >> 10} KiB on {host}"
        for host, text in zip(world.hosts, world.gather_text(str(removed)), strict=True)
        if int(text)
    ]


def _loaded(
    experiment: Settings, arrays: Arrays, proxy: Arrays | None, model: FlatModel, outputs: int
) -> compatibility.Loaded:
    """The facts for the rules on data and networks."""
    other, layers = experiment.algorithm.proxy, list(model.module.modules())
    recurs = any(isinstance(layer, nn.RNNBase) for layer in layers)
    return compatibility.Loaded(
        experiment,
        shape=arrays.train_x.shape[1:],
        has_images=arrays.train_x.dtype == np.uint8,
        outputs=outputs,
        samples=_kind(arrays, experiment.dataset),
        proxy_samples=_kind(proxy, other) if proxy and other else None,
        has_embedding=any(isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) for layer in layers),
        has_statistics=model.layout.size > model.layout.parameters,
        normalises_batches=model.normalises_batches,
        lacks_bf16=recurs and model.device.type == "cpu" and not computes_bf16(),
    )


def _kind(arrays: Arrays, dataset: Dataset) -> str:
    """The kind of samples, in words, as a network must know it."""
    words, x = dataset.vocabulary, arrays.train_x
    return f"{x.dtype} {x.shape[1:]}" + (f" and {words} tokens" if words else "")


def _split(experiment: Settings, arrays: Arrays, world: World) -> Split:
    """The samples of all clients, including held-out clients."""
    train_y, test_y = arrays.train_y, arrays.test_y
    strata = experiment.task.strata(read_only(train_y), read_only(test_y), experiment.dataset)
    if strata is None:  # the partition does not look at them
        strata = Strata(np.zeros(len(train_y), np.int64), np.zeros(len(test_y), np.int64), 1)
    with option_of("partition"):
        everyone = make_split(
            experiment.partition,
            *strata,
            experiment.clients + experiment.held_out,
            experiment.seed,
            arrays.train_users,
            arrays.test_users,
            experiment.validation or 0.0,
            experiment.held_out,
        )
    if experiment.partition.moved and world.is_server:
        moved = f"{experiment.partition.moved:,} sample{'s' * (experiment.partition.moved > 1)}"
        say(f"partition: {moved} moved from the largest clients to clients with too few samples")
    return everyone


def _put_together(
    experiment: Settings,
    world: World,
    arrays: Arrays,
    proxy: Arrays | None,
    everyone: Split,
    measures: Measures,
    model: FlatModel,
) -> _Shared:
    """Combine clients and samples, after checking that all ranks have the same.

    Args:
        proxy: unlabelled samples of the server; None: none.
        measures: what evaluations measure.
        model: a network with its initial weights.

    Raises:
        BadInput: ranks have different data or networks, or the network has no valid output.
    """
    algorithm, dataset, device = experiment.algorithm, experiment.dataset, model.device
    split = everyone.first(experiment.clients)
    adversary = Adversary.of(world, experiment.attack, experiment.clients, experiment.seed)
    seen, test_labels = (
        everyone.labels_seen(labels, *parts)
        for labels, *parts in ((arrays.train_y, everyone.train, everyone.validation), (arrays.test_y, everyone.test))
    )
    labels, poisoned = seen, np.zeros(len(seen), dtype=bool)
    if adversary:
        labels, poisoned = adversary.poison(seen, split.train, measures.outputs)
    weights = experiment.task.weights(read_only(labels))
    honest = Samples(arrays.train_x, labels, dataset.mean, dataset.std, device, weights)
    trigger = adversary.trigger if adversary else None
    train = honest.marked(trigger.size, poisoned) if trigger else honest
    test = Samples(arrays.test_x, test_labels, dataset.mean, dataset.std, device)
    data: dict[str, tuple[object, Arrays]] = {"dataset": (dataset, arrays)}
    proxies: Samples | None = None
    if proxy:
        unlabelled = np.zeros(len(proxy.train_x), np.int64)
        proxies = Samples(proxy.train_x, unlabelled, dataset.mean, dataset.std, device)
        data["algorithm.proxy"] = algorithm.proxy, proxy
    check_set_up(
        world, experiment, model.module, data, everyone, train.pixels, (seen, test_labels), (labels, poisoned)
    )
    with world.agreed():
        names = named(experiment.model), named(algorithm)
        check_outputs(model, train, experiment.task, measures.outputs, algorithm, *names)
    return _Shared(
        experiment,
        world,
        device,
        everyone,
        split,
        shards=_pooled(split.train) if algorithm.pools_clients else everyone.train,
        count_labels=lambda: adversary.label_counts(split, labels) if adversary else split.label_counts,
        measures=measures,
        pixels=PixelOrders(everyone, train.pixels, device),
        train=train,
        test=Measured.of(test, everyone.test),
        validation=Measured.of(honest.relabelled(seen), everyone.validation) if experiment.validation else None,
        triggered=_triggered(test, test_labels, everyone.test, trigger) if trigger else None,
        proxy=proxies,
        adversary=adversary,
        released=Released(),
        energy=Energy(world, device),
    )


def _pooled(shards: ClientSamples) -> ListedSamples:
    """The samples of all clients as those of one client."""
    return ListedSamples.of_lists([np.sort(np.concatenate(shards[:]))])


def _triggered(test: Samples, labels: NDArray[np.int64], shards: ListedSamples, trigger: Trigger) -> Measured:
    """The test samples of other classes than the target, with the trigger, and with the target as their label.

    Args:
        labels: of the test samples.
        shards: for each client, the numbers of its test samples.
    """
    marked = test.marked(trigger.size, np.ones(len(labels), dtype=bool))
    others = shards.where(labels[shards.samples] != trigger.target)
    return Measured.of(marked.relabelled(np.full_like(labels, trigger.target)), others)


def _check_room(experiment: Settings, world: World, fed: Federation) -> None:
    """Raise BadInput, on every rank alike, if a node has too little shared memory for the vectors of a round.

    Not all vectors are known in advance. Those that clients receive and send, and models that are evaluated, are
    counted. Of models that every rank sees, there is one at a time (`Stack.everywhere`).
    """
    algorithm, size = experiment.algorithm, fed.layout.size
    received, sent = (sum(fed.layout.extent(one)[0] for one in vectors) for vectors in algorithm.payload(fed.layout))
    states = [getattr(part, name).shape for part in algorithm.parts for name in part.server_state]
    models = max((shape[0] for shape in states if len(shape) == 2 and shape[1] == size), default=1)
    means = {"none": 0, "cohort": 1, "clients": 1, "both": 2}[experiment.evaluate_means]
    summed = 0 if algorithm.looks_at_models else models * sent  # else they are no means
    received = max(received, size) if algorithm.looks_at_models else received
    world.check_room(received + models * size, summed + means * size)
