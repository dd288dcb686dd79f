"""What can be named on the command line: the options that take a class by its name, and the classes of each."""

from __future__ import annotations

import inspect
import re

from fedmpi.algorithms import Algorithm
from fedmpi.components import subclasses
from fedmpi.data import Dataset, Partition
from fedmpi.described import short_name
from fedmpi.experiment.settings import Checkpointing
from fedmpi.models import Model
from fedmpi.models.generators import Generator
from fedmpi.policies import Availability, Conditions, Sampler
from fedmpi.policies.attacks import Attack
from fedmpi.policies.compression import Compression
from fedmpi.policies.privacy import Privacy
from fedmpi.policies.server_optimizers import ServerOptimizer
from fedmpi.training.settings import LocalTraining

#: The options that take a class by its name: the base of what may be named.
COMPONENTS: dict[str, type] = {
    "algorithm": Algorithm,
    "dataset": Dataset,
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
#: What only options of components take, and one of these options.
NESTED: dict[str, type] = {"algorithm.generator": Generator}
#: Groups of options.
GROUPS: dict[str, type] = {"local": LocalTraining, "checkpoint": Checkpointing}


def bases() -> list[type]:
    """Of what a subclass can be named, for whatever option."""
    return [*COMPONENTS.values(), *NESTED.values()]


def base_of(option: str) -> type:
    """Of what the option takes a subclass: `model.over` a Model, `algorithm.generator` a Generator."""
    first, *nested = option.split(".")
    base = COMPONENTS[first]
    for name in nested:
        signatures = [inspect.signature(cls).parameters for cls in subclasses(base)]
        annotations = " ".join(str(parameters[name].annotation) for parameters in signatures if name in parameters)
        base = next((taken for taken in bases() if re.search(rf"\b{taken.__name__}\b", annotations)), base)
    return base


def public(base: type) -> list[type]:
    """The classes of fedmpi's own that can be named."""
    ours = [cls for cls in subclasses(base) if cls.__module__.startswith("fedmpi.")]
    return [cls for cls in ours if not (inspect.isabstract(cls) or cls.__name__.startswith("_"))]


def own_class(name: str, base: type) -> type | None:
    """The class of fedmpi's own that is meant by a short name, or by an import path of whatever version of fedmpi.

    Such a path counts by its last part, because settings outlive the files that classes lie in.
    """
    short = short_name(name)
    return next((cls for cls in public(base) if cls.__name__ == short), None)
