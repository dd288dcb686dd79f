"""Which way clients are trained: by a rule, for a timing would make the bits of a run depend on luck."""

from __future__ import annotations

from torch import nn

from fedmpi.errors import BadInput
from fedmpi.training.flat import FlatModel
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.settings import LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import Task, Trainer

# On a CPU, networks up to this size spend most of their time between operations; larger ones fill the caches.
SMALL_ON_CPU = 50_000
AT_ONCE_ON_CPU = 256
# Where every block is filled up to its full size, fewer rows are trained in vain.
AT_ONCE_IF_FILLED = 64
AT_ONCE_ON_GPU = 32
# Fewer clients a round are not worth the 0.7 s that importing PyTorch's vmap takes.
WORTH_IT_ON_CPU = 32
# Forward passes that vmap has no rule for; a layer that derives from these classes may have one of its own.
_FOR_ONE = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


def clients_at_once(model: FlatModel, settings: LocalTraining, cohort: int) -> int:
    """How many clients a rank trains side by side, of so many a round on all ranks.

    Raises:
        BadInput: as many as were asked for cannot be.
    """
    layers = list(model.module.modules())
    recurs = any(type(layer).forward in _FOR_ONE for layer in layers)
    if settings.vectorize == "off":
        return 1
    if settings.vectorize != "auto":
        if recurs and settings.vectorize > 1:
            raise BadInput(
                f"= {settings.vectorize}: must be auto or off for a network with PyTorch's recurrent layers",
                "--local.vectorize",
            )
        return settings.vectorize
    if cohort == 1 or recurs:
        return 1
    if model.device.type != "cpu":
        return AT_ONCE_ON_GPU
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers)
    if convolves or model.layout.parameters > SMALL_ON_CPU or cohort < WORTH_IT_ON_CPU:
        return 1
    return AT_ONCE_IF_FILLED if settings.precision == "bf16" else AT_ONCE_ON_CPU


def make_trainer(task: Task, cohort: int) -> Trainer:
    """The trainer of one rank, in a job that trains so many clients a round.

    Raises:
        BadInput: as `clients_at_once`.
    """
    at_once = clients_at_once(task.model, task.settings, cohort)
    return PlainTrainer(task) if at_once == 1 else SideBySideTrainer(task, at_once)
