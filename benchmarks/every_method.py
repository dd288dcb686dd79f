"""Every method of fedmpi, with options that make it quick: what comparisons of all methods run."""

from __future__ import annotations

import inspect

from fedmpi.algorithms import Algorithm
from fedmpi.components import subclasses

SMALL = "--clients 5 --sampler All --rounds 2 --local.steps 2 --model MLP --model.hidden [9] --model.norm batch"
_GENFL = (
    "--algorithm.generator CVAE --algorithm.generator.hidden [9] --algorithm.generator_rounds 2"
    " --algorithm.synthetic 100 --algorithm.pretrain_epochs 1 --algorithm.cas_epochs 1"
)
#: What methods need to be quick, or to have something to remember after one round.
OPTIONS = {
    "Bulyan": "--algorithm.faulty 0",
    "CFL": "--algorithm.warmup 0 --algorithm.mean_below 1e6 --algorithm.largest_above 0",
    "FedAsync": "--sampler Uniform --algorithm.concurrency 3",
    "FedBuff": "--sampler Uniform --algorithm.concurrency 3",
    "FedDF": "--algorithm.generator_steps 2 --algorithm.student_steps 2",
    "FedFTG": "--algorithm.iterations 2",
    "FedGen": "--algorithm.steps 3",
    "GenFL": _GENFL,
    "Krum": "--algorithm.faulty 1",
}


#: Methods that need a network with low-rank adapters.
NEED_ADAPTERS = ("FFALoRA", "FedExLoRA")


def methods() -> dict[str, str]:
    """Name -> options of a small run, for all methods that fedmpi ships and that take any network."""
    shipped = [cls for cls in subclasses(Algorithm) if cls.__module__.startswith("fedmpi.")]
    names = [cls.__name__ for cls in shipped if not (inspect.isabstract(cls) or cls.__name__.startswith("_"))]
    return {
        name: f"{SMALL} --algorithm {name} {OPTIONS.get(name, '')}".strip()
        for name in names
        if name not in NEED_ADAPTERS
    }
