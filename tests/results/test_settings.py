from __future__ import annotations

from typing import Any

import pytest

from fedmpi.results.settings import by_name, describe, labels, methods, names, same_but_seed, table


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
        == "Permuted (over Dirichlet (alpha 1e-05, root x))"
    )
    assert describe({"class_path": "a.b.IID"}) == "IID"
    assert describe({"epochs": 2, "lr": 0.1}) == "epochs 2, lr 0.1"
    assert (
        describe({"class_path": "a.b.Read", "init_args": {"path": "data/table.csv"}}) == "Read (path data/table.csv)"
    )
    assert describe("my_package.Mine") == "my_package.Mine", "which may be a file's name"
    assert describe(1.5) == "1.5"


def of(section: str = "algorithm", cls: str = "mine.Own", **arguments: Any) -> dict[str, Any]:
    """Settings with a component of this class."""
    others = {"algorithm": "FedAvg", "dataset": "Digits", "output": "a.h5", "overwrite": False, "seed": 0}
    return {**others, section: {"class_path": cls, "init_args": arguments}}


def test_only_the_name_of_a_class_is_shortened() -> None:
    """Values with a dot in them are what they are, and classes of one name in two modules are not the same."""
    files = [of("dataset", path="table.csv"), of("dataset", path="small.csv")]
    assert same_but_seed(files[0]) != same_but_seed(files[1])
    assert table(files)["path"] == ["table.csv", "small.csv"]
    assert labels(files) == ["path table.csv", "path small.csv"]
    ours, mine, yours = (of(cls=cls) for cls in ("fedmpi.algorithms.fedavg.FedAvg", "mine.FedAvg", "yours.FedAvg"))
    assert len({same_but_seed(one) for one in (ours, mine, yours)}) == 3
    assert table([ours, mine, yours])["method"] == ["FedAvg", "mine.FedAvg", "yours.FedAvg"]
    assert methods([mine, ours]) == ["mine.FedAvg", "FedAvg"]
    assert methods([mine]) == ["FedAvg"]
    for same in ("fedmpi.algorithms.FedAvg", "FedAvg"):
        assert same_but_seed(ours) == same_but_seed(of(cls=same)), "of fedmpi a name is enough"
        assert labels([ours, of(cls=same)]) == ["", ""]


@pytest.mark.parametrize("name", ["root", "output", "checkpoint", "resume", "overwrite", "seed"])
def test_an_option_of_a_component_is_a_setting_whatever_its_name(name: str) -> None:
    options: list[dict[str, Any]] = [{name: value} for value in (1, 2)]
    one, other = (of(**option) for option in options)
    deep, deeper = (of(base={"class_path": "mine.Base", "init_args": {name: value}}) for value in (1, 2))
    for runs in ([one, other], [deep, deeper]):
        assert same_but_seed(runs[0]) != same_but_seed(runs[1])
        assert table(runs)["method"] == [f"Own ({name} 1)", f"Own ({name} 2)"]
        assert labels(runs) == [f"{name} 1", f"{name} 2"]
    assert by_name(one)[f"algorithm.{name}"] == "1"


def test_how_a_run_is_launched_is_no_setting() -> None:
    launched = {"output": "b.h5", "overwrite": True, "resume": True, "checkpoint": {"keep": True}}
    assert (
        by_name(of()) == by_name({**of(), **launched}) == {"algorithm": "mine.Own", "dataset": "Digits", "seed": "0"}
    )


def test_runs_on_other_data_are_told_apart() -> None:
    """By where the data lie, or else by their checksums; where the data are the same, their place says nothing."""

    def pictures(root: str, checksum: str | None = None, **options: Any) -> dict[str, Any]:
        settings = of("dataset", "fedmpi.data.ImageFolder", root=root, **options)
        return {**settings, "data_sha256": checksum} if checksum else settings

    three, two = pictures("three", "33" * 32), pictures("two", "22" * 32)
    moved, replaced = pictures("elsewhere", "33" * 32), pictures("three", "44" * 32)
    assert table([three, two]) == {"method": ["FedAvg"] * 2, "root": ["three", "two"]}
    assert same_but_seed(three) != same_but_seed(two)
    assert same_but_seed(three) == same_but_seed(moved)
    assert table([three, moved]) == {"method": ["FedAvg"] * 2}
    assert labels([three, moved]) == ["", ""]
    assert same_but_seed(three) != same_but_seed(replaced)
    assert table([three, replaced])["data"] == ["33333333", "44444444"]
    assert table([three, moved, two])["data"] == ["33333333", "33333333", "22222222"]
    old = [pictures(root) for root in ("three", "two")]
    assert table(old)["root"] == ["three", "two"], "of which nobody knows more"
    assert same_but_seed(old[0]) != same_but_seed(old[1])
    small, large = pictures("three", "55" * 32, size=32), pictures("three", "66" * 32, size=64)
    assert table([small, large]) == {"method": ["FedAvg"] * 2, "size": ["32", "64"]}, "which is why the data differ"


def test_proxy_data_are_data() -> None:
    def distilled(root: str, checksum: str) -> dict[str, Any]:
        proxy = {"class_path": "fedmpi.data.CIFAR100", "init_args": {"root": root}}
        return {**of(cls="fedmpi.algorithms.FedDF", proxy=proxy), "proxy_sha256": checksum}

    assert same_but_seed(distilled("a", "1" * 64)) == same_but_seed(distilled("b", "1" * 64))
    assert same_but_seed(distilled("a", "1" * 64)) != same_but_seed(distilled("a", "2" * 64))


def test_names_that_two_settings_share_are_told_in_full() -> None:
    both = [
        {**of("dataset", path=path), "partition": {"class_path": "a.B", "init_args": {"path": path}}} for path in "xy"
    ]
    assert labels(both) == ["dataset.path x, partition.path x", "dataset.path y, partition.path y"]
    runs = [of("dataset", runs=number) for number in (1, 2)]
    assert list(table(runs, taken=["runs"])) == ["method", "dataset.runs"]
