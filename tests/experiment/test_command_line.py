"""The command line: what it understands, and that bad input is one line, exit status 2 and nothing else."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.components import subclasses
from fedmpi.data import Dataset, Dirichlet, Permuted
from fedmpi.errors import BadInput
from fedmpi.experiment.catalogue import COMPONENTS
from fedmpi.experiment.command_line import HelpPrinted, parse
from fedmpi.experiment.experiment import Experiment
from fedmpi.models import Model
from fedmpi.models.generators import Generator
from fedmpi.training.settings import LocalTraining
from tests.support.mpi import REPOSITORY, fedmpi, mpirun, succeed

PROGRAMS = REPOSITORY / "tests" / "jobs"

USER_CLASSES = """
import os
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg

class Mine(FedAvg):
    def __init__(self, strength: float = 1.0) -> None:
        if strength < 0:
            raise ValueError("strength is negative;\\nit should not be")
        self.strength = strength

class Needy(FedAvg):
    def __init__(self, budget: int) -> None:
        self.budget = budget

class OneRank(FedAvg):
    def __init__(self) -> None:
        if os.environ.get("PMI_RANK") == "2":
            raise ValueError("the licence is missing on this node")

class Leaving(FedAvg):
    def __init__(self) -> None:
        raise SystemExit("no GPU, no algorithm")

class Unrelated:
    pass
"""


def experiment(line: str) -> Experiment:
    return parse(line.split())[0]


def public(base: type) -> list[type]:
    """What fedmpi itself offers by name."""
    own = [cls for cls in subclasses(base) if cls.__module__.startswith("fedmpi.")]
    return [cls for cls in own if not (inspect.isabstract(cls) or cls.__name__.startswith("_"))]


def problem(*arguments: str) -> str:
    """The line that the arguments are refused with."""
    with pytest.raises(BadInput) as caught:
        parse(list(arguments))
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write_file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes modules that can be imported, as those beside which a user starts a job."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write_module(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write_module


# What is understood


def test_defaults() -> None:
    made = experiment("")
    assert {name: type(getattr(made, name)).__name__ for name in COMPONENTS} == {
        "algorithm": "FedAvg",
        "dataset": "Digits",
        "task": "Classification",
        "partition": "Dirichlet",
        "model": "LeNet",
        "sampler": "Uniform",
        "server_optimizer": "Replace",
        "privacy": "NoPrivacy",
        "compression": "Dense",
        "attack": "NoAttack",
        "availability": "Always",
        "conditions": "Ideal",
    }
    assert (made.clients, made.cohort, made.rounds, made.seed) == (100, 10, 50, 0)
    assert made.local == LocalTraining()
    assert not made.overwrite


def test_cohort_defaults_to_all_of_few_clients() -> None:
    assert experiment("--clients 7").cohort == 7
    assert experiment("--clients 7 --cohort null").cohort == 7


def test_names_and_options() -> None:
    made = experiment(
        "--algorithm FedProx --algorithm.mu 0.3 --partition Dirichlet --partition.alpha 0.1 --model MLP"
        " --model.hidden [64,32] --sampler All --dataset MNIST --dataset.root somewhere --clients 8"
        " --local.lr 1e-3 --local.steps 4 --local.optimizer adam --weighting uniform --output a/b.h5 --overwrite"
    )
    assert type(made.algorithm).__name__ == "FedProx"
    assert made.algorithm.mu == 0.3  # type: ignore[attr-defined]
    assert made.partition.alpha == 0.1  # type: ignore[attr-defined]
    assert made.model.hidden == (64, 32)  # type: ignore[attr-defined]
    assert type(made.sampler).__name__ == "All"
    assert made.dataset.root == Path("somewhere")  # type: ignore[attr-defined]
    assert made.local == LocalTraining(lr=1e-3, steps=4, optimizer="adam")
    assert made.output == Path("a/b.h5")
    assert made.overwrite


def test_partitions_nest() -> None:
    made = experiment("--partition Permuted --partition.over Dirichlet --partition.over.alpha 0.1")
    assert isinstance(made.partition, Permuted)
    assert isinstance(made.partition.over, Dirichlet)
    assert made.partition.over.alpha == 0.1


def test_options_of_the_default_class_need_no_name() -> None:
    assert experiment("--partition.alpha 0.2").partition.alpha == 0.2  # type: ignore[attr-defined]


def test_later_options_win() -> None:
    made = experiment("--clients 5 --clients 6 --algorithm IFCA --algorithm FedProx --algorithm.mu 2")
    assert made.clients == 6
    assert type(made.algorithm).__name__ == "FedProx"


def test_a_class_named_anew_starts_from_its_own_defaults() -> None:
    assert experiment("--model MLP").model.norm == "none"  # type: ignore[attr-defined]  # LeNet's is batch
    # Dirichlet has min_samples as well
    made = experiment("--partition Dirichlet --partition.min_samples 7 --partition LogNormal")
    assert made.partition.min_samples == 2  # type: ignore[attr-defined]


def test_yaml_with_short_forms(write: Callable[[str, str], str]) -> None:
    path = write("short.yaml", "algorithm: FedProx\npartition: Shards\nclients: 12\nlocal: {lr: 1e-3}\n")
    made = experiment(f"--config {path}")
    assert type(made.algorithm).__name__ == "FedProx"
    assert type(made.partition).__name__ == "Shards"
    assert (made.clients, made.local.lr) == (12, 1e-3)


def test_yaml_with_options_of_classes(write: Callable[[str, str], str]) -> None:
    path = write(
        "nested.yaml",
        "partition:\n  class_path: Permuted\n  init_args:\n    permutations: 2\n    over:\n"
        "      class_path: Dirichlet\n      init_args: {alpha: 0.3}\n",
    )
    partition = experiment(f"--config {path}").partition
    assert isinstance(partition, Permuted)
    assert isinstance(partition.over, Dirichlet)
    assert (partition.permutations, partition.over.alpha) == (2, 0.3)


NESTED = {
    "algorithm: {class_path: FedProx, init_args: {mu: 0.3}}": ["algorithm: FedProx", "algorithm.mu: 0.3"],
    "partition: {class_path: Dirichlet, init_args: {alpha: 3}}": ["partition: Dirichlet", "partition.alpha: 3"],
    "local: {epochs: 2, lr: 0.3, vectorize: off}": ["local: {epochs: 2}", "local.lr: 0.3", "local.vectorize: off"],
    "partition: {class_path: Permuted, init_args: {over: {class_path: Shards, init_args: {total: 9}}}}": [
        "partition: Permuted",
        "partition.over: Shards",
        "partition.over.total: 9",
    ],
    "algorithm: {class_path: FedFTG, init_args: {base: {class_path: FedProx, init_args: {mu: 2}}, decay: 0.5}}": [
        "algorithm: {class_path: FedFTG, init_args: {base.mu: 2, base: FedProx}}",
        "algorithm.decay: 0.5",
    ],
    "model: {class_path: HuggingFace, init_args: {path: x, lora: {rank: 4, alpha: 2}}}": [
        "model: HuggingFace",
        "model.path: x",
        "model.lora: {rank: 4}",
        "model.lora.alpha: 2",
    ],
    "seed: 4\nclients: 9": ["config: FOLDER/other.yaml", "seed: 4"],
}


@pytest.mark.parametrize("whole", NESTED)
def test_the_order_of_a_files_keys_does_not_matter(whole: str, write: Callable[[str, str], str]) -> None:
    """Dotted names are options of what the file names elsewhere. Oracle: the nested form."""
    folder = Path(write("other.yaml", "seed: 33\nclients: 9\n")).parent
    expected = without_output(parse(["--config", write("nested.yaml", whole)])[1])
    for lines in (NESTED[whole], NESTED[whole][::-1]):
        path = write("dotted.yaml", "\n".join(lines).replace("FOLDER", str(folder)))
        made = without_output(parse(["--config", path])[1])
        assert made == expected, lines


def test_texts_in_a_file_stay_texts(write: Callable[[str, str], str]) -> None:
    assert experiment("--config " + write("a.yaml", "output: '1e3'")).output == Path("1e3")
    assert experiment("--config " + write("a.yaml", "output: off")).output == Path("off")


def test_file_and_options_in_the_order_they_are_given(write: Callable[[str, str], str]) -> None:
    first = write("first.yaml", "clients: 11\nrounds: 3\n")
    second = write("second.yaml", "clients: 22\n")
    assert experiment(f"--config {first} --clients 33").clients == 33
    assert experiment(f"--clients 33 --config {first}").clients == 11
    both = experiment(f"--config={first} --config={second}")
    assert (both.clients, both.rounds) == (22, 3)


LINES = [
    "",
    "--algorithm FedProx --algorithm.mu 0.25 --local.lr 1e-05 --local.steps 7 --cohort 3 --seed 5",
    "--partition Permuted --partition.over Dirichlet --partition.over.alpha 0.1 --model MLP --model.hidden [3,4]",
    "--dataset MNIST --dataset.root over/there --output runs/x.h5 --overwrite --sampler Weighted",
    "--algorithm FedFTG --algorithm.base FedProx --algorithm.base.mu 0.25 --algorithm.generator ImageGenerator"
    " --algorithm.generator.noise 7",
]


@pytest.mark.parametrize("line", LINES)
def test_config_text_gives_the_same_config_again(line: str, write: Callable[[str, str], str]) -> None:
    first, config = parse(line.split())
    second, again = parse(["--config", write("again.yaml", config)])
    assert again == config
    assert second.local == first.local
    for name in COMPONENTS:
        one, other = getattr(first, name), getattr(second, name)
        assert type(one) is type(other)
        options, same = (
            {k: v for k, v in vars(x).items() if k not in ("over", "base", "generator", "_options", "_written")}
            for x in (one, other)
        )
        assert options == same, "but for further components"


def without_output(config: str) -> dict[str, Any]:
    """The settings but for the file's name, which has the time in it unless one was given."""
    settings: dict[str, Any] = yaml.safe_load(config)
    del settings["output"]
    return settings


