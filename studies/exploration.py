"""What a model learns from long-tailed data, and what can be generated from it.

The exploration that FedFTG starts from (Zhang et al., CVPR 2022, section 1.1 of the supplement), on CIFAR-10.

    gaps         models trained on subsets of 5,000 images whose class shares are drawn from a Dirichlet distribution;
    the
                 smaller its beta, the longer the tail. Of each, the accuracy on the balanced test set, and with
                 classes weighted as in its training
    pseudo_data  generators are trained so that one of these models takes their images for the class that was asked
    for,
                 and that they are as diverse as their noise. A judge, trained on all images, says which of them it
                 takes for it. This table needs the whole files of the models

By default a small network and few passes, for minutes on two cores. The supplement's network is
`--options '--model ResNet34 --rounds 40 --evaluate_every 40' --results elsewhere`.

A cell is BETA/SEED, such as 0.1/0, or all/0 for the judge.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi import results
from fedmpi.algorithms.toolbox.distillation import diversity_loss
from fedmpi.data import Partition
from fedmpi.errors import require
from fedmpi.experiment.command_line import parse
from fedmpi.models.generators.images import ImageGenerator
from fedmpi.results import Run
from studies.study import Files, Study

SHAPE, CLASSES = (3, 32, 32), 10
#: One client is plain training, with three passes over a subset, or one over all images, per round.
PROTOCOL = (
    "--rounds 5 --evaluate_every 5 --model LeNet --dataset CIFAR10 --clients 1 --local.batch_size 50"
    " --local.lr 0.05 --local.momentum 0.9"
    " --local.weight_decay 1e-3 --local.schedule cosine --local.augmentation flip"
)
BETAS = ("0.1", "0.3", "1", "10")
SEEDS = range(2)
#: The model to generate from, and the generators that are trained for a mean of theirs.
BIASED, GENERATORS = "0.3/0", 3
STEPS, LR = 100, 1e-3
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


def cells() -> dict[str, str]:
    """Name -> options of all experiments, the longest first."""
    subset = "--partition studies.exploration.LongTail --local.epochs 3"
    return {"all/0": f"{PROTOCOL} --partition IID --local.epochs 1"} | {
        f"{beta}/{seed}": f"{PROTOCOL} {subset} --partition.beta {beta} --seed {seed}"
        for beta in BETAS
        for seed in SEEDS
    }


# Long tail


def tail(run: Run) -> tuple[float, float, float]:
    """The share of the largest class, accuracy on the balanced test set, and with classes as in the training data."""
    counts, by_class = run.partition["label_counts"][0], run.evaluation["per_class_accuracy"][-1]
    shares = counts / counts.sum()
    return float(shares.max()), float(by_class.mean()), float(shares @ by_class)


def show_gaps(gaps: Mapping[float, list[tuple[float, float, float]]]) -> list[list[str]]:
    """A table, the longest tail first, with the mean and the standard deviation over subsets."""
    rows = [["beta", "subsets", "largest class (%)", "balanced test (%)", "as in training (%)", "gap (points)"]]
    for beta, found in sorted(gaps.items()):
        largest, balanced, weighted = 100 * np.array(found).T
        columns = largest, balanced, weighted, weighted - balanced
        rows.append([f"{beta:g}", str(len(found)), *map(_mean, columns)])
    return rows


def _mean(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


# Pseudo-data


def network(run: Run, model: str) -> nn.Module:
    """The network of a run, of the model of this name, frozen."""
    module = parse(["--model", model])[0].model.build(SHAPE, CLASSES)
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


def show_quality(
    biased: Run, by_biased: NDArray[np.float64], by_judge: NDArray[np.float64]
) -> tuple[list[list[str]], list[str]]:
    """A table, the largest class first, and lines with rank correlations with the number of training images."""
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
    lines = []
    for name, values in (("its accuracy", accuracy), ("what the judge says", by_judge)):
        found = spearmanr(counts, values)
        lines.append(f"rank correlation (Spearman) of training images and {name}: {found[0]:.2f}, p {found[1]:.2g}")
    return rows, lines


def show_tails(files: Files) -> None:
    """Print the gap between the balanced and the long-tailed test."""
    found = {float(beta): [tail(results.open(path)) for path in files.matching(f"{beta}/*")] for beta in BETAS}
    if all(found.values()):
        files.show(show_gaps(found))


def show_pseudo_data(files: Files) -> None:
    """Train generators, and print what the models say of their images."""
    paths = [*files.whole(BIASED), *files.whole("all/0")]
    if len(paths) < 2:
        print(f"needs the whole files of the cells {BIASED} and all/0 in {files.runs}")
        return
    biased, well_trained = map(results.open, paths)
    networks = [network(run, run.attributes["model"]) for run in (biased, well_trained)]
    generator = ImageGenerator()
    found = []
    for number in range(GENERATORS):
        torch.manual_seed(number)
        module = generator.build(SHAPE, CLASSES)
        train_generator(module, generator.noise, networks[0], STEPS, LR)
        found.append(pseudo_accuracy(module, generator.noise, *networks))
    rows, lines = show_quality(biased, *np.mean(found, 0))
    files.show(rows)
    print("\n".join(lines))
    print(f"the judge has {100 * well_trained.statistics().last:.2f} % on the test set")


STUDY = Study(
    module="studies.exploration",
    cells=cells(),
    tables={"gaps": show_tails, "pseudo_data": show_pseudo_data},
    root="--dataset.root",
    unused=(),
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
