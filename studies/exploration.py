"""What a model learns from long-tailed data, and what can be generated from it: python -m studies.exploration.

The exploration that FedFTG starts from (Zhang et al., CVPR 2022, section 1.1 of the supplement), on real CIFAR-10.

Long tail: models trained on subsets of 5,000 images whose class shares are drawn from a Dirichlet distribution; its
beta is the smaller, the longer the tail. Of each, the accuracy on the balanced test set, and with classes weighted as
in its training.

Pseudo-data: generators are trained so that one of these models takes their images for the class that was asked for,
and that they are as diverse as their noise. A judge, trained on all images, says which of them it takes for it.

By default a small network and few passes, for minutes on two cores; the supplement's network is
`--model ResNet34 --rounds 40 --steps 2000`. Each training is a process of its own, as many at a time as there are
cores; those whose file is there and finished with as many rounds are not repeated.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi import results
from fedmpi.algorithms.toolbox.distillation import diversity_loss
from fedmpi.components import subclasses
from fedmpi.data import Partition
from fedmpi.errors import require
from fedmpi.experiment.command_line import parse
from fedmpi.models.generators import Generator
from fedmpi.results import Run
from fedmpi.results.formats import FORMATS
from studies.runs import train_all

SHAPE, CLASSES = (3, 32, 32), 10
#: One client is plain training. So many passes over a subset, or one over all images, a round.
PROTOCOL = (
    "--dataset CIFAR10 --clients 1 --local.batch_size 50 --local.lr 0.05 --local.momentum 0.9"
    " --local.weight_decay 1e-3 --local.schedule cosine --local.augmentation flip"
)
PASSES = 3
#: Images that the generator learns from at a time; how many of each class are scored.
BATCH, SCORED = 50, 200


class LongTail(Partition):
    """One client with a subset of the samples, its class shares drawn from Dir(beta).

    Args:
        beta: concentration; the smaller, the longer the tail.
        samples: size of the subset; at most as many as a class has.
    """

    def __init__(self, beta: float = 0.5, samples: int = 5000) -> None:
        require(1e-6 <= beta <= 1e6, "beta", beta, "greater than 0 (from 1e-6 to 1e6)")
        require(samples >= 1, "samples", samples, "at least 1")
        self.beta = beta
        self.samples = samples

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        classes, supply = np.unique(labels, return_counts=True)
        require(self.samples <= supply.min(), "samples", self.samples, f"at most {supply.min()}, a class's samples")
        require(clients == 1, "--clients", clients, "1 with LongTail")
        counts = rng.multinomial(self.samples, rng.dirichlet(np.full(len(classes), self.beta)))
        of_each = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
        return [np.concatenate([some[:count] for some, count in zip(of_each, counts, strict=True)])]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.exploration")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data set (default: data)")
    parser.add_argument("--folder", type=Path, default=Path("runs/exploration"), help="(default: runs/exploration)")
    parser.add_argument("--model", default="LeNet", help="(default: LeNet)")
    parser.add_argument("--rounds", type=int, default=5, help=f"of {PASSES} passes over a subset (default: 5)")
    parser.add_argument("--samples", type=int, default=5000, help="of a subset (default: 5000)")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 0.3, 1, 10], help="(default: 0.1 0.3 1 10)")
    parser.add_argument("--seeds", type=int, default=2, help="(default: 2)")
    parser.add_argument("--biased", type=float, help="beta of the model to generate from (default: the second)")
    parser.add_argument("--generator", default="ImageGenerator", help="(default: ImageGenerator)")
    parser.add_argument("--generators", type=int, default=3, help="drawn anew, for a mean of theirs (default: 3)")
    parser.add_argument("--steps", type=int, default=100, help="of a generator's training (default: 100)")
    parser.add_argument("--lr", type=float, default=1e-3, help="a generator's (default: 0.001)")
    chosen = parser.parse_args()
    always = f"{PROTOCOL} --dataset.root {shlex.quote(str(chosen.data))} --model {chosen.model}"
    always += f" --evaluate_every {chosen.rounds}"
    well_trained = chosen.folder / "all.h5"
    experiments = {well_trained: f"{always} --partition IID --local.epochs 1"}  # the longest first
    subsets = {
        (beta, seed): chosen.folder / f"{beta:g}-{seed}.h5"
        for beta, seed in product(chosen.betas, range(chosen.seeds))
    }
    for (beta, seed), path in subsets.items():
        experiments[path] = (
            f"{always} --partition studies.exploration.LongTail --partition.beta {beta}"
            f" --partition.samples {chosen.samples} --local.epochs {PASSES} --seed {seed}"
        )
    if not train_all(experiments, chosen.rounds):
        sys.exit(1)
    gaps = {
        beta: [tail(results.open(path)) for (b, _), path in subsets.items() if b == beta] for beta in chosen.betas
    }
    print(show_gaps(gaps))
    biased = subsets[chosen.biased or chosen.betas[min(1, len(chosen.betas) - 1)], 0]
    networks = [network(results.open(path), experiments[path]) for path in (biased, well_trained)]
    generator = next(cls for cls in subclasses(Generator) if cls.__name__ == chosen.generator)()
    found = []
    for number in range(chosen.generators):
        torch.manual_seed(number)
        module = generator.build(SHAPE, CLASSES)
        train_generator(module, generator.noise, networks[0], chosen.steps, chosen.lr)
        found.append(pseudo_accuracy(module, generator.noise, *networks))
    reached = results.open(well_trained).accuracy().last
    print(f"\npseudo-data of {biased}; the judge has {100 * reached:.2f} % on the test set")
    print(show_quality(results.open(biased), *np.mean(found, 0)))


# Long tail


def tail(run: Run) -> tuple[float, float, float]:
    """The share of the largest class, accuracy on the balanced test set, and with classes as in the training data."""
    counts, by_class = run.partition["label_counts"][0], run.evaluation["per_class_accuracy"][-1]
    shares = counts / counts.sum()
    return float(shares.max()), float(by_class.mean()), float(shares @ by_class)


def show_gaps(gaps: Mapping[float, list[tuple[float, float, float]]]) -> str:
    """A table, the longest tail first, with the mean and the standard deviation over subsets."""
    rows = [["beta", "subsets", "largest class (%)", "balanced test (%)", "as in training (%)", "gap (points)"]]
    for beta, found in sorted(gaps.items()):
        largest, balanced, weighted = 100 * np.array(found).T
        columns = largest, balanced, weighted, weighted - balanced
        rows.append([f"{beta:g}", str(len(found)), *map(_mean, columns)])
    return FORMATS["text"](rows)


def _mean(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


# Pseudo-data


def network(run: Run, options: str) -> nn.Module:
    """The model of a run, frozen."""
    module = parse(shlex.split(options))[0].model.build(SHAPE, CLASSES)
    module.load_state_dict({name: torch.from_numpy(x) for name, x in run.state_dict().items()}, strict=False)
    return module.eval().requires_grad_(False)


def train_generator(module: nn.Module, noise: int, biased: nn.Module, steps: int, lr: float) -> None:
    """Bring a generator to make images that a fixed model takes for what they should be."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    module.train()
    for _ in range(steps):
        z, labels = torch.randn(BATCH, noise), torch.randint(CLASSES, (BATCH,))
        images = module(z, labels)
        loss = cross_entropy(biased(images), labels) + diversity_loss(images.flatten(1), z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def pseudo_accuracy(module: nn.Module, noise: int, *judges: nn.Module) -> NDArray[np.float64]:
    """[judges, classes]: of what part of a class's images each says so."""
    module.eval()
    shares = np.zeros((len(judges), CLASSES))
    for label in range(CLASSES):
        labels = torch.full((SCORED,), label)
        images: Tensor = module(torch.randn(SCORED, noise), labels)
        shares[:, label] = [(judge(images).argmax(1) == labels).double().mean().item() for judge in judges]
    return shares


def show_quality(biased: Run, by_biased: NDArray[np.float64], by_judge: NDArray[np.float64]) -> str:
    """A table, the largest class first, and rank correlations with the number of training images."""
    counts, accuracy = biased.partition["label_counts"][0], biased.evaluation["per_class_accuracy"][-1]
    rows = [
        [
            "class",
            "training images",
            "its accuracy (%)",
            "pseudo-data, it says (%)",
            "pseudo-data, the judge says (%)",
        ]
    ]
    for label in np.argsort(-counts, kind="stable").tolist():
        shares = accuracy[label], by_biased[label], by_judge[label]
        rows.append([str(label), str(counts[label]), *(f"{100 * share:.2f}" for share in shares)])
    lines = [FORMATS["text"](rows)]
    for name, values in (("its accuracy", accuracy), ("what the judge says", by_judge)):
        found = spearmanr(counts, values)
        lines.append(f"rank correlation (Spearman) of training images and {name}: {found[0]:.2f}, p {found[1]:.2g}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
