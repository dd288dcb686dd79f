"""Which setting a sweep chooses, from files with made-up numbers; the oracle is NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.results import Results
from fedmpi.sweep.plan import Setting
from fedmpi.sweep.report import report
from tests.results.made_runs import weights

SEEDS, ROUNDS = 3, 5
SETTINGS = [Setting(f"lr_{lr}", [], {"lr": lr}) for lr in ("0.01", "0.1", "1")]


def made(path: Path, columns: dict[str, NDArray[np.float64]], **attributes: str) -> results.Run:
    """A finished run whose /rounds have these columns [rounds]."""
    about = {"config": "rounds: 5\n", "algorithm": "FedAvg", "dataset": "Digits", "model": "Linear", "seed": 0}
    file = Results(path, {**about, **attributes}, {"ranks": 1})
    file.set_partition(np.ones((20, 10), dtype=np.int32), np.full(20, 10))
    file.set_model(["weight", "bias"], [(3, 2), (3,)], [0, 6], weights)
    for number in range(ROUNDS):
        values = {name: column[number] for name, column in columns.items()}
        file.add_round({"round": number + 1, "seconds": 1.0, "bytes_up": 1, "bytes_down": 1, **values})
    file.finish("finished")
    return results.open(path)


def values(seed: int) -> NDArray[np.float64]:
    """[settings, seeds, rounds], of which the first round was not evaluated."""
    found = np.random.default_rng(seed).uniform(0.1, 0.9, (len(SETTINGS), SEEDS, ROUNDS))
    found[:, :, 0] = np.nan
    return found


def at(found: NDArray[np.float64], rounds: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.take_along_axis(found, rounds[:, :, None], 2)[:, :, 0]


def text(found: NDArray[np.float64], decimals: int = 2) -> str:
    return f"{found.mean():.{decimals}f} ± {found.std(ddof=1):.{decimals}f}"


def test_by_validation(tmp_path: Path) -> None:
    """Each run at its best round by the validation set; the test set would choose another setting and rounds."""
    validation, test = values(2), values(102)
    runs = [
        [
            made(tmp_path / f"{s}{r}.h5", {"validation_accuracy": validation[s, r], "test_accuracy": test[s, r]})
            for r in range(SEEDS)
        ]
        for s in range(len(SETTINGS))
    ]
    rounds = np.nanargmax(validation, 2)
    decisive, chosen = at(validation, rounds), at(test, rounds)
    best = int(decisive.mean(1).argmax())
    on_test = np.nanmax(test, 2)
    assert best != int(on_test.mean(1).argmax()) != int(chosen.mean(1).argmax())
    assert (rounds != np.nanargmax(test, 2)).any()
    table, last = report(SETTINGS, runs, SEEDS)
    head, *rows = [line.split("  ") for line in table.splitlines()]
    assert [cell.strip() for cell in head if cell] == [
        "lr",
        "seeds",
        "validation accuracy (%)",
        "test accuracy (%)",
        "best",
    ]
    for number, row in enumerate(rows):
        cells = [cell.strip() for cell in row if cell]
        assert cells == [
            SETTINGS[number].values["lr"],
            "3",
            text(100 * decisive[number]),
            text(100 * chosen[number]),
            *["*"] * (number == best),
        ]
    lr = SETTINGS[best].values["lr"]
    assert last == f"best on validation: lr {lr}: test accuracy {text(100 * chosen[best])} % (seeds: 3)"

    runs[0][0] = made(tmp_path / "without.h5", {"test_accuracy": test[0, 0]})
    with pytest.raises(BadInput, match="runs with and without a validation set cannot be compared"):
        report(SETTINGS, runs, SEEDS)


def test_a_metric_of_which_less_is_better(tmp_path: Path) -> None:
    """And the best setting has all seeds and finite values."""
    about = {"main_metric": "rmse", "metrics": json.dumps({"rmse": {"better": "lower", "unit": "cm"}})}
    found = values(7)
    found[0, 1, 1:] = -np.inf  # would be the best
    runs = [
        [made(tmp_path / f"{s}{r}.h5", {"test_rmse": found[s, r]}, **about) for r in range(SEEDS)]
        for s in range(len(SETTINGS))
    ]
    lowest = np.nanmin(found, 2)
    best = 1 + int(lowest[1:].mean(1).argmin())
    lr = SETTINGS[best].values["lr"]
    *_, last = report(SETTINGS, runs, SEEDS)
    assert last == f"best on test, optimistic: lr {lr}: test rmse {text(lowest[best], 4)} cm (seeds: 3)"

    runs[best].pop()
    table, last = report(SETTINGS, runs, SEEDS)
    assert last.startswith(f"best on test, optimistic: lr {SETTINGS[3 - best].values['lr']}: ")
    assert table.splitlines()[1 + best].split()[1] == "2"
    runs[3 - best].pop()
    assert report(SETTINGS, runs, SEEDS)[-1] == "no setting has finished with all seeds"

    runs[0].append(made(tmp_path / "other.h5", {"test_accuracy": found[1, 1]}))
    with pytest.raises(BadInput, match=r"rmse, .*other\.h5 has accuracy: such runs cannot be compared"):
        report(SETTINGS, runs, SEEDS)
