"""Tables: exact arrays of small CSV and Parquet files, refusals in one line, and runs that equal those of a class."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import results
from fedmpi.data import Arrays, BreastCancer, Dataset, Diabetes, Table, Users, Wine, make_split, prepared
from fedmpi.errors import BadInput, option_of
from fedmpi.experiment.command_line import parse
from fedmpi.tasks import Classification, LanguageModel, MultiLabel, Regression
from tests.support.experiments import read
from tests.support.mpi import REPOSITORY, fedmpi, mpirun, succeed

pa = pytest.importorskip("pyarrow")

#: Of a patient: a number, a text, true or false, a constant, the class, two numbers, two labels, the user, the part.
NAMES = ("age", "colour", "smokes", "ward", "outcome", "days", "cost", "fever", "cough", "clinic", "part")
ROWS: list[tuple[Any, ...]] = [
    (
        *(20 + n, ("red", "blue", "green")[n % 3], n % 2 == 0, 7, ("well", "ill")[n % 4 == 3], n * n / 2, 3.0 - n),
        *(n % 2, int(n > 5), ("north", "east")[n // 6], ("train", "test")[n in (4, 7, 11)]),
    )
    for n in range(12)
]
IS_TEST = np.isin(np.arange(12), (4, 7, 11))
OTHERS = ("days", "cost", "fever", "cough")


def write(path: Path, names: tuple[str, ...] = NAMES, rows: list[tuple[Any, ...]] = ROWS, between: str = ",") -> Path:
    """Write a table in the format that the ending of the name says."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(pa.table({name: [row[k] for row in rows] for k, name in enumerate(names)}), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=between)
        writer.writerow(names)
        writer.writerows([[str(x).lower() if isinstance(x, bool) else x for x in row] for row in rows])
    return path


def scaled(column: Any, is_test: Any = IS_TEST) -> Any:
    """Oracle: the textbook's formula."""
    numbers = np.array(column, np.float64)
    return (numbers - numbers[~is_test].mean()) / numbers[~is_test].std()


def load(table: Dataset) -> Arrays:
    with option_of("dataset"):
        return prepared.load(table, lambda line: None)


@pytest.mark.parametrize("name", ["patients.csv", "patients.parquet"])
def test_every_column_by_hand(name: str, tmp_path: Path) -> None:
    """Oracle: written out column by column; categories are sorted."""
    path = write(tmp_path / name)
    table = Table(path, "outcome", user="clinic", split="part", drop=OTHERS)
    said: list[str] = []
    arrays = table.read(said.append)
    age, colour, smokes = ([row[k] for row in ROWS] for k in range(3))
    expected = np.column_stack(
        [
            scaled(age),
            *([c == known for c in colour] for known in ("blue", "green", "red")),
            *([not s for s in smokes], smokes, np.zeros(12)),
        ]
    )
    np.testing.assert_array_equal(arrays.train_x, expected[~IS_TEST].astype(np.float32))
    np.testing.assert_array_equal(arrays.test_x, expected[IS_TEST].astype(np.float32))
    labels = np.array([0 if row[4] == "ill" else 1 for row in ROWS])
    assert (arrays.train_y.tolist(), arrays.test_y.tolist()) == (labels[~IS_TEST].tolist(), labels[IS_TEST].tolist())
    assert arrays.train_users is not None
    assert arrays.test_users is not None
    assert (arrays.train_users.tolist(), arrays.test_users.tolist()) == ([1] * 5 + [0] * 4, [1, 0, 0])
    assert said == [
        "Table: classes of outcome: 0 = ill, 1 = well",
        "Table: constant in the training samples: ward",
        "Table: number of features: 7, from 4 columns",
    ]
    again = Table(path, "outcome", split="part", drop=(*OTHERS, "clinic"))
    assert again.classes == table.classes == 2, "known on ranks that do not read"
    assert load(again).checksum == load(Table(path, "outcome", split="part", drop=(*OTHERS, "clinic"))).checksum


def test_both_formats_and_all_separators_are_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"target": "outcome", "split": "part", "drop": OTHERS}
    paths = [write(tmp_path / f"{n}.csv", between=between) for n, between in enumerate(",;\t|")]
    paths.append(write(tmp_path / "p.parquet"))
    paths[0].write_bytes(b"\xef\xbb\xbf" + paths[0].read_bytes())  # a spreadsheet's mark of UTF-8
    assert len({load(Table(path, **options)).checksum for path in paths}) == 1


