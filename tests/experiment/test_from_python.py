"""Experiments from Python are those of the command line: the same defaults, settings, results and errors."""

from __future__ import annotations

import copy
import inspect
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml

import fedmpi.algorithms
from fedmpi import Experiment, results
from fedmpi.algorithms import FedAvg, FedFTG, FedProx
from fedmpi.components import subclasses
from fedmpi.data import IID, MNIST, Arrays, Dataset, Digits, Dirichlet, Permuted
from fedmpi.described import as_yaml, settings_of
from fedmpi.errors import BadInput
from fedmpi.experiment.catalogue import COMPONENTS, NESTED
from fedmpi.experiment.command_line import HelpPrinted, make_parser, parse
from fedmpi.experiment.ownership import Lock, claim
from fedmpi.models import MLP, LogisticRegression, Model
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.settings import LocalTraining
from tests.support.mpi import REPOSITORY, mpirun, succeed
from tests.support.mpi import fedmpi as command_line

PROGRAM = REPOSITORY / "tests" / "jobs" / "from_python.py"
SAME = "--clients 8 --cohort 4 --rounds 2 --local.epochs 1 --algorithm FedProx --algorithm.mu 1"


def public(base: type) -> list[type]:
    own = [cls for cls in subclasses(base) if cls.__module__.startswith("fedmpi.")]
    return [cls for cls in own if not (cls.__abstractmethods__ or cls.__name__.startswith("_"))]  # type: ignore[attr-defined]


def test_every_method_can_be_imported() -> None:
    methods = {cls.__name__ for cls in public(fedmpi.algorithms.Algorithm)}
    assert set(fedmpi.algorithms.__all__) == methods | {"Algorithm"}
    assert all(hasattr(fedmpi.algorithms, name) for name in methods)


def test_nothing_heavy_is_imported() -> None:
    program = "import sys, fedmpi; assert 'numpy' not in sys.modules; from fedmpi import Experiment;"
    program += "import fedmpi.algorithms; print({'torch', 'mpi4py.MPI', 'h5py'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, cwd=REPOSITORY) == "set()\n"


# Settings. Oracle: what the command line prints with --print_config


