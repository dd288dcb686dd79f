"""Choices of an experiment besides the method: which clients take part, what happens to updates, the server's step.

Some of the clients that can be reached (`availability`) are asked to train (`sampling`). The updates of some of these
arrive (`conditions`). On the way, updates may be changed (`attacks`, `privacy`, `compression`).

May import from training, data, results and mpi; federation, algorithms and experiment import from here.
"""

from fedmpi.policies.availability import Always, Availability, Diurnal, Independent, Intervals, Markov, Trace
from fedmpi.policies.conditions import Conditions, Heterogeneous, Ideal, RoundPlan, Workload
from fedmpi.policies.phones import Phones
from fedmpi.policies.sampling import (
    All,
    Bernoulli,
    Cohort,
    FixedList,
    Pool,
    PowerOfChoice,
    RoundRobin,
    Sampler,
    Stratified,
    Uniform,
    Weighted,
    Weighting,
)

__all__ = [
    "All",
    "Always",
    "Availability",
    "Bernoulli",
    "Cohort",
    "Conditions",
    "Diurnal",
    "FixedList",
    "Heterogeneous",
    "Ideal",
    "Independent",
    "Intervals",
    "Markov",
    "Phones",
    "Pool",
    "PowerOfChoice",
    "RoundPlan",
    "RoundRobin",
    "Sampler",
    "Stratified",
    "Trace",
    "Uniform",
    "Weighted",
    "Weighting",
    "Workload",
]
