"""Client-level differential privacy: the global models do not reveal whether a client took part.

McMahan, Ramage, Talwar, Zhang: Learning Differentially Private Recurrent Language Models. ICLR 2018.
https://arxiv.org/abs/1710.06963

The server is trusted. Client updates are clipped, and noise is added once to their sum, before anything else is done
with it. All of a client's samples are protected together. The guarantee covers only the global models. Training
losses, numbers of samples and other contents of the results file are not private.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import inf, nan
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import named, require
from fedmpi.lazy import torch
from fedmpi.options import Configured, acts_as, with_options
from fedmpi.policies.sampling import All, Bernoulli, Sampler, Uniform
from fedmpi.randomness import stream
from fedmpi.ranges import NonNegativeFloat, interval
from fedmpi.typing import Tensor

# Orders of the Renyi divergences. More orders hardly change epsilon, and take seconds for sampling without
# replacement.
ORDERS = (*range(2, 33), 36, 40, 48, 56, 64, 80, 96, 128, 192, 256, 512)


@dataclass
class Released:
    """Number of noisy means that a job has formed, for all networks together, because their privacy costs add up."""

    means: int = 0


class Privacy(metaclass=Configured):
    """Base of the privacy mechanisms at the server."""

    #: Maximum L2 norm of a client's change on arrival; None: no maximum.
    clip: float = inf

    @abstractmethod
    def noise(self, size: int, cohort: int, seed: int, round: int, number: int) -> NDArray[np.float32] | None:
        """[size], the noise that is added to the mean change; None: no noise.

        Args:
            cohort: the number by which the sum of changes is divided.
            number: of the mean, if a round has several.
        """

    def check(self, sampler: Sampler) -> None:
        """Raise BadInput if there is no privacy bound for this way of drawing clients."""

    @abstractmethod
    def epsilon(self, releases: int, sampler: Sampler, cohort: int, clients: int) -> float | None:
        """What so many noisy means cost; infinite without noise, NaN without the library; None: nobody counts."""


class NoPrivacy(Privacy):
    """The server sees exact means."""

    def noise(self, size: int, cohort: int, seed: int, round: int, number: int) -> None:
        return None

    def epsilon(self, releases: int, sampler: Sampler, cohort: int, clients: int) -> None:
        return None


@with_options
class CentralDP(Privacy):
    """Clipped updates and Gaussian noise at a trusted server (DP-FedAvg; McMahan et al., 2018).

    Each client's update is clipped to the L2 norm `clip`. The server adds noise of standard deviation
    noise_multiplier * clip to every coordinate of the sum, and divides by the expected number of clients. Therefore
    it needs `--weighting uniform` and a network without running statistics (`--model.norm group`). The column epsilon
    has the privacy budget spent so far. With `--sampler Bernoulli` or All, neighbouring data sets differ by adding or
    removing a client; with Uniform, whose number of clients is fixed, by replacing a client. Computing epsilon needs
    a library: pip install 'fedmpi[privacy]'.

    Args:
        clip: maximum L2 norm of a client's update, over all that it sends.
        noise_multiplier: standard deviation of the noise in units of `clip`; 0 gives no privacy.
        delta: probability with which the guarantee may fail; should be below 1 / clients.
        accountant: rdp: Renyi divergences. pld: privacy loss distributions, which is tighter, takes longer, and is
            not available with Uniform.
    """

    clip: Annotated[float, interval("(0, inf]")] = 1.0
    noise_multiplier: NonNegativeFloat = 1.0
    delta: Annotated[float, interval("(0, 1)")] = 1e-5
    accountant: Literal["rdp", "pld"] = "rdp"

    def __post_init__(self) -> None:
        is_right = self.clip < inf or not self.noise_multiplier
        require(is_right, "clip", self.clip, "finite, because the noise is proportional to it")

    def noise(self, size: int, cohort: int, seed: int, round: int, number: int) -> NDArray[np.float32] | None:
        if not self.noise_multiplier:
            return None
        drawn = stream(seed, f"privacy {number}", round).standard_normal(size, dtype=np.float32)
        return drawn * np.float32(self.noise_multiplier * self.clip / cohort)

    def check(self, sampler: Sampler) -> None:
        kinds = (Bernoulli, All, Uniform) if self.accountant == "rdp" else (Bernoulli, All)
        allowed = f"{' or '.join(kind.__name__ for kind in kinds)} for accountant {self.accountant}"
        require(any(acts_as(sampler, kind) for kind in kinds), "sampler", named(sampler), allowed)

    def epsilon(self, releases: int, sampler: Sampler, cohort: int, clients: int) -> float:
        if not self.noise_multiplier:
            return inf
        try:
            from dp_accounting import (
                GaussianDpEvent,
                NeighboringRelation,
                PoissonSampledDpEvent,
                SampledWithoutReplacementDpEvent,
            )
            from dp_accounting.pld import PLDAccountant
            from dp_accounting.rdp import RdpAccountant
        except ImportError:
            return nan
        self.check(sampler)
        replaces = isinstance(sampler, Uniform) and cohort < clients
        relation = NeighboringRelation.REPLACE_ONE if replaces else NeighboringRelation.ADD_OR_REMOVE_ONE
        accountant = PLDAccountant(relation) if self.accountant == "pld" else RdpAccountant(ORDERS, relation)
        if replaces:  # replacing a client changes the sum by up to twice the clipping norm
            event = SampledWithoutReplacementDpEvent(clients, cohort, GaussianDpEvent(self.noise_multiplier / 2))
        elif isinstance(sampler, Bernoulli):
            event = PoissonSampledDpEvent(cohort / clients, GaussianDpEvent(self.noise_multiplier))
        else:
            event = GaussianDpEvent(self.noise_multiplier)
        return float(accountant.compose(event, releases).get_epsilon(self.delta))


def clipped(changes: Tensor, limit: float) -> Tensor:
    """The changes [K, d], clipped to the norm `limit`. Shorter ones stay bit-identical."""
    # One after another and in float64, because a client's bits must not depend on the other clients.
    norms = torch.stack([change.double().norm() for change in changes]) if len(changes) else changes.new_empty(0)
    return changes * (limit / norms).clamp(max=1).to(changes.dtype)[:, None]
