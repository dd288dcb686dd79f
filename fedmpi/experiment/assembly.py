"""From the settings of an experiment to a federation that is ready for its first round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmpi import randomness
from fedmpi.algorithms import Algorithm
from fedmpi.data import Arrays, Dataset, Split, make_split, prepared
from fedmpi.errors import BadInput, named, option_of
from fedmpi.experiment import inputs
from fedmpi.experiment.alike import check_rebuilt, check_set_up
from fedmpi.experiment.checkpoint import Checkpoints, Layer, Place
from fedmpi.experiment.environment import describe
from fedmpi.experiment.ownership import Lock
from fedmpi.experiment.resume import missing_in_results
from fedmpi.federation.adversary import Adversary
from fedmpi.federation.context import Context
from fedmpi.federation.engine import Engine
from fedmpi.federation.evaluation import Evaluator
from fedmpi.federation.federation import Federation
from fedmpi.models import Model
from fedmpi.mpi import leftovers
from fedmpi.mpi.devices import computes_bf16, pick_device
from fedmpi.mpi.shared import share
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort
from fedmpi.policies.privacy import NoPrivacy, Released
from fedmpi.policies.sampling import masses
from fedmpi.results import Results
from fedmpi.results.summary import way_of_training
from fedmpi.streams import say
from fedmpi.training.choice import choose, make_trainer
from fedmpi.training.dry_run import constant_buffers, materialise
from fedmpi.training.flat import FlatModel
from fedmpi.training.layout import Layout
from fedmpi.training.output_check import check_outputs
from fedmpi.training.samples import Samples
from fedmpi.training.settings import Choice, LocalTraining
from fedmpi.training.trainer import Task

if TYPE_CHECKING:
    from fedmpi.experiment.settings import Experiment


def assemble(experiment: Experiment, world: World) -> Engine:
    """Load the data, split it, build the model and set the algorithm up; on every rank.

    Raises:
        BadInput: on every rank alike.
    """
    torch.set_num_threads(experiment.threads)
    _connect(experiment)
    _remove_leftovers(world)
    device = pick_device(world, experiment.device, experiment.algorithm.trains_at_server)
    dataset = experiment.dataset
    arrays = load_shared(world, dataset)
    proxy = load_shared(world, experiment.algorithm.proxy) if experiment.algorithm.proxy else None

    is_text = dataset.vocabulary is not None
    example = torch.ones(2, *arrays.train_x.shape[1:], dtype=torch.int64 if is_text else torch.float32)

    frozen: Mapping[str, Tensor] | None = None

    def build(number: int) -> FlatModel:
        nonlocal frozen  # the same in all networks, whatever their number
        randomness.seed_globals(randomness.key(experiment.seed, "initial weights", client=number))
        with option_of("model"):
            network = experiment.model.build(arrays.train_x.shape[1:], dataset.classes)
        if not isinstance(network, nn.Module):
            kind, found = type(experiment.model).__name__, type(network).__name__
            raise BadInput(f"= {kind}: build() returned a {found}, which must be a torch.nn.Module", "--model")
        with _said_of(experiment.model):
            materialise(network, example)
        network = experiment.algorithm.extend(network, example)
        with _said_of(experiment.model):
            materialise(network, example)
            constant = constant_buffers(network, example) if frozen is None else ()
            model = FlatModel(network, device, constant, frozen)
        frozen = model.layout.frozen
        return model

    with world.agreed():
        model = build(0)
        _check_fit(experiment, arrays, proxy, model)
        if model.layout.size > model.layout.parameters and not isinstance(experiment.privacy, NoPrivacy):
            raise BadInput("has running statistics, which privacy does not cover: --model.norm group", "--model")
        if model.normalises_batches and experiment.local.batch_size == 1:
            raise BadInput("= 1: must be at least 2 for a model with batch normalisation", "--local.batch_size")
        with option_of("partition"):
            everyone = make_split(
                experiment.partition,
                arrays.train_y,
                arrays.test_y,
                dataset.classes,
                experiment.clients + experiment.newcomers,
                experiment.seed,
                arrays.train_users,
                arrays.test_users,
            )
        if experiment.partition.moved and world.is_server:
            say(f"{experiment.partition.moved} samples moved to clients that would have had too few")
        split = everyone.first(experiment.clients)
        pools = experiment.algorithm.pools_clients
        if pools and (split.partition.permutes_pixels or split.partition.relabels):
            name, how = (type(part).__name__ for part in (experiment.algorithm, experiment.partition))
            raise BadInput(
                f"= {name}: cannot pool what each client sees in a way of its own, as with {how}", "--algorithm"
            )
    adversary = Adversary.of(world, experiment.attack, experiment.clients, experiment.seed)
    seen = everyone.labels_seen(arrays.train_y, everyone.train)
    labels = adversary.poison(seen, split.train, dataset.classes) if adversary else seen
    train = Samples(arrays.train_x, labels, dataset.mean, dataset.std, device)
    unlabelled = np.zeros(len(proxy.train_x) if proxy else 0, np.int64)
    proxies = Samples(proxy.train_x, unlabelled, dataset.mean, dataset.std, device) if proxy else None
    test_labels = everyone.labels_seen(arrays.test_y, everyone.test)
    test = Samples(arrays.test_x, test_labels, dataset.mean, dataset.std, device)
    sources = {"dataset": (dataset, arrays), "algorithm.proxy": (experiment.algorithm.proxy, proxy)}
    data = {option: (source, held) for option, (source, held) in sources.items() if held}
    check_set_up(world, experiment, model.module, data, everyone, train.pixels, (seen, test_labels), labels)
    with world.agreed():
        names = named(experiment.model), named(experiment.algorithm)
        check_outputs(model, train, dataset.classes, experiment.algorithm, *names)
    pixels = PixelOrders(everyone, train.pixels, device)
    owners = np.empty(len(arrays.test_y), dtype=np.int64)
    for client, shard in enumerate(everyone.test):
        owners[shard] = client
    shards = [np.sort(np.concatenate(split.train))] if pools else everyone.train
    released = Released()

    def federate(
        build: Callable[[int], FlatModel], train: Samples, local: LocalTraining, rounds: int, seed: int, what: str
    ) -> tuple[Federation, Choice]:
        """The clients around one network, which is `what`."""
        measured = everyone.train, everyone.test, owners, dataset.classes, pixels, experiment.clients
        with world.agreed():
            task, evaluated = Task(build(0), train, shards, pixels, local, seed), build(0)
            check_rebuilt(task.model.module, evaluated.module, what)
        choice = choose(world, task, 1 if pools else experiment.cohort, experiment.algorithm)
        trainer = make_trainer(task, choice.at_once)
        mass = int(masses(split.samples, experiment.weighting).sum())
        evaluator = Evaluator(evaluated, train, test, *measured)
        context = Context(
            world=world,
            trainer=trainer,
            evaluator=evaluator,
            split=split,
            train=train,
            build=build,
            rounds=rounds,
            total_mass=mass,
            adversary=adversary,
            privacy=experiment.privacy,
            released=released,
            compression=experiment.compression,
            proxy=proxies,
            seed=seed,
        )
        return Federation(context), choice

    def sibling(make: Callable[[], nn.Module], local: LocalTraining, rounds: int, name: str) -> Federation:
        seed = randomness.key(experiment.seed, name)
        frozen: Mapping[str, Tensor] | None = None

        def build(number: int) -> FlatModel:
            nonlocal frozen
            randomness.seed_globals(randomness.key(seed, "initial weights", client=number))
            model = FlatModel(make(), device, shared=frozen)
            frozen = model.layout.frozen
            return model

        what = f"--algorithm = {named(experiment.algorithm)}: its {name}"
        return federate(build, train.unnormalised(), local, rounds, seed, what)[0]

    what = f"--model = {named(experiment.model)}"
    fed, choice = federate(build, train, experiment.local, experiment.rounds, experiment.seed, what)
    fed.sibling = sibling
    engine = Engine(fed)
    engine.choice = choice
    if world.is_server:
        read = {"data_sha256": arrays, "proxy_sha256": proxy}
        engine.checksums = {name: data.checksum for name, data in read.items() if data}
    set_up(experiment.algorithm, engine)
    if experiment.evaluate_means in ("clients", "both"):
        counted = masses(fed.samples, experiment.weighting)
        engine.observe_everyone(Cohort(np.arange(fed.clients), fed.samples, counted))
    _check_room(experiment, world, fed)
    strangers = np.arange(experiment.clients, len(everyone.train))
    engine.newcomers = Cohort(strangers, everyone.samples[strangers], np.ones_like(strangers))
    return engine


def _connect(experiment: Experiment) -> None:
    """Tell the components of one another; here, because each may be given to several experiments."""
    experiment.model.vocabulary = experiment.dataset.vocabulary
    if experiment.algorithm.takes_server_optimizer:
        experiment.algorithm.server_optimizer = experiment.server_optimizer


def _remove_leftovers(world: World) -> None:
    """Remove what killed jobs have left in the nodes' shared memory, and say so; a collective."""
    removed = leftovers.remove_listed() if world.leads and world.size > 1 else 0
    told = [
        f"{int(text) >> 10} KiB on {host}"
        for host, text in zip(world.hosts, world.gather_text(str(removed)), strict=True)
        if int(text)
    ]
    if told and world.is_server:
        say(f"removed what killed jobs had left in /dev/shm: {', '.join(told)}")


