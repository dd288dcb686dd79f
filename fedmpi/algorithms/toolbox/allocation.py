"""A variational autoencoder that finds groups among a few vectors, and the component of each vector.

Part of DistributionFusion (Duan et al., CVPR 2023). Its paper and published code do not specify the details. From a
vector the encoder infers Kumaraswamy variables lambda, and q_m, the probability of component m for this vector. The
products p_m = lambda_1 .. lambda_m are the sticks of an Indian buffet process (Nalisnick and Smyth, 2017; Singh,
Ling, Doshi-Velez, 2017). The Gumbel trick draws a component. The decoder gets nothing but that component's embedding;
with more information it would ignore the components.

One component among M is drawn, by log q_m. If each component were drawn independently, as in an Indian buffet
process, several groups would share components, and the most probable component of a vector would say little about its
group: `python -m studies.planted_groups` compares both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedmpi.training.flat import FlatModel
from fedmpi.training.optimizers import Adam

#: Uniform numbers are drawn from [EDGE, 1 - EDGE], as in the authors' code.
EDGE = 1e-3
LEAST = 1e-2  # of the Kumaraswamy parameters
EULER = 0.5772156649015329
#: Width of a component's embedding, and of the layers of the encoder; the decoder has them in reverse.
EMBEDDING, HIDDEN = 8, (128, 64)
#: a of the prior Beta(a, 1) of lambda; and the weight of the divergences, reached during the first fit.
PRIOR, DIVERGENCE = 10.0, 0.1
#: Temperature of the draw, at the beginning and from the end of the first fit on.
HOT, COLD = 1.0, 0.3
LEARNING_RATE, WEIGHT_DECAY, CLIP = 3e-3, 1e-4, 5.0


@dataclass(frozen=True)
class Posterior:
    """The output of the encoder for K vectors.

    Attributes:
        zeta, kappa: [K, M] > 0, parameters of the Kumaraswamy distributions.
        offset: [K, M], difference between the logits of q and those of p.
    """

    zeta: Tensor
    kappa: Tensor
    offset: Tensor

    def logits(self, log_lambda: Tensor) -> tuple[Tensor, Tensor]:
        """[K, M] the logarithms of p, and the logits of q, given those of lambda."""
        # Below 1 in float32, so that 1 - p has a logarithm.
        log_p = log_lambda.cumsum(-1).clamp(max=-1e-6)
        return log_p, self.offset + log_p - log_complement(log_p)


class Autoencoder(nn.Module):
    """The network.

    Args:
        inputs: length of a vector.
        outputs: how many of its first elements the decoder reconstructs.
        components: M.
    """

    def __init__(self, inputs: int, outputs: int, components: int) -> None:
        super().__init__()
        wide, narrow = HIDDEN
        self.outputs = outputs
        self.encoder = nn.Sequential(nn.Linear(inputs, wide), nn.LeakyReLU(), nn.Linear(wide, narrow), nn.LeakyReLU())
        self.heads = nn.Linear(narrow, 3 * components)
        self.embedding = nn.Parameter(torch.randn(components, EMBEDDING))
        self.decoder = nn.Sequential(
            nn.Linear(components * EMBEDDING, narrow),
            nn.LeakyReLU(),
            nn.Linear(narrow, wide),
            nn.LeakyReLU(),
            nn.Linear(wide, outputs),
        )

    def posterior(self, x: Tensor) -> Posterior:
        """The posterior of vectors [K, inputs]."""
        zeta, kappa, offset = self.heads(self.encoder(x)).chunk(3, -1)
        return Posterior(functional.softplus(zeta) + LEAST, functional.softplus(kappa) + LEAST, offset)

    def draw(self, logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        """[K, M], relaxed indicators of one component each, given the logits of q and uniform numbers [K, M]."""
        gumbel = -(-uniform.log()).log()
        return ((functional.logsigmoid(logits) + gumbel) / temperature).softmax(-1)

    def losses(self, x: Tensor, uniform: Tensor, temperature: float, divergence: float) -> Tensor:
        """[K], minus the evidence lower bound of vectors [K, inputs], up to constants.

        Args:
            uniform: [2, K, M] random numbers.
            temperature: of the relaxed draw.
            divergence: the weight of the divergences from the priors.
        """
        posterior = self.posterior(x)
        log_p, logits = posterior.logits(log_kumaraswamy(posterior.zeta, posterior.kappa, uniform[0]))
        drawn = self.draw(logits, uniform[1], temperature)
        made = self.decoder((drawn[..., None] * self.embedding).flatten(1))
        error = (made - x[:, : self.outputs]).square().mean(1) / 2
        of_sticks = kumaraswamy_divergence(posterior.zeta, posterior.kappa, PRIOR)
        return error + divergence * (of_sticks + bernoulli_divergence(logits, log_p)).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """[K, M], log q of vectors [K, inputs] at the posterior mean of lambda."""
        posterior = self.posterior(x)
        _, logits = posterior.logits(log_kumaraswamy_mean(posterior.zeta, posterior.kappa))
        return functional.logsigmoid(logits)


def fit(model: FlatModel, moments: Tensor, done: int, x: Tensor, steps: int, rng: np.random.Generator) -> Tensor:
    """Train an `Autoencoder` on all of some vectors [K, inputs] at once, in place.

    Args:
        moments: [2, parameters], moments of Adam.
        done: number of Adam's steps so far. In a first fit (0 steps), the temperature falls and the weight of the
            divergences rises.

    Returns: The new moments.
    """
    shape = 2, len(x), len(model.module.get_parameter("embedding"))
    parameters = model.weights[:, : model.layout.parameters]
    optimizer = Adam(model.gradient.shape, model.device, WEIGHT_DECAY)
    optimizer.first[0], optimizer.second[0] = moments.to(model.device)
    optimizer.steps = done
    for step in range(steps):
        share = 1.0 if done else step / steps
        uniform = torch.from_numpy(rng.uniform(EDGE, 1 - EDGE, shape)).to(x)
        temperature, divergence = HOT * (COLD / HOT) ** share, DIVERGENCE * min(1.0, 2 * share)
        model.backward(model.module.losses(x, uniform, temperature, divergence))  # type: ignore[operator]
        with torch.no_grad():
            model.gradient.mul_((CLIP / model.gradient.norm()).clamp(max=1))
            optimizer.advance()
            optimizer.step(parameters, model.gradient, LEARNING_RATE)
    return torch.cat((optimizer.first, optimizer.second)).cpu()


@torch.no_grad()
def log_probabilities(model: FlatModel, x: Tensor) -> NDArray[np.float64]:
    """[K, M], log q of vectors [K, inputs] by an `Autoencoder`."""
    found: Tensor = model.module(x)
    return found.double().cpu().numpy()


# Kumaraswamy variables, of density a b x^(a-1) (1 - x^a)^(b-1) on (0, 1)


def log_kumaraswamy(a: Tensor, b: Tensor, uniform: Tensor) -> Tensor:
    """The logarithms of Kumaraswamy variables from uniform ones: (1 - u^(1/b))^(1/a). Gradients flow to a and b."""
    return log_complement(uniform.log() / b) / a


def log_kumaraswamy_mean(a: Tensor, b: Tensor) -> Tensor:
    """log(b B(1 + 1/a, b))."""
    return b.log() + torch.lgamma(1 + 1 / a) + torch.lgamma(b) - torch.lgamma(1 + 1 / a + b)


def kumaraswamy_divergence(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """KL(Kumaraswamy(a, b) || Beta(alpha, 1)), in closed form: the general case's series vanishes for beta = 1."""
    expected = -EULER - torch.digamma(b) - 1 / b
    return (a - alpha) / a * expected + (a * b).log() - math.log(alpha) - (b - 1) / b


def bernoulli_divergence(logits: Tensor, log_p: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(logits)) || Bernoulli(p))."""
    of_one = functional.logsigmoid(logits) - log_p
    of_zero = functional.logsigmoid(-logits) - log_complement(log_p)
    q = logits.sigmoid()
    return q * of_one + (1 - q) * of_zero


def log_complement(log_x: Tensor) -> Tensor:
    """log(1 - x), from log x < 0."""
    return (-torch.expm1(log_x)).log()
