"""FedFTG's comparison on CIFAR-10 and Fashion-MNIST, at a size for two cores.

The paper's eight methods (Zhang et al., CVPR 2022, supplement) with its settings of each. Batches of 50, learning
rates that fall by 0.998 per round, weight decay and clipping are the paper's, too. Accuracy is that on 2,000 of the
test images.

    cifar10        100 equally large clients with class shares from Dirichlet(0.3), 10 per round, two local epochs
                   instead of five, a learning rate of 0.1, 100 rounds instead of 1,000, and the CNN of FedDyn's paper
                   instead of a ResNet; bfloat16, one seed
    fashion_mnist  20 such clients, 5 per round, LeNet with batch normalisation, 20 local steps at a learning rate of
                   0.05, 40 rounds; three seeds. FedFTG is also trained with the two other ways to normalise the
                   student.

A cell is DATA/METHOD/SEED, such as cifar10/fedftg/0. `--draw` draws what FedFTG's generators make of Fashion-MNIST.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product
from pathlib import Path

from studies.study import Files, Study

COMMON = (
    "--dataset Subset --partition DirichletPrior --partition.alpha 0.3 --weighting uniform --local.batch_size 50"
    " --local.schedule exponential --local.decay 0.998 --local.weight_decay 1e-3 --local.clip_norm 10"
)
EXPERIMENTS = {
    "cifar10": "--rounds 100 --dataset.over CIFAR10 --dataset.test_samples 2000 --model CifarCNN --clients 100"
    " --cohort 10 --local.epochs 2 --local.lr 0.1 --local.precision bf16 --evaluate_every 2",
    "fashion_mnist": "--rounds 40 --dataset.over FashionMNIST --dataset.test_samples 2000 --model LeNet --clients 20"
    " --cohort 5 --local.steps 20 --local.lr 0.05",
}
METHODS = {
    "fedavg": "--algorithm FedAvg",
    "fedprox": "--algorithm FedProx --algorithm.mu 1e-4",
    "moon": "--algorithm MOON",
    "feddyn": "--algorithm FedDyn --algorithm.alpha 0.01",
    "scaffold": "--algorithm SCAFFOLD",
    "fedgen": "--algorithm FedGen",
    "feddf": "--algorithm FedDF",
    "fedftg": "--algorithm FedFTG",
}
STUDENTS = {
    "fedftg_restored": "--algorithm FedFTG --algorithm.student_mode restored",
    "fedftg_eval": "--algorithm FedFTG --algorithm.student_mode eval",
}
CHOSEN = {"cifar10": (METHODS, range(1)), "fashion_mnist": (METHODS | STUDENTS, range(3))}
TARGETS = {"cifar10": "0.6 0.65 0.68", "fashion_mnist": "0.75 0.8 0.82"}


def show(experiment: str, files: Files) -> None:
    """Print the accuracy of each method."""
    methods, _ = CHOSEN[experiment]
    files.show_results("table", *(f"{experiment}/{method}/*" for method in methods))


def show_rounds(experiment: str, files: Files) -> None:
    """Print the rounds that each method takes to some accuracies."""
    methods, _ = CHOSEN[experiment]
    options = f"--costs --targets {TARGETS[experiment]} --reference FedAvg"
    files.show_results("rounds", *(f"{experiment}/{method}/*" for method in methods), options=options)


def draw(files: Files, folder: Path) -> None:
    """Four samples of each class by the generator of each run of FedFTG: four rows per run, one column per class."""
    import numpy as np
    import torch
    from PIL import Image

    from fedmpi import results
    from fedmpi.data import FashionMNIST
    from fedmpi.models.generators.images import ImageGenerator

    rows = []
    for path in files.whole("fashion_mnist/fedftg/*"):
        generator = ImageGenerator().build((1, 28, 28), FashionMNIST.classes)
        tensors = results.open(path).tensors("generator_weights")
        generator.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()}, strict=False)
        noise = torch.randn(4, generator.of_noise.in_features, generator=torch.Generator().manual_seed(0))
        for one in noise:
            with torch.no_grad():
                images = generator.eval()(one.expand(FashionMNIST.classes, -1), torch.arange(FashionMNIST.classes))
            rows.append(torch.cat(list(images[:, 0]), 1))
    seen = torch.cat(rows) * FashionMNIST.std[0] + FashionMNIST.mean[0]
    grid = Image.fromarray((255 * seen.clamp(0, 1)).numpy().astype(np.uint8))
    grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST).save(folder / "fedftg_samples.png")


STUDY = Study(
    module="studies.distillation",
    cells={
        f"{experiment}/{method}/{seed}": f"{COMMON} {EXPERIMENTS[experiment]} --seed {seed} {options}"
        for experiment, (methods, seeds) in CHOSEN.items()
        for seed, (method, options) in product(seeds, methods.items())
    },
    tables={
        **{f"accuracy_{experiment}": partial(show, experiment) for experiment in CHOSEN},
        **{f"rounds_{experiment}": partial(show_rounds, experiment) for experiment in CHOSEN},
    },
    draw=draw,
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
