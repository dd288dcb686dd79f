"""Choices of an experiment that are no method: who takes part in a round, what becomes of updates, the server's step.

Of the clients that can be reached (`availability`) some are asked (`sampling`), and the updates of some of these
arrive (`conditions`), perhaps changed on the way (`attacks`, `privacy`, `compression`).

May import from training, data, results and mpi; federation, algorithms and experiment import from here.
"""

from fedmpi.policies.availability import Always, Availability, Diurnal, Independent, Markov, Trace
from fedmpi.policies.conditions import Conditions, Heterogeneous, Ideal, RoundPlan, Workload
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
    "Markov",
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
