"""Who takes part in a round (`sampling`) and which rank trains whom (`placement`)."""

from fedmpi.scheduling.sampling import (
    All,
    Bernoulli,
    Cohort,
    RoundRobin,
    Sampler,
    Uniform,
    Weighted,
    Weighting,
)

__all__ = ["All", "Bernoulli", "Cohort", "RoundRobin", "Sampler", "Uniform", "Weighted", "Weighting"]