@pytest.mark.parametrize("line", LINES)
def test_printed_config_gives_the_same_config_again(
    line: str, write: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HelpPrinted):
        parse([*line.split(), "--print_config"])
    printed = capsys.readouterr().out
    again = parse(["--config", write("printed.yaml", printed)])[1]
    assert without_output(again) == without_output(parse(line.split())[1])


def test_a_class_of_ones_own(user_file: Any, write: Callable[[str, str], str]) -> None:
    user_file("own_classes", USER_CLASSES)
    made = experiment("--algorithm own_classes.Mine --algorithm.strength 3")
    assert made.algorithm.strength == 3  # type: ignore[attr-defined]
    short = write("short.yaml", "algorithm: own_classes.Mine\n")
    assert experiment(f"--config {short}").algorithm.strength == 1  # type: ignore[attr-defined]
    path = write("own.yaml", "algorithm:\n  class_path: own_classes.Mine\n  init_args: {strength: 2}\n")
    own, config = parse(["--config", path])
    assert own.algorithm.strength == 2  # type: ignore[attr-defined]
    assert "own_classes.Mine" in config


OLDER = """
algorithm: {class_path: fedmpi.algorithms.feddf.FedDF, init_args: {proxy: {class_path: fedmpi.data.images.MNIST}}}
sampler: {class_path: fedmpi.scheduling.Uniform}
conditions: fedmpi.scheduling.conditions.Ideal
partition: {class_path: fedmpi.partitions.Permuted, init_args: {over: {class_path: fedmpi.partitions.Shards}}}
"""


