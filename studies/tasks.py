"""One run of every task on real data, macro F1 over three seeds, and how optimistic a choice on the test set is.

The runs of tasks have 20 rounds with 10 of 50 clients, one local epoch each, a tenth of the training samples for
validation, and clients split by Dirichlet(0.5) over the task's strata (next characters: at random, because authors of
tweets have fewer than ten each). Macro F1 and the choice of the best round are those of Fashion-MNIST split by
Dirichlet(0.1), where classes are rare at most clients.

A cell is tasks/TASK/0 or choice/METHOD/SEED.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedmpi import results
from fedmpi.results import Run
from studies.study import Files, Study

ROUND = "--clients 50 --cohort 10 --rounds 20 --validation 0.1 --local.epochs 1"
TASKS = {
    "classification": f"{ROUND} --dataset FashionMNIST --dataset.root {{data}} --local.batch_size 50",
    "regression": f"{ROUND} --dataset Diabetes --model MLP --model.hidden [32] --clients 20 --local.lr 0.02",
    "multilabel": f"{ROUND} --dataset studies.garments.Garments --dataset.root {{data}} --local.batch_size 50",
    "segmentation": f"{ROUND} --dataset MNISTMasks --dataset.root {{data}} --model UNet --model.width 8"
    " --local.batch_size 50 --local.steps 30 --local.optimizer adam --local.lr 0.003 --evaluate_every 4",
    "language_model": f"{ROUND} --dataset TweetCharacters --dataset.root {{data}} --model NextToken --partition IID"
    " --local.lr 1",
}
METHODS = {
    "fedavg": "",
    "fedprox": "--algorithm FedProx --algorithm.mu 0.01",
    "scaffold": "--algorithm SCAFFOLD",
}
SEEDS = range(3)
CHOICE = f"{TASKS['classification']} --partition.alpha 0.1 --metrics [macro_f1,balanced_accuracy]"


def show_tasks(files: Files) -> None:
    """Print the main metric of each task: before training, after the last round, and at the best round."""
    rows = [["task", "data set", "model", "metric", "before", "last", "best on validation", "round"]]
    for path in files.matching("tasks/*"):
        run = results.open(path)
        found, described = run.statistics(), run.described(run.main_column)
        scale, digits = (100, 2) if described.unit else (1, 3)
        numbers = [f"{scale * value:.{digits}f}" for value in (found.initial, found.last, found.best)]
        unit = f" ({described.unit})" if described.unit else ""
        data, model = (run.attributes[name] for name in ("dataset", "model"))
        rows.append([run.task, data, model, f"{run.main_metric}{unit}", *numbers, str(found.best_round)])
    files.show(rows)


def show_macro_f1(files: Files) -> None:
    """Print macro F1 of each method, mean and standard deviation over the seeds."""
    files.show_results("table", "choice/*", options="--column test_macro_f1 --statistic best")


def show_optimism(files: Files) -> None:
    """Print the test accuracy at the round that validation chooses, and that of the best round on the test set."""
    rows = [["method", "chosen on validation (%)", "chosen on test (%)", "optimism (points)", "last (%)"]]
    for method in METHODS:
        runs = [results.open(path) for path in files.matching(f"choice/{method}/*")]
        if len(runs) > 1:
            chosen, best, last = (np.array(each) for each in zip(*map(_values, runs), strict=True))
            cells = [f"{part.mean():.2f} ± {part.std(ddof=1):.2f}" for part in (chosen, best, best - chosen, last)]
            rows.append([runs[0].attributes["algorithm"], *cells])
    files.show(rows)


def _values(run: Run) -> tuple[float, float, float]:
    """Test accuracies in %: at the round that is best on the validation set, the largest one, and the last one."""
    test, validation = (100 * run.rounds[f"{kind}_accuracy"] for kind in ("test", "validation"))
    return float(test[np.nanargmax(validation)]), float(np.nanmax(test)), float(test[-1])


def draw(files: Files, folder: Path) -> None:
    """The main metric of each task, by round, on the test set and the validation set."""
    import matplotlib.pyplot as plt

    paths: Sequence[Path] = files.matching("tasks/*")
    figure, axes = plt.subplots(1, len(paths), figsize=(3 * len(paths), 2.6), layout="constrained", squeeze=False)
    for axis, path in zip(axes[0], paths, strict=True):
        run = results.open(path)
        for kind, style in (("test", "-"), ("validation", "--")):
            values = run.rounds[f"{kind}_{run.main_metric}"]
            measured = ~np.isnan(values)  # not every round is
            axis.plot(run.rounds["round"][measured], values[measured], style, label=kind)
        axis.set(title=run.task, xlabel="round", ylabel=run.main_metric.replace("_", " "))
    axes[0][0].legend()
    figure.savefig(folder / "tasks.png", dpi=150)
    plt.close(figure)


STUDY = Study(
    module="studies.tasks",
    cells={
        **{f"tasks/{name}/0": f"{options} --seed 0" for name, options in TASKS.items()},
        **{
            f"choice/{method}/{seed}": f"{CHOICE} {options} --seed {seed}"
            for method, options in METHODS.items()
            for seed in SEEDS
        },
    },
    tables={"tasks": show_tasks, "macro_f1": show_macro_f1, "optimism": show_optimism},
    root="",
    draw=draw,
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