def _check_room(experiment: Experiment, world: World, fed: Federation) -> None:
    """Raise BadInput, on every rank alike, if a node has too little shared memory for the vectors of a round.

    Not all are known before. What clients receive and send is counted, and the models that are measured.
    """
    algorithm, size = experiment.algorithm, fed.layout.size
    received, sent = (sum(fed.layout.extent(one)[0] for one in vectors) for vectors in algorithm.payload(fed.layout))
    states = [getattr(part, name).shape for part in algorithm.parts for name in part.server_state]
    models = max((shape[0] for shape in states if len(shape) == 2 and shape[1] == size), default=1)
    means = {"none": 0, "cohort": 1, "clients": 1, "both": 2}[experiment.evaluate_means]
    summed = 0 if algorithm.looks_at_models else models * sent  # else they are no means
    world.check_room(received + models * size, summed + means * size)


@contextmanager
def _said_of(model: Model) -> Iterator[None]:
    """Name the model in bad input that says what is wrong with its network."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"= {type(model).__name__}: {error.message}", "--model") from None


def set_up(algorithm: Algorithm, engine: Engine) -> None:
    """Create the algorithm's state, whatever an earlier run has left in it.

    Raises:
        BadInput: its options do not go with the federation; on every rank alike.
    """
    for part in algorithm.parts:
        if "server_optimizer" in vars(part):
            part.server_optimizer.state.clear()
    fed = engine.federation
    with engine.agreed(), option_of("algorithm"):
        fed.context.reseed("setup")
        algorithm.setup(fed)
    if not fed.is_server:
        for part in algorithm.parts:
            for name in part.server_state:
                setattr(part, name, getattr(part, name).to("meta"))


def _check_fit(experiment: Experiment, arrays: Arrays, proxy: Arrays | None, model: FlatModel) -> None:
    """Raise `BadInput` where the model or what is done to samples does not suit their kind."""
    name, augmentation = type(experiment.dataset).__name__, experiment.local.augmentation
    embeds = any(isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) for layer in model.module.modules())
    if experiment.dataset.vocabulary is not None and not embeds:
        kind = type(experiment.model).__name__
        raise BadInput(f"= {kind}: has no embedding, so it cannot take the text of {name}", "--model")
    if experiment.dataset.vocabulary is not None and experiment.partition.permutes_pixels:
        kind = type(experiment.partition).__name__
        raise BadInput(f"= {kind}: permutes pixels, and {name} is text", "--partition")
    shape = arrays.train_x.shape[1:]
    if experiment.partition.turns_images and (len(shape) != 3 or shape[1] != shape[2]):
        kind = type(experiment.partition).__name__
        raise BadInput(f"= {kind}: turns square images, and {name} has none", "--partition")
    recurs = any(isinstance(layer, nn.RNNBase) for layer in model.module.modules())
    if experiment.local.precision == "bf16" and recurs and model.device.type == "cpu" and not computes_bf16():
        needed = "must be float32: PyTorch has no bfloat16 code for recurrent layers on processors without AVX-512"
        raise BadInput(f"= bf16: {needed}", "--local.precision")
    if augmentation != "none" and arrays.train_x.ndim != 4:
        raise BadInput(f"= {augmentation}: must be none, for {name} has no images", "--local.augmentation")
    other = experiment.algorithm.proxy
    if proxy and other and _kind(proxy, other) != (own := _kind(arrays, experiment.dataset)):
        found = f"{type(other).__name__}: has samples of {_kind(proxy, other)}"
        raise BadInput(f"= {found}, but those of {name} are of {own}", "--algorithm.proxy")


def _kind(arrays: Arrays, dataset: Dataset) -> str:
    """What a network must know of samples."""
    words, x = dataset.vocabulary, arrays.train_x
    return f"{x.dtype} {x.shape[1:]}" + (f" and {words} tokens" if words else "")


def open_results(
    experiment: Experiment,
    engine: Engine,
    world: World,
    config: str | None,
    lock: Lock,
    checkpoints: Checkpoints,
    place: Place | None,
) -> Results | None:
    """Rank 0's results, written for the first time; None on the other ranks.

    Args:
        lock: of the file.
        checkpoints: of the run; those of another one, which is replaced, are removed.
        place: where the run goes on that has left a file; None: it begins.

    Raises:
        BadInput: the file cannot be written, or lacks rows; on every rank alike.
    """
    environment = describe(world, engine.federation.device)
    environment |= {"clients_at_once": engine.choice.at_once, "clients_at_once_reason": engine.choice.reason}
    results: Results | None = None
    with world.agreed():
        if world.is_server:
            try:
                results = _begun(experiment, engine, environment, config, lock)
                if place:
                    done = 0 if place.stage else place.round
                    results.resume(place.started, done, done == experiment.rounds, checkpoints.rows)
                else:
                    checkpoints.remove()
                results.write()
            except OSError as error:
                reason = f"cannot be written ({error.strerror or error})"
                raise BadInput(f"= {experiment.output}: {reason}", "--output") from None
            say(f"clients are trained {way_of_training(engine.choice.at_once, engine.choice.reason)}")
    return results


def _begun(
    experiment: Experiment, engine: Engine, environment: dict[str, Any], config: str | None, lock: Lock
) -> Results:
    """The results before the first round."""
    fed = engine.federation
    names = {name: type(getattr(experiment, name)).__name__ for name in ("algorithm", "dataset", "model")}
    settings = config or experiment.config
    attributes = {**names, "seed": experiment.seed, "config": settings, **engine.checksums}
    attributes |= {**inputs.describe(settings), **_after_more_rounds(experiment, engine)}
    results = Results(
        experiment.output, attributes, environment, overwrite=True, confirm=lock.confirm if lock else None
    )
    results.set_partition(fed.label_counts, fed.samples)
    _describe_models(results, experiment.algorithm, fed.layout)
    data, kind = experiment.dataset, "uint8" if fed.has_images else "int64" if fed.is_text else "float32"
    results.set_inputs(kind, fed.shape, data.classes, data.mean, data.std, data.vocabulary)
    return results


def _after_more_rounds(experiment: Experiment, engine: Engine) -> dict[str, Callable[[], str | None]]:
    """Attributes of the results file that say whether a finished run can have more rounds."""
    algorithm, local = experiment.algorithm, experiment.local

    def missing() -> str:
        spent = [] if isinstance(experiment.privacy, NoPrivacy) else ["what was spent of privacy"]
        return "\n".join([*missing_in_results(Layer("rounds", engine, algorithm)), *spent])

    def depends_on_rounds() -> str | None:
        reasons = [f"--local.schedule {local.schedule}"] if local.schedule == "cosine" else []
        reasons += [f"--algorithm {type(algorithm).__name__}"] if engine.federation.has_asked_for_rounds else []
        return ", ".join(reasons) or None

    return {"missing": missing, "depends_on_rounds": depends_on_rounds}


def _describe_models(results: Results, algorithm: Algorithm, layout: Layout) -> None:
    def current(part: Algorithm, name: str, layout: Layout) -> Callable[[], np.ndarray]:
        return lambda: layout.canonical(getattr(part, name)).numpy()

    def tensors(layout: Layout) -> tuple[list[str], list[tuple[int, ...]], list[int]]:
        entries = layout.entries
        return [entry.name for entry in entries], [entry.shape for entry in entries], [e.offset for e in entries]

    def frozen(layout: Layout) -> dict[str, np.ndarray]:
        return {name: tensor.numpy(force=True) for name, tensor in layout.frozen.items()}

    states = {name: part for part in algorithm.parts for name in part.server_state}
    # Methods with several models keep them in vectors of the same length.
    models = {
        name: current(part, name, layout)
        for name, part in states.items()
        if getattr(part, name).shape[-1:] == (layout.size,) and name not in algorithm.networks
    }
    models.pop("weights", None)
    results.set_model(*tensors(layout), current(algorithm, "weights", layout), models, frozen(layout))
    for name, other in algorithm.networks.items():
        results.set_network(name, *tensors(other), current(states[name], name, other), frozen(other))


def load_shared(world: World, dataset: Dataset) -> Arrays:
    """The arrays of a data set, one copy a node: mapped from prepared files, or else in memory shared by its ranks.

    Raises:
        BadInput: the data cannot be had on some node; on every rank alike.
    """
    arrays: Arrays | None = None
    with world.agreed(), option_of("dataset"):
        if world.is_server:
            arrays = prepared.load(dataset, say)
    if world.from_server(arrays is not None and arrays.on_disk):
        with world.agreed():
            arrays = arrays or prepared.open_prepared(dataset)
            if arrays is None:
                reason = "is not there, or not the same as on rank 0's node"
                raise BadInput(f"{dataset.folder()} on {world.host} {reason}: copy it, or share it between nodes")
        return arrays

    def read() -> dict[str, np.ndarray]:
        return (arrays or prepared.load(dataset, lambda line: None)).stored()

    return Arrays.of_stored(share(world, read))


class PixelOrders:
    """client -> the order [pixels] in which it sees the pixels of its samples, or None: as they are.

    Made when first asked for, and kept on the training device.
    """

    def __init__(self, split: Split, pixels: int, device: torch.device) -> None:
        self._split = split
        self._pixels = pixels
        self._device = device
        self._known: dict[int, Tensor | None] = {}

    def __call__(self, client: int) -> Tensor | None:
        if client not in self._known:
            order = self._split.pixels(client, self._pixels)
            self._known[client] = None if order is None else torch.from_numpy(order).to(self._device)
        return self._known[client]
