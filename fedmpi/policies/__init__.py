"""Who takes part in a round, and which rank trains whom.

Of the clients that can be reached (`availability`) some are asked (`sampling`), the updates of some of these arrive
(`conditions`), and those are spread over the ranks (`placement`).
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
