from __future__ import annotations

from fedmpi.results.settings import describe, labels, names, table


def test_runs_are_told_apart_by_what_differs_in_their_settings() -> None:
    def settings(name: str, seed: int, **arguments: float) -> dict:
        return {
            "algorithm": {"class_path": f"fedmpi.algorithms.{name.lower()}.{name}", "init_args": arguments},
            "dataset": "Digits",
            "local": {"lr": 0.1, "clip": None},
            "seed": seed,
            "output": f"{name}-{seed}.h5",
        }

    runs = [settings("FedAvg", 0), settings("FedProx", 0, mu=0.1), settings("FedProx", 1, mu=1.0)]
    assert labels(runs) == ["FedAvg, seed 0", "FedProx (mu 0.1), seed 0", "FedProx (mu 1.0), seed 1"]
    assert labels(runs[:2]) == ["FedAvg", "FedProx"], "whose mu is one of a kind"
    assert labels(runs[1:]) == ["mu 0.1, seed 0", "mu 1.0, seed 1"], "whose class is the same"
    assert names(runs) == ["FedAvg", "FedProx (mu 0.1)", "FedProx (mu 1.0)"], "whose seeds need not be told"
    assert table(runs) == {"method": ["FedAvg", "FedProx (mu 0.1)", "FedProx (mu 1.0)"]}
    assert labels([runs[0], {**runs[0], "local": {"lr": 0.1, "clip": 1}}]) == ["", "clip 1"]
    assert labels(runs[:1] * 2) == ["", ""]


def test_settings_read_like_prose() -> None:
    inner = {
        "class_path": "fedmpi.data.Dirichlet",
        "init_args": {"alpha": 1e-5, "root": "x", "minimum": None},
    }
    assert (
        describe({"class_path": "a.b.Permuted", "init_args": {"over": inner}})
        == "Permuted (over Dirichlet (alpha 1e-05))"
    )
    assert describe({"class_path": "a.b.IID"}) == "IID"
    assert describe({"epochs": 2, "lr": 0.1}) == "epochs 2, lr 0.1"
    assert describe("my_package.Mine") == "Mine"
    assert describe(1.5) == "1.5"
