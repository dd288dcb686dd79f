"""LEAF's files: every sample of every user, and files that LEAF did not write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.data import FEMNIST, Arrays, Dataset, Digits, Shakespeare, Users, make_split, prepared
from fedmpi.errors import BadInput
from tests.support.experiments import read

DIGITS = read(Digits())
# Sonnet 18, with two characters that LEAF's alphabet does not have.
SONNET = (
    "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\nRough winds do shake the"
    " darling buds of May,\nAnd summer's lease hath all too short a date\u2014\nSometime too hot the eye of heaven"
    " shines;\nAnd often is his gold complexion dimm'd = {18}"
)


def image(digit: int) -> np.ndarray:
    """28x28, of one of 8x8."""
    return np.pad(np.kron(DIGITS.train_x[digit, 0], np.ones((3, 3), np.uint8)), 2)


def written(users: dict[str, tuple[list[Any], list[Any]]]) -> dict[str, Any]:
    return {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {name: {"x": x, "y": y} for name, (x, y) in users.items()},
    }


def digits(first: int, stop: int) -> tuple[list[Any], list[Any]]:
    """What LEAF writes of one user."""
    numbers = range(first, stop)
    return [(image(n) / 255).ravel().tolist() for n in numbers], [int(DIGITS.train_y[n]) + 36 for n in numbers]


def lines(first: int, stop: int) -> tuple[list[Any], list[Any]]:
    return [SONNET[n : n + 80] for n in range(first, stop)], [SONNET[n + 80] for n in range(first, stop)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with users a, b and c, one of whom has no test samples, and d, who has nothing else."""
    for part, some in (("femnist", digits), ("shakespeare", lines)):
        content = {
            "train/all_data_1_train_9.json": {"c": some(9, 14)},
            "train/all_data_0_train_9.json": {"a": some(0, 4), "b": some(4, 9), "idle": ([], [])},
            "test/all_data_0_test_9.json": {"d": some(20, 22), "b": some(22, 25), "a": some(25, 26)},
        }
        for name, users in content.items():
            path = tmp_path / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(written(users)))
    return tmp_path


def check_users(arrays: Arrays) -> None:
    """Of the users and of their test shards; the numbers go by the sorted names of the files."""
    assert arrays.train_users is not None
    assert arrays.test_users is not None
    assert arrays.train_users.tolist() == [0] * 4 + [1] * 5 + [2] * 5
    assert arrays.test_users.tolist() == [3] * 2 + [1] * 3 + [0]
    split = make_split(Users(5), arrays.train_y, arrays.test_y, 80, 2, 0, arrays.train_users, arrays.test_users)
    (b,) = (client for client in range(2) if arrays.train_users[split.train[client][0]] == 1)
    assert {2, 3, 4} <= {*split.test[b].tolist()}


def test_femnist(root: Path) -> None:
    """Oracle: the images that were written, to the last bit."""
    arrays = prepared.load(FEMNIST(root), print)
    assert arrays.train_x.dtype == np.uint8
    for x, y, numbers in (
        (arrays.train_x, arrays.train_y, range(14)),
        (arrays.test_x, arrays.test_y, range(20, 26)),
    ):
        assert np.array_equal(x[:, 0], [image(number) for number in numbers])
        assert y.tolist() == [DIGITS.train_y[number] + 36 for number in numbers]
    check_users(arrays)


def test_shakespeare(root: Path) -> None:
    """Oracle: LEAF's alphabet, written down here once more, character by character; -1 is its last one.

    Token 0 stands for none of them.
    """
    capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    alphabet = "\n !\"&'(),-.0123456789:;>?" + capitals + "[]" + capitals.lower() + "}"
    arrays = prepared.load(Shakespeare(root), print)
    assert len(alphabet) == Shakespeare.vocabulary - 1 == Shakespeare.classes == 80
    for x, y, numbers in (
        (arrays.train_x, arrays.train_y, range(14)),
        (arrays.test_x, arrays.test_y, range(20, 26)),
    ):
        expected = [[alphabet.find(character) % 80 for character in SONNET[n : n + 81]] for n in numbers]
        assert np.array_equal(np.column_stack([x - 1, y]), expected)
    codes = read(Shakespeare(root)).train_x.dtype
    assert codes == np.int32
    check_users(arrays)


