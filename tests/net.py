"""A net under changes that must change no result: every shipped method and component, run for two or three rounds.

    python -m tests.net > before.txt        # takes minutes
    python -m tests.net > after.txt && diff before.txt after.txt

A line for each run: its name, the first digits of the SHA-256 of the final weights, and those of all other numbers of
the results file that do not depend on the machine. The runs are those of `tests/experiment/test_checkpoint.py` (all
methods) and of `tests/experiment/test_any_number_of_ranks.py`, and one with each other class that an option can name.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import tempfile
from pathlib import Path

import h5py
import numpy as np

from fedmpi import results
from fedmpi.components import subclasses
from fedmpi.data import Arrays, Digits, Progress
from fedmpi.experiment import catalogue, command_line
from tests.experiment.test_any_number_of_ranks import CASES as ANY_RANKS
from tests.experiment.test_checkpoint import CASES as METHODS
from tests.support.mpi import REPOSITORY, mpirun, succeed

SMALL = "--clients 6 --cohort 3 --rounds 2 --local.steps 2"
#: Option -> what each of its classes runs with.
OPTIONS = {
    "partition": f"{SMALL} --model LogisticRegression --partition",
    "sampler": f"{SMALL} --model LogisticRegression --sampler",
    "server_optimizer": f"{SMALL} --model LogisticRegression --server_optimizer",
    "compression": f"{SMALL} --model LogisticRegression --compression",
    "attack": f"{SMALL} --model LogisticRegression --attack",
    "availability": f"{SMALL} --model LogisticRegression --availability",
    "conditions": f"{SMALL} --model LogisticRegression --conditions",
    "model": f"{SMALL} --rounds 1 --local.steps 1 --model",
}
#: What a class needs in addition.
NEEDED = dict.fromkeys(("ALIE", "Gaussian", "LabelFlip", "SignFlip"), "--attack.share 0.4") | {
    "FixedList": "--sampler.file FOLDER/numbers",
    "availability Trace": "--availability.file FOLDER/numbers",
    "Intervals": "--availability.path FOLDER/times.csv --conditions Heterogeneous",
    "conditions Trace": "--conditions.path FOLDER/devices.csv",
    "Users": "--dataset words.Words --model BiLSTM",
    "BiLSTM": "--dataset words.Words",
    "LeNet5": "--dataset tests.net.Enlarged",
    "VGG11": "--dataset tests.net.Enlarged",
    "NextToken": "--dataset tests.support.task_data.Characters --partition Users",
    "UNet": "--dataset tests.support.task_data.Masks",
}
#: Numbers that depend on the machine.
OF_THE_MACHINE = re.compile(r"(ranks|environment)(/|$)|clients/rank$|(.*/)?(?!virtual_)\w*seconds$")


class Enlarged(Digits):
    """The digits, each pixel as a square of 4x4."""

    def read(self, progress: Progress) -> Arrays:
        digits = super().read(progress)
        train_x, test_x = (x.repeat(4, 2).repeat(4, 3) for x in (digits.train_x, digits.test_x))
        return Arrays(train_x, digits.train_y, test_x, digits.test_y)


def content(path: Path) -> str:
    """The SHA-256 of all numbers of a results file but the model's and the machine's."""
    digest = hashlib.sha256()

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if OF_THE_MACHINE.match(name) or name.startswith("model"):
            return
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf":
            digest.update(f"{name} {item.dtype} {item.shape}".encode())
            digest.update(np.ascontiguousarray(item[()]).tobytes())

    with h5py.File(path) as file:
        file.visititems(add)
        for name, value in sorted(file["evaluation"].attrs.items()):
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def cases() -> dict[str, str]:
    """Name -> the options of a run."""
    found = {f"method {name}": options for name, options in METHODS.items()}
    found |= {f"ranks {name}": options for name, options in ANY_RANKS.items()}
    command_line.make_parser()  # so that all classes are imported
    for option, options in OPTIONS.items():
        base = next(base for base in catalogue.bases() if base.__name__.lower() == option.replace("_", ""))
        for cls in subclasses(base):
            own = cls.__module__.startswith("fedmpi.") and not cls.__name__.startswith("_")
            if own and not inspect.isabstract(cls):
                name = f"{option} {cls.__name__}"
                found[name] = f"{options} {cls.__name__} {NEEDED.get(name, NEEDED.get(cls.__name__, ''))}"
    return found


def main() -> None:
    """Run all, and print a line for each."""
    programs = REPOSITORY / "tests" / "jobs"
    runs = cases()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "all").mkdir()
        Path(folder, "numbers").write_text("0 2 3\n1 2 4 5\n")
        Path(folder, "times.csv").write_text("client,begin,end\n0,0,9\n1,0,1\n4,1,9\n")
        Path(folder, "devices.csv").write_text("seconds_per_step,download,upload\n1,1e6,1e5\n2,1e5,1e4\n")
        lines = [f"{number} {options}" for number, options in enumerate(runs.values())]
        Path(folder, "all", "lines").write_text("\n".join(lines).replace("FOLDER", folder))
        succeed(mpirun(3, programs / "runs.py", folder, "all:0:3", PYTHONPATH=f"{REPOSITORY}:{programs}"))
        for number, name in enumerate(runs):
            path = Path(folder, "all", f"{number}.h5")
            print(f"{name:45} {str(results.open(path).weights_sha256)[:16]} {content(path)[:16]}")


if __name__ == "__main__":
    main()