def test_paths_of_older_versions(write: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]) -> None:
    """They count by their last part, nested ones too; what is saved now has short names, which outlive files."""
    path = write("older.yaml", OLDER)
    new = write("new.yaml", re.sub(r"fedmpi[\w.]*\.", "", OLDER))
    assert without_output(parse(["--config", path])[1]) == without_output(parse(["--config", new])[1])
    with pytest.raises(HelpPrinted):
        parse(["--config", path, "--print_config"])
    printed = capsys.readouterr().out
    assert "class_path: FedDF" in printed
    assert "fedmpi" not in printed
    gone = write("gone.yaml", "algorithm: {class_path: FedGen, init_args: {generator: fedmpi.generators.x.Gone}}\n")
    assert problem("--config", gone).startswith("--algorithm.generator = fedmpi.generators.x.Gone: no such name")


def test_a_users_class_with_a_name_of_ours(user_file: Any) -> None:
    """Their import paths tell them apart: a short name is ours."""
    user_file("namesake", "from fedmpi.algorithms import FedProx as Ours\nclass FedProx(Ours):\n    pass\n")
    theirs, config = parse(["--algorithm", "namesake.FedProx", "--algorithm.mu", "2"])
    assert type(theirs.algorithm).__module__ == "namesake"
    assert "class_path: namesake.FedProx" in config
    assert type(experiment("--algorithm FedProx").algorithm).__module__ == "fedmpi.algorithms.fedprox"


# What is refused: the option, its value, what is allowed

