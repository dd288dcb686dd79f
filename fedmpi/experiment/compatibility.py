"""Which options cannot be combined, and why: one table, from which docs/compatibility.md is made.

Checks of a single option, and of the options of one component (`Sampler.check`), are in their classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from fedmpi.algorithms import CCVR, IFCA, Algorithm, FedDisco, FedExP
from fedmpi.data import Dataset, Partition
from fedmpi.errors import BadInput, named
from fedmpi.experiment.evaluated import Evaluated
from fedmpi.experiment.stopping import Stopping, direction
from fedmpi.models import Model
from fedmpi.options import Configured, acts_as, shown
from fedmpi.policies import All, Always, Availability, Bernoulli, Conditions, Ideal, Sampler, Weighting
from fedmpi.policies.attacks import Attack, NoAttack
from fedmpi.policies.compression import Compression, Dense
from fedmpi.policies.privacy import NoPrivacy, Privacy
from fedmpi.policies.server_optimizers import Replace, ServerOptimizer
from fedmpi.tasks import Task
from fedmpi.training.settings import LocalTraining


class Choices(Protocol):
    """The settings of an experiment that rules look at."""

    algorithm: Algorithm
    dataset: Dataset
    task: Task
    partition: Partition
    model: Model
    sampler: Sampler
    server_optimizer: ServerOptimizer
    privacy: Privacy
    compression: Compression
    attack: Attack
    availability: Availability
    conditions: Conditions
    clients: int
    cohort: int
    weighting: Weighting
    local: LocalTraining
    stop: Stopping
    metrics: Any
    evaluate_every: int
    evaluate_seconds: float | None
    evaluate_means: Any
    evaluate_local: bool
    evaluate_fine_tuned: int | None
    held_out: int
    init: Any
    validation: float | None

    @property
    def evaluated(self) -> Evaluated: ...
    @property
    def described_metrics(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Loaded:
    """Facts about an experiment that are known when its data are loaded and its network is built.

    Attributes:
        shape: of a sample, as the network takes it.
        has_images: whether samples are images of pixels from 0 to 255.
        outputs: number of outputs for a sample; of classes, if there are any.
        samples, proxy_samples: the kinds of samples, in words; None: there are no proxy samples.
        has_embedding: whether the network takes tokens.
        has_statistics: whether it has running statistics.
        normalises_batches: whether its output for a sample depends on the other samples of the batch.
        lacks_bf16: whether it has layers for which PyTorch has no bfloat16 code on this processor.
    """

    chosen: Choices
    shape: tuple[int, ...]
    has_images: bool
    outputs: int
    samples: str
    proxy_samples: str | None
    has_embedding: bool
    has_statistics: bool
    normalises_batches: bool
    lacks_bf16: bool

    @property
    def is_text(self) -> bool:
        """Whether samples are tokens."""
        return self.chosen.dataset.vocabulary is not None


Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Rule(Generic[Facts]):
    """A value of an option that cannot be combined with others.

    Attributes:
        option: dotted name of the option.
        values: the refused values, in words.
        why: the reason in the message. {algorithm} is the name of the method's class, and so on.
        is_broken: whether the option has such a value.
        methods: the methods that the rule is for; None: all.
    """

    option: str
    values: str
    why: str
    is_broken: Callable[[Facts], bool]
    methods: Callable[[Algorithm], bool] | None = None


def _is_by_chance(chosen: Choices) -> bool:
    return chosen.weighting == "horvitz_thompson"


def _is_private(chosen: Choices) -> bool:
    return not isinstance(chosen.privacy, NoPrivacy)


def _is_compressed(chosen: Choices) -> bool:
    return not acts_as(chosen.compression, Dense)


def _is_held_up(chosen: Choices) -> bool:
    return not isinstance(chosen.conditions, Ideal)


def _has_clock(chosen: Choices) -> bool:
    return _is_held_up(chosen) or chosen.algorithm.is_asynchronous


def _is_attacked(chosen: Choices) -> bool:
    return not isinstance(chosen.attack, NoAttack)


def _fewest(chosen: Choices) -> int:
    """The smallest number of clients that is asked in a round."""
    is_full = acts_as(chosen.availability, Always) and not isinstance(chosen.sampler, Bernoulli)
    return chosen.cohort if is_full else 1


def _arrival(chosen: Choices) -> float | None:
    return chosen.conditions.arrival(_fewest(chosen), chosen.algorithm.accepts_partial_work)


def _changes_labels(chosen: Choices) -> bool:
    return type(chosen.attack).poison is not Attack.poison


def _looks_at_models(algorithm: Algorithm) -> bool:
    return algorithm.looks_at_models


def _needs_all_clients(algorithm: Algorithm) -> bool:
    return algorithm.needs_all_clients


def _pools_clients(algorithm: Algorithm) -> bool:
    return algorithm.pools_clients


def _has_no_mean(algorithm: Algorithm) -> bool:
    return algorithm.pools_clients or not any("weights" in part.server_state for part in algorithm.parts)


def _is_a(kind: type) -> Callable[[Algorithm], bool]:
    """Whether a method, or one that it extends, is of this class."""
    return lambda algorithm: any(isinstance(part, kind) for part in algorithm.parts)


HELD_OUT: Sequence[Rule[Choices]] = (
    Rule(
        "held_out",
        "above 0",
        "must be 0 with {algorithm}, because its local training may need more than the global model",
        lambda chosen: chosen.held_out > 0,
        lambda algorithm: not algorithm.takes_held_out,
    ),
)
#: Options of evaluations, and the values with which nothing is evaluated.
OF_EVALUATIONS: dict[str, Any] = {
    "metrics": None,
    "evaluate_means": "none",
    "evaluate_local": False,
    "evaluate_fine_tuned": None,
    "validation": None,
}


def _for_evaluations(option: str, without: Any) -> Rule[Choices]:
    return Rule(
        option,
        f"other than {shown(without)}, with --evaluate_every 0",
        f"must be {shown(without)} with --evaluate_every 0, because there are no evaluations",
        lambda chosen: getattr(chosen, option) != without and not chosen.evaluated,
    )


EVALUATIONS: Sequence[Rule[Choices]] = tuple(_for_evaluations(*each) for each in OF_EVALUATIONS.items())
STOPPING: Sequence[Rule[Choices]] = (
    Rule(
        "stop.patience",
        "a number, with --evaluate_every 0",
        "must be null with --evaluate_every 0, because there are no evaluations",
        lambda chosen: chosen.stop.patience is not None and not chosen.evaluated,
    ),
    Rule(
        "stop.target",
        "a number, with --evaluate_every 0",
        "must be null with --evaluate_every 0, because there are no evaluations",
        lambda chosen: chosen.stop.target is not None and not chosen.evaluated,
    ),
    Rule(
        "stop.metric",
        "null, with --stop.patience or --stop.target, without a validation set",
        "must be a column of /rounds, because there is no validation set; with a column of the test set, such as"
        " test_accuracy, the test set chooses the model that it measures",
        lambda chosen: chosen.stop.needs_metric and chosen.stop.metric is None and not chosen.validation,
    ),
    Rule(
        "stop.metric",
        "a column of which it is not known which values are better",
        "must be a column of /rounds of which it is known which values are better, such as test_accuracy",
        lambda chosen: (
            chosen.stop.metric is not None and direction(chosen.stop.metric, chosen.described_metrics) is None
        ),
    ),
    Rule(
        "stop.virtual_seconds",
        "a number, without a virtual clock",
        "must be null without a virtual clock, as that of --conditions Heterogeneous",
        lambda chosen: chosen.stop.virtual_seconds is not None and not _has_clock(chosen),
    ),
)
#: The probability that a client's update is used must be known, and not zero.
CHANCES: Sequence[Rule[Choices]] = (
    Rule(
        "weighting",
        "horvitz_thompson, if the probability of being drawn is not known",
        "cannot be combined with {sampler}, because the probability that a client is drawn is not known",
        lambda chosen: _is_by_chance(chosen) and chosen.sampler.chance(chosen.cohort, chosen.clients) is None,
    ),
    Rule(
        "weighting",
        "horvitz_thompson, with a deadline or with more clients asked than are used",
        "cannot be combined with {conditions} if the probability that an update is used depends on speed",
        lambda chosen: _is_by_chance(chosen) and _arrival(chosen) is None,
    ),
    Rule(
        "weighting",
        "horvitz_thompson, if all clients of a small round may be dropped",
        "cannot be combined with {conditions} if a round of {fewest} clients may use no update",
        lambda chosen: _is_by_chance(chosen) and _arrival(chosen) == 0,
    ),
)
#: The server must learn nothing but a mean whose noise is accounted for.
PRIVATE: Sequence[Rule[Choices]] = (
    Rule(
        "algorithm",
        "these methods, with any privacy",
        "must be a method whose server sees only one mean of models, with {privacy}",
        _is_private,
        lambda algorithm: not algorithm.takes_privacy,
    ),
    Rule(
        "weighting",
        "other than uniform, with any privacy",
        "must be uniform with {privacy} (add --weighting uniform)",
        lambda chosen: _is_private(chosen) and chosen.weighting != "uniform",
    ),
    Rule(
        "compression",
        "other than Dense, with any privacy",
        "must be Dense with {privacy}",
        lambda chosen: _is_private(chosen) and _is_compressed(chosen),
    ),
    Rule(
        "availability",
        "other than Always, with any privacy",
        "must be Always with {privacy}",
        lambda chosen: _is_private(chosen) and not acts_as(chosen.availability, Always),
    ),
    Rule(
        "conditions",
        "other than Ideal, with any privacy",
        "must be Ideal with {privacy}",
        lambda chosen: _is_private(chosen) and not acts_as(chosen.conditions, Ideal),
    ),
)
CLOCK: Sequence[Rule[Choices]] = (
    Rule(
        "availability",
        "one by times (Intervals), without a virtual clock",
        "needs a virtual clock, as that of --conditions Heterogeneous",
        lambda chosen: chosen.availability.by_clock and not _has_clock(chosen),
    ),
    Rule(
        "availability.interrupts",
        "true, with a synchronous method",
        "must be false with a synchronous method",
        lambda chosen: chosen.availability.interrupts and not chosen.algorithm.is_asynchronous,
    ),
    Rule(
        "evaluate_seconds",
        "a number, without a virtual clock",
        "must be null without a virtual clock, as that of --conditions Heterogeneous",
        lambda chosen: chosen.evaluate_seconds is not None and not _has_clock(chosen),
    ),
)
TASKS: Sequence[Rule[Choices]] = (
    Rule(
        "algorithm",
        "these methods, with a task whose samples have no classes",
        "needs samples with classes, which {task} does not have",
        lambda chosen: not chosen.task.has_classes,
        lambda algorithm: algorithm.needs_classes,
    ),
    Rule(
        "partition",
        "one that looks at labels, with a task without them (LanguageModel)",
        "looks at labels, which {task} does not have: use Users, IID or LogNormal",
        lambda chosen: chosen.partition.by_label and type(chosen.task).strata is Task.strata,
    ),
    Rule(
        "partition",
        "one that changes labels (SwappedLabels), with a task whose samples have no classes",
        "swaps classes, which {task} does not have",
        lambda chosen: chosen.partition.relabels and not chosen.task.has_classes,
    ),
    Rule(
        "partition",
        "one that moves pixels (Permuted, Rotated), with a task whose targets have places (Segmentation)",
        "moves the pixels of images, but not of the masks of {task}",
        lambda chosen: chosen.partition.permutes_pixels and chosen.task.is_spatial,
    ),
    Rule(
        "local.augmentation",
        "other than none, with a task whose targets have places (Segmentation)",
        "moves the pixels of images, but not of the masks of {task}",
        lambda chosen: chosen.local.augmentation != "none" and chosen.task.is_spatial,
    ),
    Rule(
        "attack",
        "one that changes labels (LabelFlip, Backdoor), with a task whose samples have no classes",
        "changes classes, which {task} does not have",
        lambda chosen: _changes_labels(chosen) and not chosen.task.has_classes,
    ),
)
SHARED: Sequence[Rule[Choices]] = (
    Rule(
        "validation",
        "a share, with a partition whose clients share samples (Repeated)",
        "some clients would be trained on the validation samples of others, because {partition} repeats samples",
        lambda chosen: chosen.partition.shares_samples and chosen.validation is not None,
    ),
    Rule(
        "held_out",
        "above 0, with such a partition",
        "held-out clients would have samples of others, because {partition} repeats samples",
        lambda chosen: chosen.partition.shares_samples and chosen.held_out > 0,
    ),
    Rule(
        "attack",
        "one that changes labels (LabelFlip, Backdoor), with such a partition",
        "honest clients would be trained on the labels of malicious ones, because {partition} repeats samples",
        lambda chosen: chosen.partition.shares_samples and _changes_labels(chosen),
    ),
    Rule(
        "partition",
        "one that changes labels (SwappedLabels) over such a partition",
        "changes the label of a sample for some clients, which others may have as well",
        lambda chosen: chosen.partition.shares_samples and chosen.partition.relabels,
    ),
    Rule(
        "partition",
        "one whose clients share samples (Repeated)",
        "repeats samples, and {algorithm} trains one model on the samples of all clients",
        lambda chosen: chosen.partition.shares_samples,
        _pools_clients,
    ),
)
METHODS: Sequence[Rule[Choices]] = (
    Rule(
        "sampler",
        "one that chooses by the model's losses (PowerOfChoice)",
        "{algorithm} also trains a network for which this sampler has no losses",
        lambda chosen: type(chosen.sampler).choose is not Sampler.choose,
        lambda algorithm: algorithm.has_stages,
    ),
    Rule(
        "sampler",
        "one that chooses by the model's losses (PowerOfChoice)",
        "{algorithm} has no global model by whose losses this sampler could choose",
        lambda chosen: type(chosen.sampler).choose is not Sampler.choose,
        lambda algorithm: not algorithm.has_global_model,
    ),
    Rule(
        "server_optimizer",
        "other than Replace",
        "must be Replace with {algorithm}, which has its own server update",
        lambda chosen: not acts_as(chosen.server_optimizer, Replace),
        lambda algorithm: not algorithm.takes_server_optimizer,
    ),
    Rule(
        "compression",
        "other than Dense",
        "cannot be combined with {algorithm}",
        _is_compressed,
        lambda algorithm: not algorithm.takes_compression,
    ),
    Rule(
        "attack",
        "other than NoAttack",
        "{algorithm} has no separate clients",
        _is_attacked,
        _pools_clients,
    ),
    Rule(
        "attack",
        "other than NoAttack",
        "{algorithm}'s server uses the models of single clients",
        _is_attacked,
        _looks_at_models,
    ),
    Rule(
        "compression",
        "other than Dense",
        "{algorithm}'s server uses the models of single clients",
        _is_compressed,
        _looks_at_models,
    ),
    Rule(
        "weighting",
        "other than uniform",
        "must be uniform with {algorithm}, which gives all clients the same weight",
        lambda chosen: chosen.weighting not in ("uniform", chosen.algorithm.weighting),
        lambda algorithm: algorithm.counts_clients_alike,
    ),
    Rule(
        "sampler",
        "one that sets the clients' weights itself (Weighted)",
        "sets the clients' weights itself, which cannot be combined with {algorithm}",
        lambda chosen: bool(chosen.sampler.weighting),
        lambda algorithm: algorithm.counts_clients_once,
    ),
    Rule(
        "weighting",
        "horvitz_thompson",
        "{algorithm}'s server keeps its own mean over all clients",
        _is_by_chance,
        lambda algorithm: algorithm.counts_clients_once,
    ),
    Rule(
        "conditions",
        "other than Ideal",
        "{algorithm} has no separate clients",
        _is_held_up,
        _pools_clients,
    ),
    Rule(
        "weighting",
        "horvitz_thompson",
        "{algorithm} does not form one mean of all its clients' models",
        _is_by_chance,
        _has_no_mean,
    ),
    Rule(
        "evaluate_means",
        "other than none",
        "{algorithm} does not average its clients' models",
        lambda chosen: chosen.evaluate_means != "none",
        lambda algorithm: not algorithm.averages_models,
    ),
    Rule(
        "evaluate_fine_tuned",
        "a number",
        "{algorithm} has no global model that clients could fine-tune",
        lambda chosen: chosen.evaluate_fine_tuned is not None,
        lambda algorithm: not algorithm.has_global_model,
    ),
    Rule(
        "algorithm",
        "if each client sees pixels or labels differently (Permuted, Rotated, SwappedLabels)",
        "cannot pool the samples if each client sees them differently, as with {partition}",
        lambda chosen: chosen.partition.permutes_pixels or chosen.partition.relabels,
        _pools_clients,
    ),
    Rule(
        "init",
        "a file",
        "must be null with {algorithm}, whose initial models must differ",
        lambda chosen: chosen.init is not None,
        _is_a(IFCA),
    ),
    Rule(
        "weighting",
        "horvitz_thompson",
        "{algorithm} needs weights that sum to 1",
        _is_by_chance,
        _is_a(FedExP),
    ),
    Rule(
        "weighting",
        "other than samples",
        "must be samples with {algorithm}, which computes other weights from these",
        lambda chosen: chosen.weighting != "samples",
        _is_a(FedDisco),
    ),
    Rule(
        "sampler",
        "one that sets the clients' weights itself (Weighted)",
        "sets the clients' weights itself, which cannot be combined with {algorithm}",
        lambda chosen: bool(chosen.sampler.weighting),
        _is_a(FedDisco),
    ),
    Rule(
        "attack",
        "other than NoAttack",
        "attacks what clients train on or send in rounds, but not the statistics of features that {algorithm} uses",
        _is_attacked,
        _is_a(CCVR),
    ),
    Rule(
        "local.clip_norm",
        "a number",
        "must be null with {algorithm}, which trains parts of the model by losses of their own",
        lambda chosen: chosen.local.clip_norm is not None,
        lambda algorithm: not algorithm.takes_clip_norm,
    ),
    Rule(
        "local.schedule_by",
        "step, with a schedule or warm-up",
        "must be round with {algorithm}, which computes with the learning rate of the round",
        lambda chosen: chosen.local.varies_within_rounds,
        lambda algorithm: not all(part.takes_rate_per_step for part in algorithm.parts),
    ),
    Rule(
        "local.accumulate",
        "above 1",
        "must be 1 with {algorithm}, whose loss depends on the whole batch of a step",
        lambda chosen: chosen.local.accumulate > 1,
        lambda algorithm: not all(part.takes_accumulation for part in algorithm.parts),
    ),
    Rule(
        "sampler",
        "other than All",
        "must be All with {algorithm}, which needs every client in every round",
        lambda chosen: not acts_as(chosen.sampler, All),
        _needs_all_clients,
    ),
    Rule(
        "availability",
        "other than Always",
        "must be Always with {algorithm}, which needs every client in every round",
        lambda chosen: not acts_as(chosen.availability, Always),
        _needs_all_clients,
    ),
    Rule(
        "conditions",
        "some under which updates are not used (dropout, deadline, over_select, stragglers)",
        "may lose updates, and {algorithm} needs every client in every round",
        lambda chosen: chosen.conditions.arrival(chosen.clients, chosen.algorithm.accepts_partial_work) != 1,
        _needs_all_clients,
    ),
)
#: Known only after the data are loaded and the network is built.
DATA: Sequence[Rule[Loaded]] = (
    Rule(
        "model",
        "one without an embedding, for text",
        "has no embedding, so it cannot take the text of {dataset}",
        lambda loaded: loaded.is_text and not loaded.has_embedding,
    ),
    Rule(
        "partition",
        "one that permutes pixels, for text",
        "permutes pixels, and {dataset} is text",
        lambda loaded: loaded.is_text and loaded.chosen.partition.permutes_pixels,
    ),
    Rule(
        "partition",
        "one that turns images, for samples that are no square images",
        "turns square images, and {dataset} has none",
        lambda loaded: (
            loaded.chosen.partition.turns_images and (len(loaded.shape) != 3 or loaded.shape[1] != loaded.shape[2])
        ),
    ),
    Rule(
        "local.precision",
        "bf16, for a recurrent network on an older processor",
        "must be float32: PyTorch has no bfloat16 code for recurrent layers on processors without AVX-512",
        lambda loaded: loaded.chosen.local.precision == "bf16" and loaded.lacks_bf16,
    ),
    Rule(
        "local.augmentation",
        "other than none, for samples that are no images",
        "must be none, for {dataset} has no images",
        lambda loaded: loaded.chosen.local.augmentation != "none" and len(loaded.shape) != 3,
    ),
    Rule(
        "attack",
        "one with a trigger (Backdoor), for samples that are no images",
        "puts its trigger on images of pixels from 0 to 255, which {dataset} does not have",
        lambda loaded: loaded.chosen.attack.trigger is not None and not loaded.has_images,
    ),
    Rule(
        "attack.size",
        "a larger square than the images",
        "must be at most {side}, the shorter side of the images",
        lambda loaded: (
            loaded.chosen.attack.trigger is not None and loaded.chosen.attack.trigger.size > min(loaded.shape[1:])
        ),
    ),
    Rule(
        "attack.target",
        "no class",
        "must be below {outputs}, the number of classes",
        lambda loaded: (
            loaded.chosen.attack.trigger is not None and loaded.chosen.attack.trigger.target >= loaded.outputs
        ),
    ),
    Rule(
        "algorithm.proxy",
        "a data set whose samples are of another kind",
        "has samples of {proxy_samples}, but those of {dataset} are of {samples}",
        lambda loaded: loaded.proxy_samples not in (None, loaded.samples),
    ),
    Rule(
        "model",
        "one with running statistics, with any privacy",
        "has running statistics, which privacy does not cover: --model.norm group",
        lambda loaded: loaded.has_statistics and _is_private(loaded.chosen),
    ),
    Rule(
        "local.batch_size",
        "1, for a network with batch normalisation",
        "must be at least 2 for a model with batch normalisation",
        lambda loaded: loaded.normalises_batches and loaded.chosen.local.batch_size == 1,
    ),
    Rule(
        "local.accumulate",
        "above 1, for a network with batch normalisation or running statistics",
        "must be 1 for a model with statistics of batches, which would be those of a part: --model.norm group",
        lambda loaded: (loaded.normalises_batches or loaded.has_statistics) and loaded.chosen.local.accumulate > 1,
    ),
)
#: In the order in which they are checked.
SECTIONS: dict[str, Sequence[Rule[Any]]] = {
    "Held-out clients": HELD_OUT,
    "Evaluations": EVALUATIONS,
    "Stopping early": STOPPING,
    "Horvitz-Thompson weights": CHANCES,
    "Privacy": PRIVATE,
    "Virtual clock": CLOCK,
    "Tasks": TASKS,
    "Clients that share samples": SHARED,
    "Methods": METHODS,
    "Data and networks": DATA,
}
ABOUT = (
    "These combinations are refused. Some methods also refuse a local optimizer, momentum, schedule or clipping"
    " that their formulas do not cover; their pages say so. All other combinations work. `python -m"
    " fedmpi.experiment compatibility` prints this page. A combination is refused before anything is trained, in one"
    " line that names the option and the reason. If several rules apply, the first one on this page is named."
    " Methods are listed with their default options. A method that extends another one (`--algorithm.base`) may"
    " accept more or less with another base."
)
#: The components that a reason may name.
NAMED = ("algorithm", "dataset", "task", "partition", "sampler", "privacy", "conditions")
#: How the page calls what a message names.
IN_GENERAL = {
    "algorithm": "the method",
    "dataset": "the data set",
    "task": "the task",
    "partition": "the partition",
    "sampler": "such a sampler",
    "privacy": "privacy",
    "conditions": "such conditions",
    "fewest": "few",
    "samples": "another",
    "proxy_samples": "one kind",
    "outputs": "C",
    "side": "min(H, W)",
}


def check(rules: Sequence[Rule[Choices]], chosen: Choices) -> None:
    """Raise BadInput for the first rule that the settings break."""
    _refuse(rules, chosen, chosen, {}, "")


def check_loaded(loaded: Loaded) -> None:
    """Raise BadInput for the first rule that data and network break."""
    words = {"samples": loaded.samples, "proxy_samples": loaded.proxy_samples or "", "outputs": str(loaded.outputs)}
    words["side"] = str(min(loaded.shape[1:], default=""))
    _refuse(DATA, loaded, loaded.chosen, words, "--")


def _refuse(rules: Sequence[Rule[Facts]], facts: Facts, chosen: Choices, words: dict[str, str], prefix: str) -> None:
    for rule in rules:
        if (rule.methods is None or rule.methods(chosen.algorithm)) and rule.is_broken(facts):
            value = attrgetter(rule.option)(chosen)
            given = named(value) if isinstance(type(value), Configured) else shown(value)
            names = {name: type(getattr(chosen, name)).__name__ for name in NAMED}
            why = rule.why.format_map({**names, "fewest": _fewest(chosen), **words})
            raise BadInput(f"= {given}: {why}", f"{prefix}{rule.option}")


def page(methods: Sequence[Algorithm]) -> Iterator[str]:
    """The lines of docs/compatibility.md.

    Args:
        methods: the methods that may be listed, with default options.
    """
    yield "# What goes with what"
    yield ""
    yield from textwrap.wrap(ABOUT, 116)
    for section, rules in SECTIONS.items():
        yield ""
        yield f"## {section}"
        yield ""
        yield "| option | refused | with | reason |"
        yield "| --- | --- | --- | --- |"
        for rule in rules:
            known = [type(one).__name__ for one in methods if rule.methods and rule.methods(one)]
            names = ", ".join(known) if rule.methods else "all methods"
            why = rule.why.format_map(IN_GENERAL)
            yield f"| `--{rule.option}` | {rule.values} | {names} | {why} |"
