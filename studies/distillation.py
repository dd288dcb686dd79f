"""FedFTG's comparison on real Fashion-MNIST, at a size for two cores: python -m studies.distillation --data DATA.

The paper's eight methods (Zhang et al., CVPR 2022, supplement) with its settings of each, measured on 2,000 of the
test images: LeNet with batch normalisation, 20 equally large clients with class shares from Dirichlet(0.3), of whom
5 take part in a round, 20 local steps with batches of 50 at a learning rate of 0.05 that falls by 0.998 a round,
weight decay and clipping as in the paper. Each run is a process of its own on one rank, as many at a time as there
are cores; those whose file is there and finished with as many rounds are not repeated. Prints tables at the end:
they are `python -m fedmpi.results table` and `rounds`.

    python -m studies.distillation --data DATA --picture docs/fedftg_samples.png

draws what FedFTG's generators have come to make, a row a seed and a column a class.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import product
from pathlib import Path

from fedmpi.results.__main__ import main as show
from studies.runs import train_all

PROTOCOL = (
    "--dataset Subset --dataset.over FashionMNIST --dataset.test_samples 2000 --partition DirichletPrior"
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
}
TARGETS = ("0.7", "0.75")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.distillation")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data set (default: data)")
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"), help="(default: runs/distillation)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: 10)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="(default: all)")
    parser.add_argument("--picture", type=Path, help="draw samples of FedFTG's generators into this PNG")
    chosen = parser.parse_args()
    experiments = {
        chosen.folder / f"{method}-{seed}.h5": f"{PROTOCOL} --dataset.over.root {shlex.quote(str(chosen.data))}"
        f" --seed {seed} {METHODS[method]}"
        for method, seed in product(chosen.methods, range(chosen.seeds))
    }
    went_well = train_all(experiments, chosen.rounds)
    if chosen.picture:
        draw([path for path in experiments if path.name.startswith("fedftg")], chosen.picture)
    files = [str(path) for path in experiments]
    status = show(["table", *files, "--costs"])
    print()
    rounds = show(["rounds", *files, "--costs", "--targets", *TARGETS, "--reference", "FedAvg"])
    sys.exit(max(status, rounds, not went_well))


def draw(runs: list[Path], picture: Path) -> None:
    """Four samples of each class by the generator of each of these runs: a grid of rows and classes."""
    import numpy as np
    import torch
    from PIL import Image

    from fedmpi import results
    from fedmpi.data import FashionMNIST
    from fedmpi.models.generators.images import ImageGenerator

    rows = []
    for path in runs:
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
    picture.parent.mkdir(parents=True, exist_ok=True)
    grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST).save(picture)


if __name__ == "__main__":
    main()
