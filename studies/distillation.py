"""FedFTG's comparison on Fashion-MNIST, at a size for two cores.

The paper's eight methods (Zhang et al., CVPR 2022, supplement) with its settings of each, measured on 2,000 of the
test images: LeNet with batch normalisation, 20 equally large clients with class shares from Dirichlet(0.3), of whom 5
take part in each of 40 rounds, 20 local steps in batches of 50 at a learning rate of 0.05 that falls by 0.998 per
round, weight decay and clipping as in the paper. FedFTG is also trained with the two other ways to normalise the
student.

A cell is METHOD/SEED, such as fedftg/0. `--draw` draws what FedFTG's generators make.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

from studies.study import Files, Study

PROTOCOL = (
    "--rounds 40 --dataset Subset --dataset.over FashionMNIST --dataset.test_samples 2000 --partition DirichletPrior"
    " --partition.alpha 0.3 --model LeNet --clients 20 --cohort 5"
    " --weighting uniform --local.steps 20 --local.batch_size 50 --local.lr 0.05 --local.schedule exponential"
    " --local.decay 0.998 --local.weight_decay 1e-3 --local.clip_norm 10"
)
METHODS = {
    "fedavg": "--algorithm FedAvg",
    "fedprox": "--algorithm FedProx --algorithm.mu 1e-4",
    "moon": "--algorithm MOON",
    "feddyn": "--algorithm FedDyn --algorithm.alpha 0.01",
    "scaffold": "--algorithm SCAFFOLD",
    "fedgen": "--algorithm FedGen",
    "feddf": "--algorithm FedDF",
    "fedftg": "--algorithm FedFTG",
    "fedftg_restored": "--algorithm FedFTG --algorithm.student_mode restored",
    "fedftg_eval": "--algorithm FedFTG --algorithm.student_mode eval",
}
SEEDS = range(3)


def show(files: Files) -> None:
    """Print the accuracy of each method."""
    files.show_results("table", *(f"{method}/*" for method in METHODS), options="--costs")


def show_rounds(files: Files) -> None:
    """Print the rounds that each method takes to 75, 80 and 82 %."""
    options = "--costs --targets 0.75 0.8 0.82 --reference FedAvg"
    files.show_results("rounds", *(f"{method}/*" for method in METHODS), options=options)


def draw(files: Files, folder: Path) -> None:
    """Four samples of each class by the generator of each run of FedFTG: four rows per run, one column per class."""
    import numpy as np
    import torch
    from PIL import Image

    from fedmpi import results
    from fedmpi.data import FashionMNIST
    from fedmpi.models.generators.images import ImageGenerator

    rows = []
    for path in files.whole("fedftg/*"):
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
        f"{method}/{seed}": f"{PROTOCOL} --seed {seed} {METHODS[method]}" for seed, method in product(SEEDS, METHODS)
    },
    tables={"accuracy": show, "rounds": show_rounds},
    draw=draw,
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
