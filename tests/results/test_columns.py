from __future__ import annotations

import numpy as np
import pytest

from fedmpi.results.columns import Columns


def test_integers_stay_integers_and_reals_become_float64() -> None:
    table = Columns()
    for round in range(1, 100):
        table.add({"round": round, "loss": np.float32(0.5), "flag": True})
    columns = dict(table.items())
    assert {name: values.dtype.name for name, values in columns.items()} == {
        "round": "int64",
        "loss": "float64",
        "flag": "int64",
    }
    assert columns["round"].tolist() == list(range(1, 100))


def test_a_column_is_nan_where_it_has_no_value() -> None:
    table = Columns()
    table.add({"round": 1, "early": 7})
    table.add({"round": 2})
    table.add({"round": [3, 4], "late": [30, 40]})
    columns = dict(table.items())
    np.testing.assert_array_equal(columns["early"], [7, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(columns["late"], [np.nan, np.nan, 30, 40])
    assert columns["round"].dtype == np.int64
    assert list(columns) == ["round", "early", "late"]


def test_a_column_can_return_after_a_gap() -> None:
    table = Columns()
    table.add({"round": 1, "bytes_up": 10})
    table.add({"round": 2})
    list(table.items())  # a write in between changes nothing
    table.add({"round": 3, "bytes_up": 30})
    np.testing.assert_array_equal(dict(table.items())["bytes_up"], [10, np.nan, 30])


def test_an_integer_column_takes_a_real_number() -> None:
    table = Columns()
    table.add({"loss": 1})
    table.add({"loss": 0.5})
    np.testing.assert_array_equal(dict(table.items())["loss"], [1.0, 0.5])


def test_values_can_be_vectors() -> None:
    table = Columns()
    table.add({"round": [1]})
    table.add({"round": [2], "accuracy": np.array([[0.25, 0.5]])})
    np.testing.assert_array_equal(dict(table.items())["accuracy"], [[np.nan, np.nan], [0.25, 0.5]])


@pytest.mark.parametrize(
    "rows",
    [{"a": [1, 2], "b": [1]}, {"a": "text"}, {"a/b": 1}, {"known": [[1, 2]]}],
    ids=lambda rows: str(rows),
)
def test_what_cannot_be_a_row_is_refused(rows: dict) -> None:
    table = Columns()
    table.add({"known": 1})
    with pytest.raises(ValueError, match="column"):
        table.add(rows)


def test_rows_since() -> None:
    """Oracle: the same rows of the whole table, whatever was asked for in between."""
    table, rng = Columns(), np.random.default_rng(0)
    for round in range(1, 30):
        row = {"round": round} | ({"late": round / 2} if round > 9 else {}) | ({"early": round} if round < 20 else {})
        table.add(row)
        table.add({"round": np.zeros(0, np.int64)})
        first = int(rng.integers(round))
        found = table.since(first)
        whole = dict(table.items()) if round % 7 == 0 else {}
        assert next(iter(found)) == "round"
        assert found["round"].tolist() == list(range(first + 1, round + 1))
        for name, values in whole.items():
            np.testing.assert_array_equal(found.get(name, np.full(round - first, np.nan)), values[first:])
    assert "early" not in table.since(19)
    np.testing.assert_array_equal(table.since(17)["early"][:3], [18, 19, np.nan])