def test_a_parquet_file_of_pandas(tmp_path: Path) -> None:
    """Oracle: the same table as CSV; pandas' categories, nullable integers and 32-bit numbers."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS, columns=list(NAMES))
    frame = frame.astype({"colour": "category", "outcome": "category", "age": "Int64", "days": "float32"})
    frame.to_parquet(tmp_path / "p.parquet")
    options: dict[str, Any] = {"target": "outcome", "split": "part"}
    plain = load(Table(write(tmp_path / "p.csv"), **options))
    assert load(Table(tmp_path / "p.parquet", **options)).checksum == plain.checksum


def test_regression(tmp_path: Path) -> None:
    """Oracle: both targets, standardised by the nine training rows, or not."""
    path = write(tmp_path / "t.csv")
    days, cost = ([row[k] for row in ROWS] for k in (5, 6))
    for standardise, expected in {"all": [scaled(days), scaled(cost)], "features": [days, cost]}.items():
        table = Table(path, ("days", "cost"), Regression(), split="part", standardise=standardise)  # type: ignore[arg-type]
        arrays = load(table)
        np.testing.assert_array_equal(arrays.train_y, np.column_stack(expected)[~IS_TEST].astype(np.float32))
        np.testing.assert_array_equal(arrays.test_y, np.column_stack(expected)[IS_TEST].astype(np.float32))
        assert arrays.train_y.dtype == np.float32
        assert table.classes == 0
        assert np.allclose(arrays.train_x[:, 0].mean(), 0, atol=1e-6)
    raw = load(Table(path, "days", Regression(), split="part", standardise="none"))
    assert raw.train_x[:3, 0].tolist() == [20, 21, 22]
    assert raw.train_y.shape == (9, 1)


def test_several_labels(tmp_path: Path) -> None:
    """Oracle: the columns, of 0 and 1 or of true and false."""
    arrays = load(Table(write(tmp_path / "t.parquet"), ("fever", "smokes"), MultiLabel(), split="part"))
    expected = np.array([[row[7], row[2]] for row in ROWS])
    assert arrays.train_y.dtype == np.uint8
    np.testing.assert_array_equal(arrays.train_y, expected[~IS_TEST])
    np.testing.assert_array_equal(arrays.test_y, expected[IS_TEST])


def test_what_the_training_samples_do_not_have(tmp_path: Path) -> None:
    """Oracle: zeros for a category of a test sample; the mean and a category of their own for missing values."""
    rows = [(1.0, "a", 0, "train"), (3.0, None, 1, "train"), (None, "b", 0, "train"), (7.0, "a", 1, "train")]
    rows += [(None, "c", 0, "test"), (1.0, None, 1, "test")]
    for name in ("gaps.csv", "gaps.parquet"):
        path = write(tmp_path / name, ("x", "kind", "y", "part"), rows)
        arrays = load(Table(path, "y", split="part", missing="fill"))
        x = scaled([1, 3, 11 / 3, 7, 11 / 3, 1], np.arange(6) > 3)
        hot = [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]  # a, b, missing
        found = np.concatenate([arrays.train_x, arrays.test_x])
        np.testing.assert_array_equal(found, np.column_stack([x, hot]).astype(np.float32))


def test_drawn_test_samples(tmp_path: Path) -> None:
    """Oracle: the share of each class, rounded down; the same samples in each process, and no order of the file."""
    rows = [(float(n), "abc"[min(n // 40, 2)]) for n in range(97)]  # 40, 40 and 17
    path = write(tmp_path / "t.csv", ("x", "y"), rows)
    table = Table(path, "y", test_share=0.3, standardise="none")
    arrays = load(table)
    assert np.bincount(arrays.test_y).tolist() == [12, 12, 5]
    tests = arrays.test_x[:, 0].astype(int)
    assert {*tests.tolist()} | {*arrays.train_x[:, 0].astype(int).tolist()} == {*range(97)}
    assert tests.tolist() == sorted(tests.tolist())
    assert np.diff(tests).std() > 0
    np.testing.assert_array_equal(load(Table(path, "y", test_share=0.3, standardise="none")).test_x, arrays.test_x)
    assert len(load(Table(path, "x", Regression(), test_share=0.3)).test_y) == 29


def test_a_file_per_user(tmp_path: Path) -> None:
    """Oracle: the rows of the files in the order of their names; columns by name; numbers of both kinds."""
    write(tmp_path / "lima.csv", ("x", "y"), [(1, 0), (2, 1), (3, 1)])
    write(tmp_path / "kiel.parquet", ("y", "x"), [(0, 0.5), (1, 0.25), (1, 4.0)])
    write(tmp_path / "oslo.csv", ("x", "y"), [])
    (tmp_path / "notes.txt").write_text("not a table")
    table = Table(tmp_path, "y", test_share=0.34, standardise="none")
    assert [path.name for path in table.sources()] == ["kiel.parquet", "lima.csv", "oslo.csv"]
    arrays = load(table)
    assert arrays.train_users is not None
    assert arrays.test_users is not None
    x, users = np.concatenate([arrays.train_x, arrays.test_x])[:, 0], [*arrays.train_users, *arrays.test_users]
    pairs = zip(users, x.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0.25), (0, 0.5), (0, 4), (1, 1), (1, 2), (1, 3)]
    split = make_split(Users(), arrays.train_y, arrays.test_y, 2, 2, 0, arrays.train_users, arrays.test_users)
    for train, test in zip(split.train, split.test, strict=True):
        assert len({*arrays.train_users[train].tolist(), *arrays.test_users[test].tolist()}) == 1


LONG = 10**16  # float64 has every second whole number from here on


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_large_numbers_stay_apart(ending: str, tmp_path: Path) -> None:
    """Oracle: Python's whole numbers."""
    ids = [LONG + (7 * n) % 10 for n in range(60)]
    rows = [(n, -LONG - n % 3, person, 2**62 + n % 2) for n, person in enumerate(ids)]
    path = write(tmp_path / f"t{ending}", ("x", "y", "person", "other"), rows)
    said: list[str] = []
    arrays = Table(path, "y", user="person", standardise="none", drop=("other",)).read(said.append)
    assert said[0] == f"Table: classes of y: 0 = {-LONG - 2}, 1 = {-LONG - 1}, 2 = {-LONG}"
    assert arrays.train_users is not None
    rows_of = arrays.train_x[:, 0].astype(int)
    assert arrays.train_users.tolist() == [ids[n] - LONG for n in rows_of]
    assert arrays.train_y.tolist() == [2 - n % 3 for n in rows_of]
    assert Table(path, "other").classes == 2