REFUSED = {
    # names
    "--clent 3": "--clent: no such option, did you mean --clients or --dataset.length (Sentiment140,"
    " TextTable, TweetCharacters)?",
    "--clent=3": "--clent: no such option, did you mean --clients or --dataset.length (Sentiment140,"
    " TextTable, TweetCharacters)?",
    "--lr 3": "--lr: no such option, did you mean --local.lr or --algorithm.lr (CCVR, Ditto, FedAdagrad, ...) or"
    " --server_optimizer.lr (Adagrad, Adam, Momentum, ...)?",
    "--alpha 3": "--alpha: no such option, did you mean --algorithm.alpha (APFL, FedAsync, FedCM, ...) or"
    " --partition.alpha (Dirichlet, DirichletPrior)?",
    "--mu 3": "--mu: no such option, did you mean --algorithm.mu (FedACG, FedAMP, FedAsync, ...)?",
    "--epochs 3": "--epochs: no such option, did you mean --local.epochs or --algorithm.epochs (CCVR, Ditto)?",
    "--epoch 3": "--epoch: no such option, did you mean --local.epochs or --algorithm.epochs (CCVR, Ditto)?",
    "--batch-size 3": "--batch-size: no such option, did you mean --local.batch_size or --algorithm.batch_size"
    " (FedDF, FedFTG, FedGen)?",
    "--momentum 3": "--momentum: no such option, did you mean --local.momentum or --algorithm.momentum (FedAvgM) or"
    " --server_optimizer.momentum (Momentum)?",
    "--local.batch-size 3": "--local.batch-size: no such option, did you mean --local.batch_size?",
    "--local-epochs 3": "--local-epochs: no such option, did you mean --local.epochs?",
    "--server-optimizer.lr 3": "--server-optimizer.lr: no such option, did you mean --server_optimizer.lr (Adagrad,"
    " Adam, Momentum, ...)?",
    "--output-dir x": "--output-dir: no such option, did you mean --output?",
    "--cohrt 3": "--cohrt: no such option, did you mean --cohort?",
    "--learning-rate 3": "--learning-rate: no such option, did you mean --local.lr or --local.schedule?",
    "--method FedProx": "--method: no such option, did you mean --algorithm or --local.clip_norm?",
    "--checkpoint.every 3": "--checkpoint.every: no such option, did you mean --checkpoint.every_minutes or"
    " --checkpoint.every_rounds?",
    "--Seed=3": "--Seed: no such option, did you mean --seed?",
    "--completely_different 3": "--completely_different: no such option, see --help",
    "--local.lrr 3": "--local.lrr: no such option, did you mean --local.lr?",
    "--algorithm FedProx --algorithm.nu 1": "--algorithm.nu: FedProx has no such option, it has mu, anchor",
    "--algorithm.mu 1": "--algorithm.mu: FedAvg has no such option, it is an option of FedACG, FedAMP, FedAsync, ...",
    "--algorithm.mu 1 --algorithm FedProx": "--algorithm.mu: FedAvg has no such option, it is an option of"
    " FedACG, FedAMP, FedAsync, ...",
    "--partition Permuted --partition.over Dirichlet --partition.over.beta 1": "--partition.over.beta: Dirichlet"
    " has no such option, it has alpha, min_samples",
    "--algorithm FedFTG --algorithm.base SCAFFOLD --algorithm.base.mu 1": "--algorithm.base.mu: SCAFFOLD has no such"
    " option, it has option, it is an option of FedACG, FedAMP, FedAsync, ...",
    "--algorithm FedFTG --algorithm.generator ImageGenerator --algorithm.generator.noises 1": ""
    "--algorithm.generator.noises: ImageGenerator has no such option, it has noise, final_norm, order",
    "clients 3": "clients: belongs to no option, did you mean --clients?",
    "--rounds 3 4": "4: belongs to no option",
    "--overwrite maybe": "maybe: belongs to no option",
    # abbreviations
    "--client 3": "--client: no such option, did you mean --clients?",
    "--hel": "--hel: no such option, see --help",
    "--conf x.yaml": "--conf: no such option, did you mean --config?",
    "--partition.alph 0.2": "--partition.alph: Dirichlet has no such option, it has alpha, min_samples",
    # types
    "--clients x": "--clients = x: must be a whole number",
    "--clients 1.5": "--clients = 1.5: must be a whole number",
    "--clients true": "--clients = true: must be a whole number",
    "--clients null": "--clients = null: must be a whole number",
    "--clients [1,2]": "--clients = [1, 2]: must be a whole number",
    "--model HuggingFace --model.path x --model.lora.targets 3": "--model.lora.targets = 3: must be a list or null",
    "--cohort x": "--cohort = x: must be a whole number or null",
    "--local 3": "--local = 3: must be options, or a YAML file of them",
    "--local.lr fast": "--local.lr = fast: must be a number",
    "--local.lr nan": "--local.lr = nan: must be a number",
    "--local.lr inf": "--local.lr = inf: must be a number",
    "--local.clip_norm x": "--local.clip_norm = x: must be a number or null",
    "--local.optimizer lion": "--local.optimizer = lion: must be one of sgd, adam, adamw",
    "--algorithm SCAFFOLD --weighting horvitz_thompson": "--weighting = horvitz_thompson: SCAFFOLD's server keeps its"
    " own mean over all clients",
    "--algorithm IFCA --weighting horvitz_thompson": "--weighting = horvitz_thompson: IFCA does not form one mean of"
    " all its clients' models",
    "--weighting equal": "--weighting = equal: must be one of samples, uniform, horvitz_thompson or null",
    "--device tpu": "--device = tpu: must be one of auto, cpu, cuda",
    "--overwrite=maybe": "--overwrite = maybe: must be true or false",
    "--algorithm FedProx --algorithm.mu x": "--algorithm.mu = x: must be a number",
    "--partition Shards --partition.total x": "--partition.total = x: must be a whole number or null",
    "--partition Permuted --partition.over Shards --partition.over.total x": "--partition.over.total = x:"
    " must be a whole number or null",
    "--model MLP --model.hidden [1,x]": "--model.hidden = x: must be a whole number",
    "--model MLP --model.hidden 3": "--model.hidden = 3: must be a list",
    "--model.norm none_at_all": "--model.norm = none_at_all: must be one of batch, group, layer, none",
    # missing values
    "--clients": "--clients: needs a value",
    "--clients --rounds 3": "--clients: needs a value",
    "--config": "--config: needs a value",
    "--algorithm": "--algorithm: needs a value",
    "--algorithm FedProx --algorithm.mu": "--algorithm.mu: needs a value",
    "--algorithm FedProx --algorithm.mu --rounds 3": "--algorithm.mu: needs a value",
    # ranges
    "--clients 0": "--clients = 0: must be at least 1",
    "--clients -3": "--clients = -3: must be at least 1",
    "--cohort 0": "--cohort = 0: must be at least 1",
    "--cohort 101": "--cohort = 101: must be at most the number of clients, 100",
    "--clients 5 --cohort 6": "--cohort = 6: must be at most the number of clients, 5",
    "--rounds 0": "--rounds = 0: must be at least 1",
    "--evaluate_every -1": "--evaluate_every = -1: must be at least 0",
    "--seed -1": "--seed = -1: must be at least 0 and below 2^63",
    "--seed 9223372036854775808": "--seed = 9223372036854775808: must be at least 0 and below 2^63",
    "--threads 0": "--threads = 0: must be at least 1",
    "--local.epochs 0": "--local.epochs = 0: must be at least 1",
    "--local.steps 0": "--local.steps = 0: must be at least 1",
    "--local.batch_size 0": "--local.batch_size = 0: must be at least 1",
    "--local.lr 0": "--local.lr = 0.0: must be above 0",
    "--local.lr -1": "--local.lr = -1.0: must be above 0",
    "--local.lr .nan": "--local.lr = nan: must be above 0",
    "--local.lr .inf": "--local.lr = inf: must be above 0",
    "--local.momentum -0.1": "--local.momentum = -0.1: must be at least 0 and below 1",
    "--local.momentum 1": "--local.momentum = 1.0: must be at least 0 and below 1",
    "--local.optimizer adam --local.momentum 0.9": "--local.momentum = 0.9: must be 0 with optimizer adam",
    "--local.weight_decay -1": "--local.weight_decay = -1.0: must be at least 0",
    "--local.weight_decay .inf": "--local.weight_decay = inf: must be at least 0",
    "--local.decay 0": "--local.decay = 0.0: must be above 0 and at most 1",
    "--local.decay 1.1": "--local.decay = 1.1: must be above 0 and at most 1",
    "--local.clip_norm 0": "--local.clip_norm = 0.0: must be above 0",
    "--algorithm FedProx --algorithm.mu -1": "--algorithm.mu = -1.0: must be at least 0",
    "--algorithm FedProx --algorithm.mu .inf": "--algorithm.mu = inf: must be at least 0",
    "--algorithm IFCA --algorithm.models 0": "--algorithm.models = 0: must be at least 1",
    "--partition LogNormal --partition.sigma 11": "--partition.sigma = 11.0: must be between 0 and 10",
    "--partition LogNormal --partition.min_samples 0": "--partition.min_samples = 0: must be at least 1",
    "--partition.alpha 0": "--partition.alpha = 0.0: must be greater than 0 (from 1e-6 to 1e6)",
    "--partition.alpha -1": "--partition.alpha = -1.0: must be greater than 0 (from 1e-6 to 1e6)",
    "--partition DirichletPrior --partition.alpha 0": "--partition.alpha = 0.0: must be greater than 0"
    " (from 1e-6 to 1e6)",
    "--partition Shards --partition.shards_per_client 0": "--partition.shards_per_client = 0: must be at least 1",
    "--partition Shards --partition.total 0": "--partition.total = 0: must be at least 1",
    "--partition ClassesPerClient --partition.classes 0": "--partition.classes = 0: must be at least 1",
    "--partition Permuted --partition.permutations -1": "--partition.permutations = -1: must be at least 0",
    "--partition Permuted --partition.over Dirichlet --partition.over.alpha 0": "--partition.over.alpha = 0.0:"
    " must be greater than 0 (from 1e-6 to 1e6)",
    "--partition Permuted --partition.over Permuted --partition.over.permutations -1": ""
    "--partition.over.permutations = -1: must be at least 0",
    "--algorithm FedFTG --algorithm.base FedProx --algorithm.base.mu -1": "--algorithm.base.mu = -1.0: must be at"
    " least 0",
    "--algorithm FedFTG --algorithm.base IFCA": "--algorithm.base = IFCA: must be a method whose server only averages"
    " its clients' models",
    "--algorithm FedFTG --algorithm.generator ImageGenerator --algorithm.generator.noise 0": ""
    "--algorithm.generator.noise = 0: must be at least 1",
    "--algorithm FedDF --algorithm.proxy MNIST --algorithm.generator ImageGenerator": "--algorithm.generator"
    " = ImageGenerator: cannot be combined with proxy data",
    "--algorithm FedFTG --compression TopK": "--compression = TopK: FedFTG's server uses the models"
    " of single clients",
    "--algorithm FedFTG --attack SignFlip": "--attack = SignFlip: FedFTG's server uses the models of single clients",
    "--model MLP --model.hidden []": "--model.hidden = []: must be one or more widths of at least 1",
    "--weighting horvitz_thompson --sampler Weighted": "--weighting = horvitz_thompson: cannot be"
    " combined with Weighted, because the probability that a client is drawn is not known",
    "--sampler PowerOfChoice --sampler.candidates 0": "--sampler.candidates = 0: must be at least 1",
    "--sampler PowerOfChoice --sampler.candidates 9": "--sampler.candidates = 9: must be at least the cohort, 10",
    "--sampler PowerOfChoice --sampler.candidates 101": "--sampler.candidates = 101: must be at most the number of"
    " clients, 100",
    "--availability Independent --availability.share 1.5": "--availability.share = 1.5: must be between 0 and 1",
    "--availability Markov --availability.share 0": "--availability.share = 0.0: must be above 0 and at most 1",
    "--availability Markov --availability.share 0.5 --availability.absence 1": "--availability.absence = 1.0: must be"
    " at least 1 / share, 2",
    "--availability Diurnal --availability.period 0": "--availability.period = 0.0: must be above 0",
    "--conditions Heterogeneous --conditions.dropout -0.1": "--conditions.dropout = -0.1: must be between 0 and 1",
    "--conditions Heterogeneous --conditions.stragglers 1.1": "--conditions.stragglers = 1.1: must be between"
    " 0 and 1",
    "--conditions Heterogeneous --conditions.deadline 0": "--conditions.deadline = 0.0: must be above 0",
    "--deadline soon": "--deadline = soon: must be a number or auto",
    "--deadline nan": "--deadline = nan: must be a number or auto",
    "--conditions Heterogeneous --conditions.over_select 0.9": "--conditions.over_select = 0.9: must be at least 1",
    "--conditions Heterogeneous --conditions.upload 0": "--conditions.upload = 0.0: must be above 0",
    "--conditions Heterogeneous --conditions.speed_spread -1": "--conditions.speed_spread = -1.0: must be between 0"
    " and 10",
    "--conditions Heterogeneous --conditions.stragglers 0.5 --local.epochs 1": "--local.epochs = 1: must be at least"
    " 2 with stragglers",
    "--conditions Heterogeneous --conditions.stragglers 0.5 --local.steps 1": "--local.steps = 1: must be at least 2"
    " with stragglers",
    # files
    "--sampler FixedList": "--sampler.file: needs a value, fedmpi.policies.FixedList has no default",
    "--sampler FixedList --sampler.file no.txt": "--sampler.file = no.txt: No such file or directory",
    "--availability Trace --availability.file no.txt": "--availability.file = no.txt: No such file or directory",
    "--config no.yaml": "--config = no.yaml: No such file or directory",
    "--config=no.yaml": "--config = no.yaml: No such file or directory",
}


