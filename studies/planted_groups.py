"""Whether the autoencoder of DistributionFusion finds known groups: python -m studies.planted_groups.

The data are vectors as long as the statistics of a LeNet. They belong to three groups, whose means are drawn from a
normal distribution, and have noise of a given deviation. Prints for every seed the adjusted Rand index between groups
and most probable components, the components of each group, the l1 distance of the weights omega from FedAvg's, and
the share of the variance of omega that lies between groups; the rest is noise. It needs no data and takes a minute.

The autoencoder is compared with one that draws each component independently, as in an Indian buffet process; with
`--wide`, also with the layers of 1,024 and 512 units of the authors' earlier code, at a learning rate of 0.001.
"""

from __future__ import annotations

import argparse
import time
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.algorithms.toolbox import allocation
from fedmpi.algorithms.toolbox.allocation import Autoencoder, fit, log_probabilities
from fedmpi.algorithms.toolbox.fusion import between_components, fuse, responsibilities, scaled
from fedmpi.federation.evaluation import adjusted_rand_index
from fedmpi.training.flat import FlatModel

INPUTS, OUTPUTS, COMPONENTS, STEPS = 192, 96, 15, 250
SETTINGS = {
    "50 clients, noise 0.3": ((25, 15, 10), 0.3),
    "50 clients, noise 1": ((25, 15, 10), 1.0),
    "10 clients, noise 0.3": ((5, 3, 2), 0.3),
    "20 clients, no groups": ((20,), 1.0),
}


class Separate(Autoencoder):
    """Each component is drawn by itself, so that a vector may have several: by Gumbel, two categories each."""

    def draw(self, logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        soft = ((logits + uniform.logit()) / temperature).sigmoid()
        return (soft > 0.5).float() + soft - soft.detach()


def planted(sizes: tuple[int, ...], noise: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Standardised vectors [K, INPUTS] of groups of these sizes, and the group [K] of each."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    centers = rng.standard_normal((len(sizes), INPUTS))
    x = centers[group] + noise * rng.standard_normal((len(group), INPUTS))
    return scaled(x, x.mean(0)), group


def log_q_of(
    x: NDArray[np.float64], kind: type[Autoencoder], seed: int, components: int = COMPONENTS
) -> NDArray[np.float64]:
    """[K, M], after a first fit to vectors [K, INPUTS]."""
    torch.manual_seed(seed)
    model = FlatModel(kind(INPUTS, OUTPUTS, components), torch.device("cpu"))
    seen, rng = torch.from_numpy(x).float(), np.random.default_rng(seed)
    fit(model, torch.zeros(2, model.layout.parameters), 0, seen, STEPS, rng)
    return log_probabilities(model, seen)


def report(kind: type[Autoencoder], seeds: int) -> None:
    """Print a line for each setting and seed."""
    for name, (sizes, noise) in SETTINGS.items():
        print(f"\n{kind.__name__}, {name}")
        for seed in range(seeds):
            x, group = planted(sizes, noise, seed)
            began = time.process_time()
            log_q = log_q_of(x, kind, seed)
            took, mass = time.process_time() - began, np.full(len(x), 100)
            found = log_q.argmax(1)
            line = f"  seed {seed}: ARI {adjusted_rand_index(found, group):5.2f}, components"
            line += "".join(f" {np.unique(found[group == number]).tolist()}" for number in range(len(sizes)))
            for how in ("hard", "soft"):
                r, alive = responsibilities(log_q, mass, how)
                omega = fuse(r, mass, 0.5, None).weights
                l1, between = np.abs(omega - 1 / len(x)).sum(), between_components(omega, mass, group)
                line += f"; {how}: {len(alive)} alive, l1 {l1:.3f}, between groups {between:.2f}"
            print(f"{line}; {took:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.planted_groups")
    parser.add_argument("--seeds", type=int, default=4, help="(default: 4)")
    parser.add_argument("--wide", action="store_true", help="wide layers as well, which take minutes")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    report(Autoencoder, chosen.seeds)
    report(Separate, chosen.seeds)
    if chosen.wide:
        with patch.multiple(allocation, HIDDEN=(1024, 512), LEARNING_RATE=1e-3):
            print("\nlayers of 1,024 and 512 units, learning rate 0.001")
            report(Separate, chosen.seeds)


if __name__ == "__main__":
    main()