def test_users_are_known_by_their_text(tmp_path: Path) -> None:
    """Oracle: by hand; users in the order of their numbers, or else of their texts."""

    def users(column: list[Any], name: str = "t.csv") -> list[int]:
        rows = [(n, n % 2, "test" if n >= len(column) else "train", [*column, column[0]][n]) for n in range(13)]
        arrays = load(Table(write(tmp_path / name, ("x", "y", "part", "user"), rows), "y", user="user", split="part"))
        assert arrays.train_users is not None
        return arrays.train_users.tolist()

    assert users([1, "01", 10, 2, "001", 1, "01", "1.0", 9, 9, 9, 1]) == [2, 1, 6, 4, 0, 2, 1, 3, 5, 5, 5, 2]
    assert users([1, "b", 10, 2, "a", 1, 1, 1, 1, 1, 1, 1]) == [0, 4, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0]
    assert users([5, 10, 2, -1] * 3, "t.parquet") == [2, 3, 1, 0] * 3
    assert users(["5", "10", "05", "x"] * 3, "t.parquet") == [2, 1, 0, 3] * 3
    assert users([0.5, 10.0, 2.0, -1.0] * 3, "t.parquet") == [1, 3, 2, 0] * 3


LINE = "a,b\n"
REFUSED: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "no numbers that are classes": (
        LINE + "1,0.5\n" * 6,
        {},
        "--dataset.target = b: has numbers such as 0.5; set --dataset.task Regression, or choose a column of classes",
    ),
    "numbers that are not exact": (
        LINE + "1,99999999999999999998\n1,99999999999999999999\n" * 5,
        {},
        "--dataset.target = b: has numbers such as 1e+20, which are not exact: save them as texts",
    ),
    "too many classes": (
        LINE + "".join(f"1,{n}\n" for n in range(9)),
        {},
        "--dataset.target = b: has 9 different values in 9 rows, too many for classes; set --dataset.task Regression",
    ),
    "names": (
        LINE + "".join(f"1,n{n}\n" for n in range(9)),
        {},
        "--dataset.target = b: has 9 different values in 9 rows, too many for classes; choose a column of classes",
    ),
    "one class": (
        LINE + "1,2\n" * 9,
        {},
        "--dataset.target = b: has only one value, 2: choose a column of classes",
    ),
    "texts to regress": (
        LINE + "1,x\n" * 9,
        {"task": Regression()},
        "--dataset.target = b: has texts such as x, but Regression needs numbers",
    ),
    "infinite targets": (
        LINE + "1,inf\n" * 9,
        {"task": Regression()},
        "--dataset.target = b: has numbers that are infinite, or too large for float32",
    ),
    "labels": (
        LINE + "1,0\n1,2\n" * 3,
        {"task": MultiLabel()},
        "--dataset.target = b: has 2.0, but MultiLabel needs 0 and 1",
    ),
    "a missing target": (
        LINE + "1,0\n2,\n1,1\n3,\n",
        {"missing": "fill"},
        "{path}: column b has 2 missing values, the first in row 2: fill them in, or remove these rows",
    ),
    "a missing feature": (
        LINE + "1,0\n" * 3 + "NA,1\n" + "1,1\n" * 5,
        {},
        "{path}: column a has 1 missing value, the first in row 4: fill them in, or set --dataset.missing fill",
    ),
    "no value": (
        LINE + ",0\n,1\n" * 5,
        {"missing": "fill"},
        "{path}: column a has no value in the training samples: add --dataset.drop [a]",
    ),
    "no part": (
        "a,b,c\n" + "1,0,train\n1,1,test\n" * 5 + "1,1,valid\n",
        {"split": "c"},
        "--dataset.split = c: has valid, but only train and test are allowed",
    ),
    "one part": (
        "a,b,c\n" + "1,0,Train\n1,1,TRAIN\n" * 5,
        {"split": "c"},
        "--dataset.split = c: has no row with test",
    ),
    "few rows": (
        LINE + "1,0\n1,1\n" * 3,
        {},
        "--dataset.test_share = 0.2: must be larger, because none of 6 rows would be a test sample",
    ),
    "only the target": ("b\n" + "0\n1\n" * 5, {}, "{path} has no features: options name all of its columns"),
    "dates": (
        LINE + "2020-01-01,0\n2020-01-02,1\n" * 5,
        {},
        "{path}: column a has dates or times: make numbers or texts of them, or add --dataset.drop [a]",
    ),
    "names as features": (
        LINE + "".join(f"n{n:02},{n % 2}\n" for n in range(60)),
        {},
        "{path}: column a has 48 different texts in 48 training samples: make numbers of texts such as n00, or add"
        " --dataset.drop [a]",
    ),
    "infinite": (
        LINE + "1,0\ninf,1\n" * 5,
        {},
        "{path}: column a has numbers that are infinite, or too large for float32: replace them",
    ),
    "a near name": (
        "price,size\n1,2\n",
        {"target": "Price"},
        "--dataset.target = Price: {path} has no such column; the nearest name is price",
    ),
    "no near name": (
        LINE + "1,2\n",
        {"user": "zebra"},
        "--dataset.user = zebra: {path} has no such column; its columns are a, b",
    ),
    "twice": ("a,a,b\n1,2,3\n", {}, "{path} has two columns named a: rename one"),
    "nameless": (
        ",a,b\n0,1,2\n",
        {},
        "{path}: column 1 has no name (row numbers of pandas? save with index=False)",
    ),
    "empty": ("", {}, "{path} is empty: its first line must have the names of the columns"),
    "only names": (LINE, {}, "{path} has no rows"),
    "too many fields": (
        LINE + "1,2\n1,2,3\n",
        {},
        "{path} cannot be read as CSV: CSV parse error: Row #3: Expected 2 columns, got 3: 1,2,3",
    ),
    "latin-1": ("a,b\n1,caf\xe9\n".encode("latin-1"), {}, "{path} is not UTF-8 (byte 9): save it as UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    """Oracle: the line."""
    content, options, message = REFUSED[case]
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as error:
        load(Table(path, **{"target": "b", **options}))
    assert str(error.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ("a", "b")}, r"target = \['a', 'b'\]: must be one column for Classification"),
        ({"target": ()}, r"target = \[\]: must be one or more columns"),
        ({"target": "a", "drop": ("a",)}, "target = a: must be a column that no other option names"),
        ({"task": LanguageModel()}, "task = LanguageModel: must be Classification, Regression or MultiLabel"),
        ({"test_share": 1.0}, r"test_share = 1\.0: must be above 0 and below 1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=f"^{message}$"):
        Table(Path("t.csv"), **options)


def test_paths(tmp_path: Path) -> None:
    """Oracle: the lines."""

    def refused(path: Path, message: str, **options: Any) -> None:
        with pytest.raises(BadInput) as error:
            load(Table(path, "y", **options))
        assert str(error.value) == message.format(path)

    folder = tmp_path / "users"
    refused(folder, "--dataset.path = {}: must be an existing file or folder")
    folder.mkdir()
    refused(folder, "--dataset.path = {}: must be a folder with files named .csv or .parquet")
    (folder / "t.txt").touch()
    refused(folder / "t.txt", "--dataset.path = {}: must be a file named .csv or .parquet, or a folder of such files")
    write(folder / "a.csv", ("x", "y"), [(1, 0), (2, 1)] * 5)
    refused(folder, "--dataset.user = x: must be null, because each file of the folder is a user", user="x")
    write(folder / "b.csv", ("x", "y"), [(None, 0), (2, 1)])
    gap = "{}: column x has 1 missing value, the first in row 1 of b.csv: fill them in, or set --dataset.missing fill"
    refused(folder, gap)
    write(folder / "b.csv", ("x", "y"), [("text", 0)])
    different = "{}: the files have values of different types: Unable to merge: Field x has incompatible types"
    refused(folder, f"{different}: int64 vs string")
    write(folder / "b.csv", ("y", "z"), [(0, 0)])
    refused(folder, "{}: only a.csv has a column x: all files must have the same columns")
    (folder / "b.csv").rename(folder / "a.parquet")
    refused(folder, "--dataset.path = {}: must be a folder with one file per user")
    with pytest.raises(BadInput, match=r"a\.parquet cannot be read as Parquet: Parquet magic bytes not found"):
        load(Table(folder / "a.parquet", "y"))
    (folder / "a.parquet").write_bytes(write(tmp_path / "whole.parquet").read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"a\.parquet cannot be read as Parquet: [^\n]*$"):
        load(Table(folder / "a.parquet", "y"))


def test_nested_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", ("x", "y"), [([1, 2], 0), ([3], 1)] * 5)
    with pytest.raises(
        BadInput, match=r"column x has nested values: make numbers or texts of them, or add --dataset"
    ):
        load(Table(path, "y"))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "fedmpi.data._frames", raising=False)
    with pytest.raises(BadInput, match=r"^data set Table needs pyarrow \(.*\): pip install 'fedmpi\[tables\]'$"):
        load(Table(write(tmp_path / "t.csv"), "outcome"))


def test_the_command_line(tmp_path: Path) -> None:
    """Oracle: the options that the class gets, from the line and from the settings that the results file keeps."""
    lists = ["--dataset.target", "[days,cost]", "--dataset.drop", "[ward]", "--dataset.task", "Regression"]
    experiment, config = parse(["--dataset", "Table", "--dataset.path", "t.csv", *lists, "--model", "MLP"])
    (tmp_path / "c.yaml").write_text(config)
    for made in (experiment.dataset, parse(["--config", str(tmp_path / "c.yaml")])[0].dataset):
        assert isinstance(made, Table)
        assert (made.target, made.drop, type(made.task)) == (("days", "cost"), ("ward",), Regression)
    one = parse(["--dataset", "Table", "--dataset.target", "outcome"])[0].dataset
    assert isinstance(one, Table)
    assert (one.target, type(one.task)) == ("outcome", Classification)


def write_diabetes(path: Path) -> None:
    """The published numbers, and which patients test."""
    from sklearn.datasets import load_diabetes

    published = load_diabetes(scaled=False)
    rows = np.column_stack([published.data, published.target]).tolist()
    parts = [("train", "test")[n % 5 == 4] for n in range(len(rows))]
    names = (*(f"{name} of a patient" for name in published.feature_names), "progression", "part")
    write(path, names, [(*row, part) for row, part in zip(rows, parts, strict=True)])


def test_runs(tmp_path: Path) -> None:
    """Oracle: the same bits as the class that reads the same numbers, also if resumed; a client per file."""
    write_diabetes(tmp_path / "diabetes.csv")
    wine = read(Wine())
    (tmp_path / "wine").mkdir()
    for user in range(4):
        rows = [(*x.tolist(), ("red", "rose", "white")[y]) for x, y in zip(wine.train_x, wine.train_y, strict=True)]
        write(tmp_path / "wine" / f"cellar {user}.csv", (*map(str, range(13)), "kind"), rows[user::4])
    common = "--clients 4 --cohort 4 --rounds 3 --local.epochs 2 --local.lr 0.05 --model MLP"
    regression = f"--dataset.path {tmp_path}/diabetes.csv --dataset.target progression --dataset.split part"
    lines = [
        f"bundled {common} --dataset Diabetes",
        f"table {common} --dataset Table {regression} --dataset.task Regression --rounds 2",
        f"table {common} --dataset Table {regression} --dataset.task Regression --resume",
        f"users {common} --dataset Table --dataset.path {tmp_path}/wine --dataset.target kind --partition Users",
        f"cancer {common} --dataset BreastCancer",
    ]
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "lines").write_text("\n".join(lines))
    succeed(mpirun(3, REPOSITORY / "tests/jobs/runs.py", tmp_path, "all:0:3"))
    names = ("bundled", "table", "users", "cancer")
    bundled, table, users, cancer = (results.open(tmp_path / "all" / f"{name}.h5") for name in names)
    assert table.weights_sha256 == bundled.weights_sha256
    assert table.rounds["test_rmse"].tolist() == bundled.rounds["test_rmse"].tolist()
    assert table.rounds["test_rmse"][-1] < 0.85, "better than the mean"
    assert users.partition["label_counts"].shape == (4, 3)
    assert users.rounds["test_accuracy"][-1] > 0.9
    assert cancer.rounds["test_accuracy"][-1] > 0.9


def test_a_refusal_ends_the_job(tmp_path: Path) -> None:
    """Oracle: one line, exit status 2, and no file."""
    write_diabetes(tmp_path / "diabetes.csv")
    options = f"--dataset Table --dataset.path {tmp_path}/diabetes.csv --dataset.split part --model MLP --clients 4"
    result = fedmpi(2, *options.split(), "--dataset.target", "progression", "--output", tmp_path / "x.h5")
    assert result.returncode == 2
    reason = "has 214 different values in 442 rows, too many for classes; set --dataset.task Regression"
    assert f"error: --dataset.target = progression: {reason}\n" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["diabetes.csv"]


def test_bundled_tables() -> None:
    """Oracle: scikit-learn's own reader, standardised; every fifth sample, of each class where there are classes."""
    from sklearn import datasets
    from sklearn.preprocessing import StandardScaler

    for dataset, theirs in (
        (Diabetes(), datasets.load_diabetes(scaled=False)),
        (Wine(), datasets.load_wine()),
        (BreastCancer(), datasets.load_breast_cancer()),
    ):
        arrays = load(dataset)
        y = theirs.target
        seen = np.zeros(len(y), int)
        for n in range(len(y)):
            seen[n] = n if not dataset.classes else (y[:n] == y[n]).sum()
        is_test = seen % 5 == 4
        scaler = StandardScaler().fit(theirs.data[~is_test])
        np.testing.assert_allclose(arrays.train_x, scaler.transform(theirs.data[~is_test]), atol=1e-5)
        np.testing.assert_allclose(arrays.test_x, scaler.transform(theirs.data[is_test]), atol=1e-5)
        if dataset.classes:
            assert arrays.test_y.tolist() == y[is_test].tolist()
            assert dataset.classes == len({*y.tolist()})
        else:
            np.testing.assert_allclose(arrays.test_y[:, 0], scaled(y, is_test)[is_test], atol=1e-6)
        about = " ".join((dataset.__doc__ or "").split())
        assert f"{len(arrays.train_y)} for training, {len(arrays.test_y)} for tests" in about
    assert "78.0" in (Diabetes.__doc__ or "")
