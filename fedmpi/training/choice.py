"""Which way clients are trained: by a rule, for a timing would make the bits of a run depend on luck."""

from __future__ import annotations

from torch import nn

from fedmpi.training.flat import FlatModel
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.settings import LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import Task, Trainer

# On a CPU, networks up to this size spend most of their time between operations; larger ones fill the caches.
SMALL_ON_CPU = 50_000
AT_ONCE_ON_CPU = 256
AT_ONCE_ON_GPU = 32
# Fewer clients a round are not worth the 0.7 s that importing PyTorch's vmap takes.
WORTH_IT_ON_CPU = 32


def clients_at_once(model: FlatModel, settings: LocalTraining, cohort: int) -> int:
    """How many clients a rank trains side by side, of so many a round on all ranks."""
    if settings.vectorize == "off":
        return 1
    if settings.vectorize != "auto":
        return settings.vectorize
    if cohort == 1:
        return 1
    layers = list(model.module.modules())
    if any(isinstance(layer, nn.RNNBase) for layer in layers):
        return 1
    if model.device.type != "cpu":
        return AT_ONCE_ON_GPU
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers)
    small = not convolves and model.layout.parameters <= SMALL_ON_CPU
    return AT_ONCE_ON_CPU if small and cohort >= WORTH_IT_ON_CPU else 1


def make_trainer(task: Task, cohort: int) -> Trainer:
    """The trainer of one rank, in a job that trains so many clients a round."""
    at_once = clients_at_once(task.model, task.settings, cohort)
    return PlainTrainer(task) if at_once == 1 else SideBySideTrainer(task, at_once)
