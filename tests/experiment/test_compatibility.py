"""What goes with what: the page is the table, each rule is broken by something, and the first broken one is named."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

from fedmpi import Experiment
from fedmpi.algorithms import (
    CCVR,
    IFCA,
    SCAFFOLD,
    Centralized,
    FedAvg,
    FedBN,
    FedDBE,
    FedDF,
    FedDisco,
    FedDyn,
    FedExP,
    FedFTG,
    FedPer,
    FedRoD,
    FeSEM,
    GenFL,
    LocalOnly,
    Median,
    Scaffnew,
)
from fedmpi.data import Digits, Permuted, Repeated, Rotated, SwappedLabels
from fedmpi.errors import BadInput
from fedmpi.experiment import compatibility
from fedmpi.experiment.compatibility import (
    CHANCES,
    CLOCK,
    DATA,
    EVALUATIONS,
    HELD_OUT,
    METHODS,
    PRIVATE,
    SECTIONS,
    SHARED,
    STOPPING,
    TASKS,
    Loaded,
    Rule,
)
from fedmpi.experiment.stopping import Stopping
from fedmpi.policies import All, Always, Bernoulli, Heterogeneous, Independent, PowerOfChoice, Weighted
from fedmpi.policies.attacks import Backdoor, LabelFlip, SignFlip
from fedmpi.policies.compression import TopK
from fedmpi.policies.privacy import CentralDP
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.tasks import LanguageModel, MultiLabel, Regression, Segmentation
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import Reader
from tests.support.mpi import REPOSITORY


class ByTheClock(Always):
    """Takes the time instead of the round."""

    by_clock = True


class Leaving(ByTheClock):
    """Clients that go away lose their jobs."""

    interrupts = True


HT: dict[str, Any] = {"weighting": "horvitz_thompson"}
DP: dict[str, Any] = {"privacy": CentralDP(), "weighting": "uniform", "sampler": Bernoulli()}
#: For each rule in the order of the table: settings that break it, and no rule before, and what is said.
REFUSED: list[tuple[Rule[Any], dict[str, Any], str]] = [
    (
        HELD_OUT[0],
        {"algorithm": FedBN(), "held_out": 3},
        "held_out = 3: must be 0 with FedBN, because its local training may need more than the global model",
    ),
    *(
        (
            EVALUATIONS[number],
            {option: value, "evaluate_every": 0},
            f"{option} = {given}: must be {without} with --evaluate_every 0, because there are no evaluations",
        )
        for number, (option, value, given, without) in enumerate(
            [
                ("metrics", "auroc", "auroc", "null"),
                ("evaluate_means", "cohort", "cohort", "none"),
                ("evaluate_local", True, "true", "false"),
                ("evaluate_fine_tuned", 2, "2", "null"),
                ("validation", 0.2, "0.2", "null"),
            ]
        )
    ),
    (
        STOPPING[0],
        {"stop": Stopping(patience=2, metric="test_loss"), "evaluate_every": 0},
        "stop.patience = 2: must be null with --evaluate_every 0, because there are no evaluations",
    ),
    (
        STOPPING[1],
        {"stop": Stopping(target=0.5, metric="test_loss"), "evaluate_every": 0},
        "stop.target = 0.5: must be null with --evaluate_every 0, because there are no evaluations",
    ),
    (
        STOPPING[2],
        {"stop": Stopping(patience=2)},
        "stop.metric = null: must be a column of /rounds, because there is no validation set; with a column of the"
        " test set, such as test_accuracy, the test set chooses the model that it measures",
    ),
    (
        STOPPING[3],
        {"stop": Stopping(patience=3, metric="cluster_size_0")},
        "stop.metric = cluster_size_0: must be a column of /rounds of which it is known which values are better, such"
        " as test_accuracy",
    ),
    (
        STOPPING[4],
        {"stop": Stopping(virtual_seconds=5)},
        "stop.virtual_seconds = 5.0: must be null without a virtual clock, as that of --conditions Heterogeneous",
    ),
    (
        CHANCES[0],
        HT | {"sampler": PowerOfChoice()},
        "weighting = horvitz_thompson: cannot be combined with PowerOfChoice, because the probability that a client"
        " is drawn is not known",
    ),
    (
        CHANCES[1],
        HT | {"conditions": Heterogeneous(deadline=3)},
        "weighting = horvitz_thompson: cannot be combined with Heterogeneous if the probability that an update is"
        " used depends on speed",
    ),
    (
        CHANCES[2],
        HT | {"conditions": Heterogeneous(stragglers=1)},
        "weighting = horvitz_thompson: cannot be combined with Heterogeneous if a round of 10 clients may use no"
        " update",
    ),
    (
        PRIVATE[0],
        DP | {"algorithm": FedDyn()},
        "algorithm = FedDyn: must be a method whose server sees only one mean of models, with CentralDP",
    ),
    (
        PRIVATE[1],
        DP | {"weighting": "samples"},
        "weighting = samples: must be uniform with CentralDP (add --weighting uniform)",
    ),
    (PRIVATE[2], DP | {"compression": TopK()}, "compression = TopK: must be Dense with CentralDP"),
    (PRIVATE[3], DP | {"availability": Independent()}, "availability = Independent: must be Always with CentralDP"),
    (PRIVATE[4], DP | {"conditions": Heterogeneous()}, "conditions = Heterogeneous: must be Ideal with CentralDP"),
    (
        CLOCK[0],
        {"availability": ByTheClock()},
        f"availability = {__name__}.ByTheClock: needs a virtual clock, as that of --conditions Heterogeneous",
    ),
    (
        CLOCK[1],
        {"availability": Leaving(), "conditions": Heterogeneous()},
        "availability.interrupts = true: must be false with a synchronous method",
    ),
    (
        CLOCK[2],
        {"evaluate_seconds": 3.0},
        "evaluate_seconds = 3.0: must be null without a virtual clock, as that of --conditions Heterogeneous",
    ),
    (
        TASKS[0],
        {"algorithm": FedFTG(), "task": Regression()},
        "algorithm = FedFTG: needs samples with classes, which Regression does not have",
    ),
    (
        TASKS[1],
        {"task": LanguageModel()},
        "partition = Dirichlet: looks at labels, which LanguageModel does not have: use Users, IID or LogNormal",
    ),
    (
        TASKS[2],
        {"partition": SwappedLabels(), "task": MultiLabel()},
        "partition = SwappedLabels: swaps classes, which MultiLabel does not have",
    ),
    (
        TASKS[3],
        {"partition": Permuted(), "task": Segmentation()},
        "partition = Permuted: moves the pixels of images, but not of the masks of Segmentation",
    ),
    (
        TASKS[4],
        {"local": LocalTraining(augmentation="flip"), "task": Segmentation()},
        "local.augmentation = flip: moves the pixels of images, but not of the masks of Segmentation",
    ),
    (
        TASKS[5],
        {"attack": LabelFlip(), "task": Regression()},
        "attack = LabelFlip: changes classes, which Regression does not have",
    ),
    (
        SHARED[0],
        {"partition": Repeated(), "validation": 0.1},
        "validation = 0.1: some clients would be trained on the validation samples of others, because Repeated"
        " repeats samples",
    ),
    (
        SHARED[1],
        {"partition": Repeated(), "held_out": 2},
        "held_out = 2: held-out clients would have samples of others, because Repeated repeats samples",
    ),
    (
        SHARED[2],
        {"partition": Repeated(), "attack": LabelFlip()},
        "attack = LabelFlip: honest clients would be trained on the labels of malicious ones, because Repeated"
        " repeats samples",
    ),
    (
        SHARED[3],
        {"partition": SwappedLabels(Repeated())},
        "partition = SwappedLabels: changes the label of a sample for some clients, which others may have as well",
    ),
    (
        SHARED[4],
        {"partition": Repeated(), "algorithm": Centralized()},
        "partition = Repeated: repeats samples, and Centralized trains one model on the samples of all clients",
    ),
    (
        METHODS[0],
        {"algorithm": GenFL(), "sampler": PowerOfChoice()},
        "sampler = PowerOfChoice: GenFL also trains a network for which this sampler has no losses",
    ),
    (
        METHODS[1],
        {"algorithm": FedPer(), "sampler": PowerOfChoice()},
        "sampler = PowerOfChoice: FedPer has no global model by whose losses this sampler could choose",
    ),
    (
        METHODS[2],
        {"algorithm": FedDyn(), "server_optimizer": Momentum()},
        "server_optimizer = Momentum: must be Replace with FedDyn, which has its own server update",
    ),
    (METHODS[3], {"algorithm": FeSEM(), "compression": TopK()}, "compression = TopK: cannot be combined with FeSEM"),
    (
        METHODS[4],
        {"algorithm": Centralized(), "attack": SignFlip()},
        "attack = SignFlip: Centralized has no separate clients",
    ),
    (
        METHODS[5],
        {"algorithm": FedDF(), "attack": SignFlip()},
        "attack = SignFlip: FedDF's server uses the models of single clients",
    ),
    (
        METHODS[6],
        {"algorithm": FedDF(), "compression": TopK()},
        "compression = TopK: FedDF's server uses the models of single clients",
    ),
    (
        METHODS[7],
        {"algorithm": Median(), "weighting": "samples"},
        "weighting = samples: must be uniform with Median, which gives all clients the same weight",
    ),
    (
        METHODS[8],
        {"algorithm": FedDyn(), "sampler": Weighted()},
        "sampler = Weighted: sets the clients' weights itself, which cannot be combined with FedDyn",
    ),
    (
        METHODS[9],
        HT | {"algorithm": FedDyn()},
        "weighting = horvitz_thompson: FedDyn's server keeps its own mean over all clients",
    ),
    (
        METHODS[10],
        {"algorithm": Centralized(), "conditions": Heterogeneous()},
        "conditions = Heterogeneous: Centralized has no separate clients",
    ),
    (
        METHODS[11],
        HT | {"algorithm": FeSEM()},
        "weighting = horvitz_thompson: FeSEM does not form one mean of all its clients' models",
    ),
    (
        METHODS[12],
        {"algorithm": FedPer(), "evaluate_means": "cohort"},
        "evaluate_means = cohort: FedPer does not average its clients' models",
    ),
    (
        METHODS[13],
        {"algorithm": LocalOnly(), "evaluate_fine_tuned": 1},
        "evaluate_fine_tuned = 1: LocalOnly has no global model that clients could fine-tune",
    ),
    (
        METHODS[14],
        {"algorithm": Centralized(), "partition": Permuted()},
        "algorithm = Centralized: cannot pool the samples if each client sees them differently, as with Permuted",
    ),
    (
        METHODS[15],
        {"algorithm": IFCA(), "init": "runs/first.h5"},
        "init = runs/first.h5: must be null with IFCA, whose initial models must differ",
    ),
    (
        METHODS[16],
        HT | {"algorithm": FedExP()},
        "weighting = horvitz_thompson: FedExP needs weights that sum to 1",
    ),
    (
        METHODS[17],
        {"algorithm": FedDisco(), "weighting": "uniform"},
        "weighting = uniform: must be samples with FedDisco, which computes other weights from these",
    ),
    (
        METHODS[18],
        {"algorithm": FedDisco(), "sampler": Weighted()},
        "sampler = Weighted: sets the clients' weights itself, which cannot be combined with FedDisco",
    ),
    (
        METHODS[19],
        {"algorithm": CCVR(), "attack": SignFlip()},
        "attack = SignFlip: attacks what clients train on or send in rounds, but not the statistics of features that"
        " CCVR uses",
    ),
    (
        METHODS[20],
        {"algorithm": FedRoD(), "local": LocalTraining(clip_norm=1.0)},
        "local.clip_norm = 1.0: must be null with FedRoD, which trains parts of the model by losses of their own",
    ),
    (
        METHODS[21],
        {"algorithm": SCAFFOLD(), "local": LocalTraining(schedule="cosine", schedule_by="step")},
        "local.schedule_by = step: must be round with SCAFFOLD, which computes with the learning rate of the round",
    ),
    (
        METHODS[22],
        {"algorithm": FedDBE(), "local": LocalTraining(accumulate=2)},
        "local.accumulate = 2: must be 1 with FedDBE, whose loss depends on the whole batch of a step",
    ),
    (
        METHODS[23],
        {"algorithm": Scaffnew()},
        "sampler = Uniform: must be All with Scaffnew, which needs every client in every round",
    ),
    (
        METHODS[24],
        {"algorithm": Scaffnew(), "sampler": All(), "availability": Independent()},
        "availability = Independent: must be Always with Scaffnew, which needs every client in every round",
    ),
    (
        METHODS[25],
        {"algorithm": Scaffnew(), "sampler": All(), "conditions": Heterogeneous(dropout=0.1)},
        "conditions = Heterogeneous: may lose updates, and Scaffnew needs every client in every round",
    ),
]


@pytest.mark.parametrize(("rule", "settings", "said"), REFUSED, ids=[said.split(":")[0] for _, _, said in REFUSED])
def test_what_is_refused(rule: Rule[Any], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        Experiment(**settings)
    assert str(caught.value) == said
    assert said.startswith(rule.option)


class Words(Digits):
    """Only its kind of samples counts here."""

    vocabulary = 30


#: Settings and what is known of data and network, for each rule in its order.
LOADED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"dataset": Words()},
        {"shape": (9,)},
        "--model = LeNet: has no embedding, so it cannot take the text of Words",
    ),
    (
        {"dataset": Words(), "partition": Permuted(), "model": Reader()},
        {"shape": (9,), "has_embedding": True},
        "--partition = Permuted: permutes pixels, and Words is text",
    ),
    (
        {"partition": Rotated()},
        {"shape": (1, 8, 9)},
        "--partition = Rotated: turns square images, and Digits has none",
    ),
    (
        {"local": LocalTraining(precision="bf16")},
        {"lacks_bf16": True},
        "--local.precision = bf16: must be float32: PyTorch has no bfloat16 code for recurrent layers on processors"
        " without AVX-512",
    ),
    (
        {"local": LocalTraining(augmentation="crop_flip")},
        {"shape": (64,)},
        "--local.augmentation = crop_flip: must be none, for Digits has no images",
    ),
    (
        {"attack": Backdoor()},
        {"has_images": False},
        "--attack = Backdoor: puts its trigger on images of pixels from 0 to 255, which Digits does not have",
    ),
    (
        {"attack": Backdoor(size=9)},
        {},
        "--attack.size = 9: must be at most 8, the shorter side of the images",
    ),
    (
        {"attack": Backdoor(target=10)},
        {},
        "--attack.target = 10: must be below 10, the number of classes",
    ),
    (
        {"algorithm": FedDF(proxy=Digits())},
        {"proxy_samples": "float32 (3,)"},
        "--algorithm.proxy = Digits: has samples of float32 (3,), but those of Digits are of uint8 (1, 8, 8)",
    ),
    (
        DP,
        {"has_statistics": True},
        "--model = LeNet: has running statistics, which privacy does not cover: --model.norm group",
    ),
    (
        {"local": LocalTraining(batch_size=1)},
        {"normalises_batches": True},
        "--local.batch_size = 1: must be at least 2 for a model with batch normalisation",
    ),
    (
        {"local": LocalTraining(accumulate=2)},
        {"has_statistics": True},
        "--local.accumulate = 2: must be 1 for a model with statistics of batches, which would be those of a part:"
        " --model.norm group",
    ),
]


@pytest.mark.parametrize(("settings", "known", "said"), LOADED, ids=[said.split(":")[0] for _, _, said in LOADED])
def test_what_is_refused_when_the_data_are_there(settings: dict[str, Any], known: dict[str, Any], said: str) -> None:
    plain: dict[str, Any] = {
        "shape": (1, 8, 8),
        "has_images": True,
        "outputs": 10,
        "samples": "uint8 (1, 8, 8)",
        "proxy_samples": None,
        "has_embedding": False,
        "has_statistics": False,
        "normalises_batches": False,
        "lacks_bf16": False,
    }
    experiment = Experiment(**settings)
    with pytest.raises(BadInput) as caught:
        compatibility.check_loaded(Loaded(experiment, **plain | known))
    assert str(caught.value) == said
    compatibility.check_loaded(Loaded(Experiment(FedAvg()), **plain))


def test_every_rule_is_here() -> None:
    sections = HELD_OUT, EVALUATIONS, STOPPING, CHANCES, PRIVATE, CLOCK, TASKS, SHARED, METHODS
    rules = [rule for section in sections for rule in section]
    assert [rule for rule, _, _ in REFUSED] == rules
    assert len(LOADED) == len(DATA)
    assert len(rules) + len(DATA) == sum(map(len, SECTIONS.values()))


def test_the_page_is_the_table() -> None:
    printed = subprocess.check_output(
        [sys.executable, "-m", "fedmpi.experiment", "compatibility"], text=True, cwd=REPOSITORY
    )
    page = (REPOSITORY / "docs" / "compatibility.md").read_text()
    assert page == printed, "python -m fedmpi.experiment compatibility > docs/compatibility.md"
    options = set(inspect.signature(Experiment).parameters)
    assert {rule.option.split(".")[0] for rules in SECTIONS.values() for rule in rules} <= options
