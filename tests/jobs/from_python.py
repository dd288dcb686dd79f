"""Experiments from Python, as in a script that several ranks run, or a notebook: python from_python.py FOLDER."""

import sys
import threading
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedmpi import Experiment, results
from fedmpi.algorithms import FedAvgM, FedProx
from fedmpi.errors import BadInput
from fedmpi.models import Model
from fedmpi.mpi import whole_job
from fedmpi.training.settings import LocalTraining

folder, rank, size = sys.argv[1], whole_job().rank, whole_job().size
small: dict[str, Any] = {"clients": 8, "cohort": 4, "rounds": 2, "local": LocalTraining(epochs=1)}


class Mine(Model):
    """A model of the script's own."""

    def __init__(self, width: int = 8, fails: bool = False) -> None:
        self.width = width
        self.fails = fails

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        if self.fails:
            return nn.Sequential(nn.Flatten(), Failing(), nn.Linear(64, classes))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, self.width), nn.Tanh(), nn.Linear(self.width, classes))


class Failing(nn.Identity):
    """Fails after some runs in training mode, more than are made before the first round."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += self.training
        if self.runs > 8:
            raise ZeroDivisionError("a mistake of the user's")
        return x


# The same as from the command line; a text for a path; every rank gets the results.
prox = FedProx(1)
run = Experiment(prox, output=f"{folder}/prox.h5", **small).run()
assert isinstance(run, results.Run)
assert run.status == "finished"
assert run.weights_sha256 == whole_job().from_server(run.weights_sha256)
assert len(run.clients["client"]) == 8, "a table that is read later"

# A class of the script's own, given positionally.
mine = Experiment(prox, model=Mine(4), output=f"{folder}/mine.h5", **small).run()
assert mine.settings["model"] == {"class_path": "__main__.Mine", "init_args": {"width": 4, "fails": False}}

# One component in several experiments leaves nothing of the first in the second; names are unique.
momentum = FedAvgM()
two = [Experiment(momentum, **small).run() for _ in range(2)]
assert two[0].path != two[1].path
assert two[0].path.parent == Path("runs")
assert two[0].weights_sha256 == two[1].weights_sha256

# In a thread, going on where a run has ended.
more = Experiment(prox, output=f"{folder}/prox.h5", resume=True, **small)
thread = threading.Thread(target=more.run)
thread.start()
thread.join()
assert more.exit_status == 0


# What is wrong is said on every rank alike, and nothing is left of it.
def refused(**options: Any) -> None:
    try:
        Experiment(**{**small, **options}).run()
    except BadInput as error:
        print(f"{rank} {error}\n", end="", flush=True)


refused(output=f"{folder}/prox.h5")
if size > 1:
    refused(clients=9 if rank else 8)

if size == 1:
    try:
        Experiment(model=Mine(fails=True), output=f"{folder}/failed.h5", **small).run()
    except ZeroDivisionError as error:
        print("caught", error)
    assert results.open(f"{folder}/failed.h5").status == "failed"
    print(
        Experiment(prox, model=Mine(4), output=f"{folder}/again.h5", **small).run().weights_sha256
        == mine.weights_sha256
    )
print(f"{rank} {run.weights_sha256} {mine.weights_sha256}\n", end="", flush=True)