LINES: dict[str, Callable[[], Experiment]] = {
    "": Experiment,
    "--algorithm FedProx --algorithm.mu 1 --rounds 20 --output x.h5": lambda: Experiment(
        algorithm=FedProx(mu=1), rounds=20, output="x.h5"
    ),
    "--algorithm FedProx --algorithm.mu 0.01 --local.lr 1e-05 --local.vectorize off": lambda: Experiment(
        FedProx(np.float64(0.01)), local=LocalTraining(lr=1e-05, vectorize=False)
    ),
    "--algorithm FedFTG --algorithm.base FedProx --algorithm.base.mu 2 --partition Permuted"
    " --partition.over Dirichlet --partition.over.alpha 3 --model MLP --model.hidden [3,4] --dataset MNIST"
    " --dataset.root over/there --checkpoint.every_minutes null --clients 7 --seed 3": lambda: Experiment(
        FedFTG(FedProx(2)),
        MNIST(Path("over/there")),
        Permuted(Dirichlet(3)),
        MLP((3, 4)),
        checkpoint=fedmpi.experiment.settings.Checkpointing(None),
        clients=np.int64(7),
        seed=3,
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_the_settings_are_those_of_the_command_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HelpPrinted):
        parse([*line.split(), "--print_config"])
    printed, made = yaml.safe_load(capsys.readouterr().out), LINES[line]()
    completed = {"cohort": made.cohort, "weighting": made.weighting, "output": str(made.output)}
    assert made.config == yaml.safe_dump(printed | completed, sort_keys=False)
    given = parse([*line.split(), "--output", str(made.output)])[0]
    assert given.config == made.config


def test_the_settings_of_every_class_that_has_a_name() -> None:
    """But for those that have an option without a default."""
    parser, number = make_parser(), 0
    for option, base in COMPONENTS.items():
        for cls in public(base):
            if any(p.default is p.empty for p in inspect.signature(cls).parameters.values()):
                continue
            made = as_yaml({option: settings_of(cls(), option)})
            settings = parser.parse_args([f"--{option}", cls.__name__])
            printed = yaml.safe_load(parser.dump(settings, skip_unset=False))[option]
            if not printed.get("init_args", True):
                del printed["init_args"]
            assert made == yaml.safe_dump({option: printed}, sort_keys=False), cls
            number += 1
    assert number > 80
    assert NESTED


class Size(Enum):
    small = 1
    large = 2


@dataclass
class Layers:
    widths: tuple[int, ...] = (4,)


class Base(LogisticRegression):
    def __init__(self, size: Size = Size.small, layers: Layers = Layers(), rate: float = 1) -> None:  # noqa: B008
        self.given = size, layers, rate


class Odd(Base):
    def __init__(self, *numbers: int, what: Any = None, **more: Any) -> None:
        super().__init__(**more)
        self.what = what


def somewhere() -> None:
    pass


def written(value: Any) -> Any:
    return settings_of(value, "model")


def test_arguments_of_a_users_class() -> None:
    assert isinstance(FedProx(1).mu, float)
    made = written(Odd(3, 4, what={"a": [True, None]}, size=Size.large, layers=Layers((5, 6))))
    assert made == {
        "class_path": f"{__name__}.Odd",
        "init_args": {
            "numbers": [3, 4],
            "what": {"a": [True, None]},
            "size": "large",
            "layers": {"widths": [5, 6]},
        },
    }

    class Local(Odd):
        pass

    assert written(Local())["class_path"].endswith("<locals>.Local")
    assert written(IID()) == {"class_path": "IID"}


def test_what_yaml_cannot_hold() -> None:
    """Arrays differ by a checksum; functions and classes are where they are; the rest is refused."""

    def what(value: object) -> Any:
        return written(Odd(what=value))["init_args"]["what"]

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert re.fullmatch(r"float32 \[2, 3\] sha256 [0-9a-f]{64}", what(array))
    assert what(array) == what(torch.from_numpy(array)) != what(array + 1)
    assert what(somewhere) == f"{__name__}.somewhere"
    assert what(Size) == f"{__name__}.Size"
    assert what({3, 1}) == [1, 3]
    for value in (lambda: 0, object(), [object()]):
        with pytest.raises(BadInput, match=r"model\.what = .*: must be what the results file can hold"):
            Experiment(model=Odd(what=value))


REFUSED: dict[str, tuple[type, dict[str, Any]]] = {
    "mu = x: must be a number": (FedProx, {"mu": "x"}),
    "mu = -1.0: must be at least 0": (FedProx, {"mu": -1}),
    "device = tpu: must be one of auto, cpu, cuda": (Experiment, {"device": "tpu"}),
    "schedule = cosin: must be one of constant, exponential, linear, cosine": (LocalTraining, {"schedule": "cosin"}),
    "epochs = true: must be a whole number": (LocalTraining, {"epochs": True}),
    "epochs = 1.5: must be a whole number": (LocalTraining, {"epochs": 1.5}),
    "vectorize = true: must be a whole number or one of auto, off": (LocalTraining, {"vectorize": True}),
    "hidden = [1, 'x']: must be a list": (MLP, {"hidden": [1, "x"]}),
    "over = 3: must be a Partition or null": (Permuted, {"over": 3}),
    "rounds = 2.0: must be a whole number": (Experiment, {"rounds": 2.0}),
    "root = a/$NOT_SET/x: the environment variable NOT_SET is not set": (MNIST, {"root": "a/$NOT_SET/x"}),
    "output = ~nobody_of_this_name/x.h5: there is no user": (Experiment, {"output": "~nobody_of_this_name/x.h5"}),
    "a name has 256 bytes, at most 255 are allowed": (MNIST, {"root": "ä" * 128}),
    "bytes, at most 4095 are allowed": (MNIST, {"root": "/".join(["d" * 200] * 21)}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input(message: str) -> None:
    cls, options = REFUSED[message]
    with pytest.raises(BadInput) as caught:
        cls(**options)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert isinstance(caught.value, ValueError)


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the command line, in YAML and in Python; the settings have what became of them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    config = tmp_path / "scratch" / "c.yaml"
    config.parent.mkdir()
    text = "dataset: {class_path: MNIST, init_args: {root: $SCRATCH/data}}\noutput: ~/x.h5\n"
    config.write_text(text)
    line = "--dataset MNIST --dataset.root=${SCRATCH}/data --output=~/x.h5"
    inside = "--dataset Subset --dataset.over MNIST --dataset.over.root $SCRATCH/data"
    made = [
        parse(["--config=$SCRATCH/c.yaml"])[0],
        parse(line.split())[0],
        Experiment(dataset=MNIST("$SCRATCH/data"), output="~/x.h5"),  # type: ignore[arg-type]
    ]
    assert len({one.config for one in made}) == 1
    assert made[0].output == tmp_path / "home" / "x.h5"
    assert made[0].settings["dataset"]["init_args"]["root"] == tmp_path / "scratch" / "data"
    nested = parse(inside.split())[0].settings["dataset"]["init_args"]["over"]
    assert nested["init_args"]["root"] == tmp_path / "scratch" / "data"
    with pytest.raises(
        BadInput, match=r"^--dataset.root = \$NOT_SET/x: the environment variable NOT_SET is not set$"
    ):
        parse(["--dataset", "MNIST", "--dataset.root", "$NOT_SET/x"])
    with pytest.raises(BadInput, match=r"^--config = \$NOT_SET/x: the environment variable NOT_SET is not set$"):
        parse(["--config", "$NOT_SET/x"])


@pytest.mark.parametrize("length", [239, 240])
def test_names_that_are_too_long(length: int, tmp_path: Path) -> None:
    """Oracle: the file system, which takes 255 bytes with all that the checkpoint's name has more."""
    output = tmp_path / f"{'ä' * 110}{'a' * (length - 223)}.h5"
    settings: dict[str, Any] = {"model": LogisticRegression(), "clients": 2, "rounds": 2, "output": output}
    experiment = Experiment(checkpoint=fedmpi.experiment.settings.Checkpointing(every_rounds=1), **settings)
    if length == 239:
        assert experiment.run().status == "finished"
    else:
        with pytest.raises(BadInput, match="a name has 240 bytes, at most 239 are allowed"):
            experiment.run()
    assert len(list(tmp_path.iterdir())) == (length == 239)


# Runs


@pytest.mark.further
def test_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the command line's file, and other numbers of ranks."""
    monkeypatch.chdir(tmp_path)
    said = {}
    for ranks in (0, 3):
        (tmp_path / str(ranks)).mkdir()
        said[ranks] = succeed(mpirun(ranks, PROGRAM, str(ranks)))
    succeed(command_line(2, *SAME.split(), "--output", "line.h5"))
    line, run = results.open(tmp_path / "line.h5"), results.open(tmp_path / "3" / "prox.h5")
    assert run.config == line.config.replace("line.h5", "3/prox.h5")
    assert run.weights_sha256 == line.weights_sha256
    for ranks, text in said.items():
        hashes = re.findall(r"^\d [0-9a-f]{64} [0-9a-f]{64}$", text, re.MULTILINE)
        assert len(hashes) == max(ranks, 1)
        assert {one[2:66] for one in hashes} == {line.weights_sha256}
        for rank in range(max(ranks, 1)):
            assert f"{rank} --output = {ranks}/prox.h5: exists already; give --overwrite to replace it" in text
            assert (f"{rank} --clients = 9 on rank 1: must be 8, as on rank 0" in text) == (ranks == 3)
    assert "caught a mistake of the user's\n" in said[0]
    assert "\nTrue\n" in said[0], "and the next run is as if nothing had been"
    assert len(list((tmp_path / "runs").iterdir())) == 4
    assert not list((tmp_path / "3").glob("*.tmp"))


def test_a_notebook(tmp_path: Path) -> None:
    """Cells that come through standard input: there is no file of the user's class."""
    cells = (
        "from fedmpi import Experiment\nfrom fedmpi.algorithms import FedAvg\n"
        "class Half(FedAvg):\n    def __init__(self, share=0.5): self.share = share\n"
        "    def direction(self, gradient, weights, start, block): return self.share * gradient\n"
        "e = Experiment(Half(0.25), clients=4, rounds=1, output='n.h5')\n"
        "import sys\nprint(e.run().settings['algorithm'], 'jsonargparse' in sys.modules)\n"
    )
    path = os.pathsep.join([str(REPOSITORY), *sys.path])
    command = [sys.executable, "-"]
    environment = {**os.environ, "PYTHONPATH": path}
    job = subprocess.run(command, input=cells, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert job.returncode == 0, job.stderr
    assert "{'class_path': '__main__.Half', 'init_args': {'share': 0.25}} False" in job.stdout


def test_names_are_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty runs to which nobody gave a name, made up in the same second; another one has a file of the third."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    experiments = [Experiment(clients=4) for _ in range(20)]
    name = experiments[0].output
    name.parent.mkdir()
    (third := name.with_stem(f"{name.stem}-3")).touch()
    locks, start = [Lock() for _ in experiments], threading.Barrier(20)

    names = {}

    def ask(number: int) -> None:
        start.wait()
        names[number] = claim(experiments[number].output, locks[number], is_made_up=True)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names.values()) == {name, *(name.with_stem(f"{name.stem}-{number}") for number in range(2, 22))} - {
        third
    }
    with pytest.raises(BadInput, match=f"^--output = {name}: is in use by process {os.getpid()} on "):
        claim(name, Lock())
    for lock in locks:
        lock.release()
    assert list(name.parent.iterdir()) == [third]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_what_is_refused_reserves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Tuples(Digits):
        def read(self, progress: Any) -> Arrays:
            return 1, 2  # type: ignore[return-value]

    class Nothing(Digits):
        def read(self, progress: Any) -> Arrays:
            return None  # type: ignore[return-value]

    class NoClasses(Dataset):
        def read(self, progress: Any) -> Arrays:
            return Digits().read(progress)

    class NoNetwork(Model):
        def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
            return None  # type: ignore[return-value]

    class Scripted(Model):
        def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
            return torch.nn.Sequential(torch.jit.script(torch.nn.Flatten()), torch.nn.Linear(64, classes))

    for options, message in (
        ({"model": Scripted()}, "Scripted: build() returned TorchScript, which must be the torch.nn.Module that"),
        ({"dataset": Tuples()}, "data set Tuples: read() returned a tuple: it must return Arrays(train_x,"),
        ({"dataset": Nothing()}, "data set Nothing: read() returned a NoneType: it must return Arrays("),
        (
            {"dataset": NoClasses()},
            "data set NoClasses: train_y needs `classes` of the data set, the number of classes, which is 0",
        ),
        ({"model": NoNetwork()}, "NoNetwork: build() returned a NoneType, which must be a torch.nn.Module"),
    ):
        with pytest.raises(BadInput) as caught:
            Experiment(**options, clients=4, rounds=1).run()
        assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_experiment_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be run again; only the name of its file, which nobody gave, is that of its latest run."""
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(model=LogisticRegression(), clients=4, rounds=1)
    before = {**experiment.settings, "output": None}
    runs = [experiment.run(), experiment.run()]
    assert runs[0].path != runs[1].path == experiment.output
    assert runs[0].weights_sha256 == runs[1].weights_sha256
    assert [Path(run.settings["output"]) for run in runs] == [run.path for run in runs]
    assert {**experiment.settings, "output": None} == before
    with pytest.raises(AttributeError, match="rounds cannot be changed"):
        experiment.rounds = 2
    with pytest.raises(AttributeError):
        experiment.output = Path("x.h5")  # type: ignore[misc]


def test_options_do_not_change(tmp_path: Path) -> None:
    """Else training would use other values than the results file has. Other attributes are free."""
    copied = copy.copy(FedProx(0.1))
    for component, name, value in (
        (FedProx(0.1), "mu", 5.0),
        (copied, "mu", 5.0),
        (Dirichlet(), "alpha", -3.0),
        (MLP(), "hidden", (8,)),
        (Momentum(), "lr", 0.1),
        (MNIST(), "root", "x"),
        (Plain(3), "size", 4),
    ):
        with pytest.raises(AttributeError, match=f"{name} is an option of {type(component).__name__}, and cannot be"):
            setattr(component, name, value)
        setattr(component, "note", value)  # noqa: B010 (for the type checker, there is none)
    assert copied.mu == 0.1


class Plain(FedAvg):
    """A method whose constructor is written by hand."""

    def __init__(self, size: int) -> None:
        self.size = size


def test_runs_at_the_same_time(tmp_path: Path) -> None:
    """A method holds the state of its run. Oracle: one run after the other."""
    few: dict[str, Any] = {"clients": 4, "rounds": 3, "model": LogisticRegression()}

    def experiments(kind: str, *algorithms: FedAvg, **more: Any) -> list[Experiment]:
        paths = [tmp_path / f"{kind}{number}.h5" for number in range(2)]
        pairs = zip(algorithms, paths, (0.1, 0.01), strict=True)
        return [Experiment(one, local=LocalTraining(lr=lr), output=path, **few, **more) for one, path, lr in pairs]

    shared = FedAvg()
    runs = [each.run() for each in experiments("after", shared, shared)]
    for _ in zip(*(each.outcomes() for each in experiments("beside", FedAvg(), FedAvg())), strict=True):
        pass
    for number, run in enumerate(runs):
        assert results.open(tmp_path / f"beside{number}.h5").weights_sha256 == run.weights_sha256
    optimizer = Momentum()
    for name, pair in {
        "algorithm = FedAvg": experiments("one", shared, shared),
        "server_optimizer = Momentum": experiments("other", FedAvg(), FedAvg(), server_optimizer=optimizer),
    }.items():
        first, second = pair
        rounds = first.outcomes()
        next(rounds)
        with pytest.raises(BadInput, match=f"{name}: is used by another run, which has not ended"):
            second.run()
        assert not second.output.exists()
        assert len(list(rounds)) == 2
        second.run()


@contextmanager
def setting(change: Callable[[Any], Any], value: object, usual: object) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(usual)


#: What a script may have set before it runs an experiment.
STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "no gradients at all": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
    "a default device": lambda: setting(torch.set_default_device, "meta", None),
    "within a device": lambda: torch.device("meta"),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "flushing": lambda: setting(torch.set_flush_denormal, True, False),
    "threads": lambda: setting(torch.set_num_threads, 2, torch.get_num_threads()),
    "errors": lambda: np.errstate(all="raise"),
}


def state_of_the_process() -> dict[str, Any]:
    """All that `STATES` change, and what tells it."""
    made = torch.ones(2, 2)
    return {
        "type": made.dtype,
        "device": made.device,
        "product": (made @ made).dtype,
        "gradients": torch.is_grad_enabled(),
        "inference": made.is_inference(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "half of the least": sys.float_info.min / 2,
        "threads": torch.get_num_threads(),
        "errors": np.geterr(),
        "random": (random.getstate(), torch.default_generator.get_state().tolist()),
    }


class Tiny(Model):
    """Its inputs have been so small that float32 keeps few of their digits, or none where they are flushed to 0."""

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        class Scaled(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * 1e-20 * 1e-20 * 1e20 * 1e20

        return torch.nn.Sequential(Scaled(), LogisticRegression().build(shape, classes))


LINE = "--model MLP --model.hidden [8] --clients 4 --rounds 2 --local.epochs 1 --device cpu --metrics auroc"


@pytest.fixture(scope="module")
def from_the_command_line(tmp_path_factory: pytest.TempPathFactory) -> results.Run:
    file = tmp_path_factory.mktemp("line") / "line.h5"
    succeed(command_line(0, *LINE.split(), "--output", file))
    return results.open(file)


@pytest.mark.parametrize("name", STATES)
def test_settings_of_the_process(name: str, from_the_command_line: results.Run, tmp_path: Path) -> None:
    """Oracles: the bits of the command line; the state as it was, also after every round."""
    tiny: dict[str, Any] = {"model": Tiny(), "clients": 4, "rounds": 1, "device": "cpu"}
    expected = Experiment(**tiny, output=tmp_path / "plain.h5").run().weights
    with STATES[name]():
        parts: dict[str, Any] = {"model": MLP(hidden=(8,)), "local": LocalTraining(epochs=1), "metrics": "auroc"}
        few: dict[str, Any] = {"clients": 4, "rounds": 2, "device": "cpu", **parts}
        before = state_of_the_process()
        run = Experiment(**few, output=tmp_path / "run.h5").run()
        assert state_of_the_process() == before
        for _ in Experiment(**few, output=tmp_path / "rounds.h5").outcomes():
            assert state_of_the_process() == before
        network = run.network()
        small = Experiment(**tiny, output=tmp_path / "tiny.h5").run()
    line = from_the_command_line
    for made in (run, results.open(tmp_path / "rounds.h5")):
        assert made.weights_sha256 == line.weights_sha256
        for column in ("train_loss", "test_loss", "test_auroc"):
            np.testing.assert_array_equal(made.rounds[column], line.rounds[column])
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    np.testing.assert_array_equal(small.weights, expected)


def test_threads(tmp_path: Path) -> None:
    """Runs in several threads take turns, whole or by rounds. Oracle: each run alone."""

    def made(seed: int, name: str) -> Experiment:
        few: dict[str, Any] = {"clients": 6, "rounds": 3, "local": LocalTraining(epochs=1), "device": "cpu"}
        return Experiment(model=MLP(hidden=(8,)), **few, seed=seed, output=tmp_path / f"{name}-{seed}.h5")

    def by_rounds(experiment: Experiment) -> None:
        for _ in experiment.outcomes():
            first.network()

    first = made(0, "alone").run()
    alone = [first.weights_sha256, *(made(seed, "alone").run().weights_sha256 for seed in (1, 2, 3))]
    experiments = [made(seed, "thread") for seed in range(4)]
    before = state_of_the_process()
    works: list[Callable[[Experiment], Any]] = [Experiment.run, by_rounds, Experiment.run, by_rounds]
    threads = [threading.Thread(target=work, args=(one,)) for work, one in zip(works, experiments, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results.open(one.output).weights_sha256 for one in experiments] == alone
    assert state_of_the_process() == before


class Given(Model):
    """A network that the script has built itself."""

    network: ClassVar[torch.nn.Module]

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        return self.network


def test_networks_that_were_built_under_other_settings(tmp_path: Path) -> None:
    """Oracle: one line, on what to do."""
    for state, message in (
        ("float64", "is float64: networks are float32"),
        ("inference_mode", "was made in torch.inference_mode"),
    ):
        with STATES[state]():
            Given.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        with pytest.raises(BadInput, match=message):
            Experiment(model=Given(), clients=4, rounds=1, output=tmp_path / "x.h5").run()


def test_rounds_one_by_one(tmp_path: Path) -> None:
    """Whoever wants no more of them leaves a file that says so."""
    experiment = Experiment(FedAvg(), clients=4, rounds=3, output=tmp_path / "x.h5")
    for outcome in experiment.outcomes():
        if outcome.row["round"] == 2:
            break
    del outcome
    assert len(results.open(tmp_path / "x.h5").rounds["round"]) <= 2