@pytest.mark.parametrize("line", REFUSED)
def test_bad_input(line: str) -> None:
    assert problem(*line.split()) == REFUSED[line]


NESTED_NAMES = {
    "--algorithm FedFTG --algorithm.base SCAFOLD": (
        Algorithm,
        "--algorithm.base = SCAFOLD: no such name, did you mean SCAFFOLD or CFL?",
    ),
    "--algorithm FedFTG --algorithm.generator Image": (
        Generator,
        "--algorithm.generator = Image: no such name; known are ",
    ),
    "--algorithm FedDF --algorithm.proxy CIFAR1": (
        Dataset,
        "--algorithm.proxy = CIFAR1: no such name, did you mean CIFAR10 or CIFAR100?",
    ),
    "--model Projected --model.over LeNt": (
        Model,
        "--model.over = LeNt: no such name, did you mean LeNet or LeNet5?",
    ),
}


@pytest.mark.parametrize("line", NESTED_NAMES)
def test_unknown_nested_name(line: str) -> None:
    """Oracle: the names of the option's own kind."""
    text, (base, beginning) = problem(*line.split()), NESTED_NAMES[line]
    assert text.startswith(beginning)
    assert text.endswith(f"known are {', '.join(cls.__name__ for cls in public(base))}")


UNKNOWN_NAMES = {
    "--algorithm FedProks": "--algorithm = FedProks: no such name, did you mean FedProx",
    "--algorithm fedprox": "--algorithm = fedprox: no such name, did you mean FedProx",
    "--algorithm LeNet": "--algorithm = LeNet: no such name; known are ",
    "--algorithm Algorithm": "--algorithm = Algorithm: no such name",
    "--sampler Sampler": "--sampler = Sampler: no such name",
    "--dataset MNST": "--dataset = MNST: no such name, did you mean MNIST",
    "--model Model": "--model = Model: no such name",
    "--partition Permuted --partition.over Dirichlett": "--partition.over = Dirichlett: no such name, did you"
    " mean Dirichlet or DirichletPrior?; known are ",
    "--algorithm.help FedProks": "--algorithm = FedProks: no such name, did you mean FedProx",
}


@pytest.mark.parametrize("line", UNKNOWN_NAMES)
def test_unknown_name(line: str) -> None:
    text = problem(*line.split())
    assert text.startswith(UNKNOWN_NAMES[line])
    base = COMPONENTS[line.split()[0][2:].removesuffix(".help")]
    assert all(cls.__name__ in text for cls in public(base))


def test_empty_values() -> None:
    assert problem("--algorithm", "").startswith("--algorithm = : no such name; known are ")
    assert problem("--clients", "") == "--clients = : must be a whole number"