def test_a_file_that_is_added(root: Path) -> None:
    """Oracle: more samples."""
    prepared.load(FEMNIST(root), print)
    (root / "femnist/train/more.json").write_text(json.dumps(written({"e": digits(30, 33)})))
    assert len(prepared.load(FEMNIST(root), print).train_y) == 17


def test_strays_beside_the_files(root: Path) -> None:
    """Oracle: the same arrays; what systems leave is not spoken of, and of the rest it is said how much there is."""
    clean = read(FEMNIST(root)).checksum
    said: list[str] = []
    for name in ("._all_data_0_train_9.json", ".DS_Store", "Thumbs.db"):
        (root / "femnist/train" / name).write_text("x")
    assert FEMNIST(root).read(said.append).checksum == clean
    assert len(said) == 3
    (root / "femnist/train/all_data_2_train_9.json.gz").write_text("x")
    assert FEMNIST(root).read(said.append).checksum == clean
    assert said[3] == f"FEMNIST: {root / 'femnist/train'}: 1 other file (not named .json) is not used"


def test_what_leaf_makes_is_not_fetched(tmp_path: Path) -> None:
    """Oracle: the messages."""
    with pytest.raises(BadInput, match=r"FEMNIST is made by LEAF's data/femnist/preprocess\.sh"):
        FEMNIST(tmp_path).fetch()
    for dataset, part in ((FEMNIST(tmp_path), "femnist"), (Shakespeare(tmp_path), "shakespeare")):
        with pytest.raises(BadInput, match=f"{tmp_path}/{part}/train has no JSON files: set --dataset.root"):
            prepared.load(dataset, print)


def change(entry: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Of a file's content, and of its first user's."""

    def write(path: Path) -> None:
        content = json.loads(path.read_text())
        entry(content | content["user_data"][content["users"][0]])
        path.write_text(json.dumps(content))

    return write


DAMAGES: list[tuple[type[Dataset], Callable[[Path], object], str]] = [
    (FEMNIST, lambda path: os.truncate(path, path.stat().st_size // 2), "JSONDecodeError"),
    (FEMNIST, lambda path: path.write_text(""), "JSONDecodeError"),
    (FEMNIST, lambda path: path.write_bytes(b"PK\x03\x04\xff\xfe"), "Error"),
    (FEMNIST, lambda path: path.write_text("[]"), "TypeError"),
    (FEMNIST, lambda path: path.write_text('{"users": ["a"], "num_samples": [1]}'), "KeyError: 'user_data'"),
    (FEMNIST, change(lambda content: content["num_samples"].pop()), "ValueError: zip"),
    (FEMNIST, change(lambda content: content["y"].pop()), r"has \d x and \d y, not \d"),
    (FEMNIST, change(lambda content: content["y"].__setitem__(0, 62)), "has labels from 3. to 62"),
    (FEMNIST, change(lambda content: content["y"].__setitem__(0, -1)), "has labels from -1"),
    (FEMNIST, change(lambda content: content["y"].__setitem__(0, 1.5)), "labels that are not whole numbers"),
    (FEMNIST, change(lambda content: content["x"][0].pop()), "ValueError"),
    (FEMNIST, change(lambda content: [x.pop() for x in content["x"]]), r"images of shape \(783,\)"),
    (FEMNIST, change(lambda content: content["x"][0].__setitem__(0, 255)), "from 0.0 to 255.0"),
    (Shakespeare, change(lambda content: content["x"].__setitem__(0, "short")), "texts that are not of 80"),
    (Shakespeare, change(lambda content: content["x"].__setitem__(0, 7)), "TypeError"),
    (Shakespeare, change(lambda content: content["y"].__setitem__(0, "ab")), "labels that are not one character"),
    (Shakespeare, lambda path: path.write_text(json.dumps(written({"a": digits(0, 2)}))), "texts that are not of 80"),
]


@pytest.mark.parametrize(("dataset", "damage", "message"), DAMAGES)
@pytest.mark.parametrize("part", ["train", "test"])
def test_files_that_leaf_did_not_write(
    root: Path, dataset: type[FEMNIST], damage: Callable[[Path], object], message: str, part: str
) -> None:
    """Oracle: the messages."""
    path = root / dataset.part / part / f"all_data_0_{part}_9.json"
    damage(path)
    with pytest.raises(BadInput, match=f"{path} is not a file as LEAF writes it .*{message}") as error:
        prepared.load(dataset(root), print)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
