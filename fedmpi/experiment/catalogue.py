"""The options of the command line that take the name of a class, and the classes that can be named."""

from __future__ import annotations

import inspect
import re

from fedmpi.algorithms import Algorithm
from fedmpi.components import subclasses
from fedmpi.data import Dataset, Partition
from fedmpi.described import short_name
from fedmpi.experiment.settings import Checkpointing
from fedmpi.experiment.stopping import Stopping
from fedmpi.models import Model
from fedmpi.models.adapters import LoRA
from fedmpi.models.generators import Generator
from fedmpi.policies import Availability, Conditions, Sampler
from fedmpi.policies.attacks import Attack
from fedmpi.policies.compression import Compression
from fedmpi.policies.privacy import Privacy
from fedmpi.policies.server_optimizers import ServerOptimizer
from fedmpi.tasks import Task
from fedmpi.training.settings import LocalTraining

#: The options that take the name of a class -> the base class.
COMPONENTS: dict[str, type] = {
    "algorithm": Algorithm,
    "dataset": Dataset,
    "task": Task,
    "partition": Partition,
    "model": Model,
    "sampler": Sampler,
    "server_optimizer": ServerOptimizer,
    "privacy": Privacy,
    "compression": Compression,
    "attack": Attack,
    "availability": Availability,
    "conditions": Conditions,
}
#: Those whose default the data set says.
BY_DATA = {"task"}
#: An option of a component that takes the name of a class -> the base class.
NESTED: dict[str, type] = {"algorithm.generator": Generator}
#: Groups of options.
GROUPS: dict[str, type] = {"local": LocalTraining, "stop": Stopping, "checkpoint": Checkpointing}

#: Groups of options within the options of a class, by the name of the option.
INNER_GROUPS: dict[str, type] = {"lora": LoRA}


def bases() -> list[type]:
    """All base classes of which a subclass can be named."""
    return [*COMPONENTS.values(), *NESTED.values()]


def base_of(option: str) -> type:
    """The base class of an option's values: Model for `model.over`, Generator for `algorithm.generator`."""
    first, *nested = option.split(".")
    base = COMPONENTS[first]
    for name in nested:
        signatures = [inspect.signature(cls).parameters for cls in subclasses(base)]
        annotations = " ".join(str(parameters[name].annotation) for parameters in signatures if name in parameters)
        base = next((taken for taken in bases() if re.search(rf"\b{taken.__name__}\b", annotations)), base)
    return base


def public(base: type) -> list[type]:
    """fedmpi's classes that can be named."""
    ours = [cls for cls in subclasses(base) if cls.__module__.startswith("fedmpi.")]
    return [cls for cls in ours if not (inspect.isabstract(cls) or cls.__name__.startswith("_"))]


def own_class(name: str, base: type) -> type | None:
    """fedmpi's class with this short name, or with this import path in any version of fedmpi.

    Only the last part of such a path counts, because classes may move to other files.
    """
    short = short_name(name)
    return next((cls for cls in public(base) if cls.__name__ == short), None)