def _numbers() -> list[tuple[str, str]]:
    """Every option that is a number: the arguments that name its class, and its own name."""
    found = [("", name) for name in _numeric(Experiment)] + [
        ("", f"local.{name}") for name in _numeric(LocalTraining)
    ]
    for option, base in COMPONENTS.items():
        for cls in public(base):
            named = f"--{option} {cls.__name__}"
            if "path" in inspect.signature(cls).parameters:
                named += f" --{option}.path a_file"  # numbers are looked at before the file is read
            found += [(named, f"{option}.{name}") for name in _numeric(cls)]
    return found


def _numeric(cls: type) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if re.search(r"\b(int|float)\b(?!, \.\.\.)", str(p.annotation))]


@pytest.mark.parametrize(("named", "option"), _numbers())
def test_every_number_has_a_range(named: str, option: str) -> None:
    text = problem(*named.split(), f"--{option}", "-1000000000")
    assert text.startswith((f"--{option} = -1000000000: must be ", f"--{option} = -1000000000.0: must be "))


def test_words_of_yaml(write: Callable[[str, str], str]) -> None:
    """YAML 1.1 takes off, no, on and yes for truths; where a word is wanted they are words."""
    words = write(
        "words.yaml", "local: {vectorize: off, lr: 1e-3}\nevaluate_local: yes\n# für\ncheckpoint:\n  keep: On\n"
    )
    made = experiment(f"--config {words}")
    assert (made.local.vectorize, made.local.lr, made.evaluate_local, made.checkpoint.keep) == (
        "off",
        1e-3,
        True,
        True,
    )
    group = write("group.yaml", "vectorize: off\n")
    assert experiment(f"--local {group}").local.vectorize == "off"
    assert experiment("--overwrite=no --evaluate_local on").evaluate_local
    assert (
        problem("--config", write("bad.yaml", "local: {momentum: yes}"))
        == "--local.momentum = true: must be a number"
    )
    allowed = "must be a whole number or one of auto, off"
    assert problem("--config", write("bad.yaml", "local: {vectorize: on}")) == f"--local.vectorize = on: {allowed}"
    nothing_set = experiment(f"--config {write('default.yaml', 'algorithm: null')} --output x.h5")
    assert nothing_set.config == experiment("--output x.h5").config


def test_settings_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """And what the run prints never ends it."""
    path = tmp_path / "c.yaml"
    path.write_text("# Lauf für März\nclients: 4\nrounds: 1\nmodel: LogisticRegression\n", "utf-8")
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    output = f"{tmp_path}/März.h5"
    job = fedmpi(0, "--config", path, "--output", output, **ascii, PYTHONIOENCODING="ascii")
    assert job.returncode == 0, job.stderr
    assert job.stdout.rstrip().endswith("März.h5"), "of a locale without umlauts"
    assert results.open(output).settings["output"] == output
    path.write_bytes("# März\nclients: 4\n".encode("latin-1"))
    assert problem("--config", str(path)) == f"--config = {path}: is not UTF-8 (byte 3)"


def test_a_library_without_what_is_replaced_in_it() -> None:
    """A class that is named anew would else start from another class's options, without a word."""
    for change in (
        "del t.discard_init_args_on_class_path_change",
        "t.discard_init_args_on_class_path_change = lambda x: 0",
        "t.resolve_class_path_by_name = lambda x: 0",
    ):
        program = f"import jsonargparse._typehints as t\n{change}\nimport fedmpi.experiment.command_line"
        job = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
        assert re.search(
            r"ImportError: jsonargparse [\d.]+ has no function (discard_init|resolve_class)\w+ of the kind",
            job.stderr,
        )


YAML = {
    "broken": ("a: [1\nb: }", "--config = FILE: is not YAML (line 2: "),
    "tabs": ("\tclients: 3\n", "--config = FILE: is not YAML (line 1: "),
    "binary": ("\0\1", "--config = FILE: is not YAML, but binary"),
    "large": ("#" * ((1 << 20) + 1), "--config = FILE: has more than 1 MiB"),
    "deep": (f"a: {'[' * 60}{']' * 60}", "--config = FILE: has lists or mappings in one another, more than 50 deep"),
    "list": ("- 1\n", "--config = FILE: must hold settings, as in `clients: 100`"),
    "text": ("hello\n", "--config = FILE: must hold settings, as in `clients: 100`"),
    "empty": ("", "--config = FILE: must hold settings, as in `clients: 100`"),
    "comment": ("# nothing\n", "--config = FILE: must hold settings, as in `clients: 100`"),
    "unknown key": ("clientz: 3\n", "--clientz: no such option, did you mean --clients?"),
    "key in the wrong group": (
        "batch-size: 3\n",
        "--batch-size: no such option, did you mean --local.batch_size or --algorithm.batch_size",
    ),
    "unknown key of local": ("local: {lrr: 3}\n", "--local.lrr: no such option, did you mean --local.lr?"),
    "unknown key of a class": (
        "algorithm: {class_path: FedProx, init_args: {nu: 3}}\n",
        "--algorithm.nu: FedProx has no such option, it has mu, anchor",
    ),
    "key in the wrong place": (
        "algorithm: {class_path: FedProx, mu: 3}\n",
        "--algorithm: options of a class must be under init_args, not next to class_path",
    ),
    "unknown name": (
        "algorithm: FedProks\n",
        "--algorithm = FedProks: no such name, did you mean FedProx",
    ),
    "unknown nested name": (
        "partition: {class_path: Permuted, init_args: {over: {class_path: Foo, init_args: {alpha: 1}}}}\n",
        "--partition.over = Foo: no such name; known are ",
    ),
    "no name": ("algorithm: 3\n", "--algorithm = 3: must be the name of a class, a subclass of Algorithm"),
    "null for a number": ("clients: null\n", "--clients = null: must be a whole number"),
    "null for a nested number": (
        "partition: {class_path: Dirichlet, init_args: {alpha: null}}\n",
        "--partition.alpha = null: must be a number",
    ),
    "null for a group": ("local: null\n", "--local = null: must be options, or a YAML file of them"),
    "type": ("clients: many\n", "--clients = many: must be a whole number"),
    "boolean": ("clients: true\n", "--clients = true: must be a whole number"),
    "type in local": ("local: {lr: x}\n", "--local.lr = x: must be a number"),
    "range": ("local: {lr: -1}\n", "--local.lr = -1.0: must be above 0"),
    "missing file": ("local: other.yaml\n", "--local = other.yaml: must be options, or a YAML file of them"),
    "key given twice": ("rounds: 3\nrounds: 4\n", "--config = FILE: is not YAML (line 2: rounds is given twice)"),
    "quoted key given twice": ("rounds: 3\n'rounds': 4\n", "--config = FILE: is not YAML (line 2: rounds is given"),
    "nested key given twice": ("local: {lr: 1, lr: 2}\n", "--config = FILE: is not YAML (line 1: lr is given twice)"),
    "group given twice": ("local: {lr: 3}\nlocal: {epochs: 7}\n", "--config = FILE: is not YAML (line 2: local is"),
    "option given in two ways": ("local.lr: 3\nlocal: {lr: 3}\n", "--config = FILE: local.lr: is given twice"),
    "option of a class given in two ways": (
        "algorithm: {class_path: FedProx, init_args: {mu: 1}}\nalgorithm.mu: 2\n",
        "--config = FILE: algorithm.mu: is given twice",
    ),
    "inner option given in two ways": (
        "algorithm: {class_path: FedFTG, init_args: {base: {class_path: FedProx, init_args: {mu: 1}}, base.mu: 2}}\n",
        "--config = FILE: algorithm.base.mu: is given twice",
    ),
    "file of options beside one": (
        "local: other.yaml\nlocal.lr: 3\n",
        "--config = FILE: local = other.yaml: must hold options, because local.lr is given, too",
    ),
    "option of no class": (
        "algorithm: null\nalgorithm.mu: 3\n",
        "--config = FILE: algorithm = null: must hold options, because algorithm.mu is given, too",
    ),
    "number for a group": ("local: 3\n", "--local = 3: must be options, or a YAML file of them"),
    "list for a group": ("local: []\n", "--local = []: must be options, or a YAML file of them"),
    "truth for a group": ("checkpoint: false\n", "--checkpoint = false: must be options, or a YAML file of them"),
    "number as a name": ("1: 3\n", "--config = FILE: 1: must be the name of an option"),
    "number as a name in a group": ("local: {1: 3}\n", "--config = FILE: local.1: must be the name of an option"),
    "part of a name missing": ("local..lr: 3\n", "--config = FILE: local..lr: must be the name of an option"),
    "two words as a name": ("a b: 3\n", "--config = FILE: a b: must be the name of an option"),
    "name alone": ("rounds:\n", "--rounds = null: must be a whole number"),
    "help": ("help: all\n", "--config = FILE: help is no setting; it is an option of the command line"),
}


@pytest.mark.parametrize("name", YAML)
def test_bad_yaml(name: str, write: Callable[[str, str], str]) -> None:
    content, expected = YAML[name]
    path = write("settings.yaml", content)
    assert problem("--config", path).startswith(expected.replace("FILE", path))


def test_config_that_is_a_folder(tmp_path: Path) -> None:
    assert problem("--config", str(tmp_path)) == f"--config = {tmp_path}: Is a directory"


USER = {
    "own_classes.Nope": "--algorithm = own_classes.Nope: module 'own_classes' has no attribute 'Nope'",
    "own_classes.Unrelated": "--algorithm = own_classes.Unrelated: must be a subclass of Algorithm",
    "collections.OrderedDict": "--algorithm = collections.OrderedDict: must be a subclass of Algorithm",
    "no_such_module.Mine": "--algorithm = no_such_module.Mine: No module named 'no_such_module'",
    "own_classes.": "--algorithm = own_classes.: must be a name, or an import path such as"
    " my_package.my_module.MyClass",
    "own_classes.Needy": "--algorithm.budget: needs a value, own_classes.Needy has no default",
    "own_classes.Mine --algorithm.strength x": "--algorithm.strength = x: must be a number",
    "own_classes.Mine --algorithm.force 1": "--algorithm.force: Mine has no such option, it has strength",
    "own_classes.Leaving": "--algorithm = Leaving: no GPU, no algorithm",
    "own_classes.Mine --algorithm.strength -1": "--algorithm = Mine: strength is negative; it should not be",
}


@pytest.mark.parametrize("line", USER)
def test_bad_class_of_ones_own(line: str, user_file: Any) -> None:
    user_file("own_classes", USER_CLASSES)
    assert problem("--algorithm", *line.split()) == USER[line]


def test_class_of_ones_own_for_another_option(user_file: Any) -> None:
    user_file("own_classes", USER_CLASSES)
    assert problem("--model", "own_classes.Mine") == "--model = own_classes.Mine: must be a subclass of Model"
    text = problem("--partition", "Permuted", "--partition.over", "own_classes.Mine")
    assert text == "--partition.over = own_classes.Mine: must be a subclass of Partition"


BROKEN_FILES = {
    "import": (
        "import numpy\nimport not_installed_here\n",
        "line 2: ModuleNotFoundError: No module named 'not_ins",
    ),
    "syntax": ("x = 1\ndef f(:\n", "line 2: SyntaxError: invalid syntax"),
    "name": ("x = y\n", "line 1: NameError: name 'y' is not defined"),
    "value": ("x = int('a\\nb')\n", "line 1: ValueError: invalid literal for int() with base 10: "),
    "exit": ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_file_of_a_user_that_cannot_be_imported(kind: str, user_file: Any, tmp_path: Path) -> None:
    content, expected = BROKEN_FILES[kind]
    user_file(f"broken_{kind}", content)
    text = problem("--algorithm", f"broken_{kind}.Mine")
    assert text.startswith(f"cannot import {tmp_path / f'broken_{kind}.py'}, {expected}")


# In a job of several ranks, one of them speaks


@pytest.mark.parametrize("options", [["--help"], ["--algorithm.help", "FedProx"], ["--print_config"]])
def test_only_the_rank_that_speaks_answers(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HelpPrinted):
        parse(options, speaks=False)
    assert capsys.readouterr().out == ""
    with pytest.raises(HelpPrinted):
        parse(options)
    assert capsys.readouterr().out


@pytest.mark.parametrize("option", ["--help", "--print_config"])
def test_answers_of_a_job(option: str) -> None:
    """Oracle: what one process answers."""
    job, alone = fedmpi(3, option), fedmpi(0, option)
    assert (job.returncode, job.stderr) == (0, "")
    assert job.stdout == alone.stdout != ""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that can go wrong in it."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "old.h5").write_text("precious")
    (folder / "folder").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        path = folder / "corrupt" / "MNIST" / "raw" / f"{name}-ubyte"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"this is no image")
    (folder / "own.py").write_text(USER_CLASSES)
    return folder


JOBS = {
    "unknown_option": ("--clent 3", "--clent: no such option, did you mean --clients"),
    "cohort": ("--clients 5 --cohort 6", "--cohort = 6: must be at most the number of clients, 5"),
    "alpha": ("--partition.alpha 0", "--partition.alpha = 0.0: must be greater than 0 (from 1e-6 to 1e6)"),
    "one_rank": ("--algorithm own.OneRank", "--algorithm = OneRank: the licence is missing on this node"),
    "missing_data": ("--dataset MNIST --dataset.root FOLDER/nowhere", "FOLDER/nowhere/MNIST/raw"),
    "corrupt_data": (
        "--dataset MNIST --dataset.root FOLDER/corrupt",
        "FOLDER/corrupt/MNIST/raw/train-images-idx3-ubyte",
    ),
    "model": ("--model LeNet5", "LeNet5"),
    "output_exists": ("--output FOLDER/old.h5", "FOLDER/old.h5: exists already; give --overwrite"),
    "output_is_a_folder": ("--output FOLDER/folder", "FOLDER/folder: is a folder, not a file"),
    "output_below_a_file": ("--output FOLDER/old.h5/x.h5", "FOLDER/old.h5 is a file, not a folder"),
    "output_cannot_be_written": ("--output /proc/nowhere/x.h5", "/proc/nowhere/x.h5"),
    "set_up_of_one_rank": (
        "--algorithm faulty.Faulty --algorithm.kind BadInput --algorithm.ranks [2] --algorithm.phase setup",
        "--algorithm.kind is not what it should be",
    ),
}


@pytest.fixture(scope="module")
def complaints(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each of four ranks printed, and its exit status, for every line of JOBS."""
    folder = tmp_path_factory.mktemp("complaints")
    lines = []
    for name, (line, _) in JOBS.items():
        output = "" if "--output" in line else " --output FOLDER/new.h5"
        lines.append(f"{name} {line}{output}".replace("FOLDER", str(files)))
    (folder / "lines").write_text("\n".join(lines))
    before = _listing(files)
    path = os.pathsep.join(map(str, [REPOSITORY, PROGRAMS, files]))
    assert succeed(mpirun(4, PROGRAMS / "complaints.py", folder, PYTHONPATH=path)) == ""
    assert _listing(files) == before
    return {name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(4)] for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_bad_input_of_a_job_is_one_line(name: str, files: Path, complaints: dict[str, list[dict[str, Any]]]) -> None:
    """Oracle: the line, which rank 0 alone prints; the same exit status on every rank."""
    first, *others = complaints[name]
    assert first["err"].startswith("fedmpi: error: ")
    assert JOBS[name][1].replace("FOLDER", str(files)) in first["err"]
    assert len(first["err"].splitlines()) == 1
    assert first["out"] == "" or name == "corrupt_data"  # which is looked at with a progress line
    assert first["status"] == 2
    for other in others:
        other["err"] = re.sub(r"^fails at .*\n", "", other["err"])  # which the class says that fails
    assert others == [{"out": "", "err": "", "status": 2}] * 3


@pytest.mark.parametrize("name", ["unknown_option", "output_exists"])
def test_bad_input_ends_a_job(name: str, files: Path, complaints: dict[str, list[dict[str, Any]]]) -> None:
    """Oracle: the same line and exit status of a job of its own, before and after PyTorch is imported."""
    before = _listing(files)
    job = fedmpi(3, *JOBS[name][0].replace("FOLDER", str(files)).split())
    assert job.stderr == complaints[name][0]["err"]
    assert job.stdout == ""
    assert job.returncode == 2
    assert _listing(files) == before


def _listing(folder: Path) -> dict[Path, bytes | None]:
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def test_no_mpi_library() -> None:
    for broken in ({"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}, {"MPI4PY_MPIABI": "unheard-of"}):
        job = fedmpi(0, **broken)
        assert job.stderr.startswith("fedmpi: error: no MPI library found (")
        assert job.stderr.endswith("load your cluster's MPI module, or pip install 'fedmpi[mpich]'\n")
        assert len(job.stderr.splitlines()) == 1
        assert job.returncode == 2
        helped = fedmpi(0, "--help", **broken)
        assert (helped.returncode, helped.stderr) == (0, ""), "help needs no MPI library"
        assert helped.stdout == fedmpi(0, "--help").stdout != ""


@pytest.mark.parametrize(
    ("line", "weighting"),
    [("", "samples"), ("--algorithm SCAFFOLD", "uniform"), ("--algorithm SCAFFOLD --weighting samples", "samples")],
)
def test_weighting_is_the_papers_unless_given(line: str, weighting: str) -> None:
    """Oracle: the papers; and the settings that are kept say which it was."""
    experiment, config = parse(line.split())
    assert experiment.weighting == weighting
    assert yaml.safe_load(config)["weighting"] == weighting
