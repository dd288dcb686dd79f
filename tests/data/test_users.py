"""Natural users: the partition by them, what travels with the arrays, and text in an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.data import IID, Arrays, Partition, Permuted, Progress, Split, Users, make_split, prepared
from fedmpi.data._owners import NOBODY
from fedmpi.errors import BadInput
from fedmpi.models import LogisticRegression, Projected
from fedmpi.training.settings import LocalTraining
from tests.jobs.words import Bag, Words
from tests.support.experiments import read, run

WORDS = read(Words())


def split(partition: Partition, clients: int, seed: int = 0, arrays: Arrays = WORDS) -> Split:
    users = arrays.train_users, arrays.test_users
    return make_split(partition, arrays.train_y, arrays.test_y, 2, clients, seed, *users)


@pytest.mark.parametrize("clients", [1, 4, 8])
@pytest.mark.parametrize(("partition", "least"), [(Users(), 13), (Users(20), 20), (Permuted(Users(20)), 20)])
def test_a_client_is_a_user(partition: Partition, least: int, clients: int) -> None:
    """Oracle: for each client a look at all samples, one after another."""
    made = split(partition, clients)
    assert WORDS.train_users is not None
    assert WORDS.test_users is not None
    mine = [int(WORDS.train_users[part[0]]) for part in made.train]
    assert len(set(mine)) == clients
    for user, train, test in zip(mine, made.train, made.test, strict=True):
        assert train.tolist() == [sample for sample in range(300) if WORDS.train_users[sample] == user]
        assert len(train) >= least
        own = {sample for sample in range(100) if WORDS.test_users[sample] == user}
        others = {WORDS.test_users[sample] for sample in {*test.tolist()} - own}
        assert own <= {*test.tolist()}
        assert not others & {*mine}
    assert np.array_equal(np.sort(np.concatenate(made.test)), np.arange(100))


def test_users_are_drawn_at_random() -> None:
    """Oracle: over many seeds, every user is drawn equally often; the same seed draws the same."""
    assert WORDS.train_users is not None
    drawn = [int(WORDS.train_users[part[0]]) for seed in range(300) for part in split(Users(), 5, seed).train]
    counts = np.bincount(drawn)
    assert len(counts) == 15
    assert (abs(counts - 100) < 4.5 * np.sqrt(300 * 1 / 3 * 2 / 3)).all()
    assert all(map(np.array_equal, split(Users(), 5, 7).train, split(Users(), 5, 7).train))


def test_test_samples_without_users_are_dealt_out() -> None:
    """Oracle: in proportion to the clients' training labels."""
    made = split(Users(), 6, arrays=Arrays(*(WORDS.stored()[name] for name in list(WORDS.stored())[:5])))
    assert np.array_equal(np.sort(np.concatenate(made.test)), np.arange(100))
    got = np.array([np.bincount(WORDS.test_y[shard], minlength=2) for shard in made.test])
    quota = made.label_counts / made.label_counts.sum(axis=0) * got.sum(axis=0)
    assert np.abs(got - quota).max() < 1


def test_users_do_not_matter_to_other_partitions() -> None:
    """Oracle: the split of a data set that knows no users."""
    without = make_split(IID(), WORDS.train_y, WORDS.test_y, 2, 7, 3)
    for made, plain in zip(split(IID(), 7, 3).test, without.test, strict=True):
        assert np.array_equal(made, plain)


def test_what_cannot_be_split_by_users() -> None:
    """Oracle: the messages."""
    with pytest.raises(
        BadInput, match=r"^--clients = 9: must be at most 8, the users with 20 or more training samples$"
    ):
        split(Users(20), 9)
    for partition in (Users(), Permuted(Users())):
        with pytest.raises(BadInput, match="the data set has no information about users"):
            make_split(partition, WORDS.train_y, WORDS.test_y, 2, 3, 0)
    with pytest.raises(BadInput, match="min_samples = 0: must be at least 1"):
        Users(0)


class Kept(Words):
    """Words that are prepared on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self) -> Path:
        return self.root


def test_users_are_prepared_like_other_arrays(tmp_path: Path) -> None:
    """Oracle: what was read."""
    prepared.load(Kept(tmp_path), lambda line: None)
    kept = prepared.open_prepared(Kept(tmp_path))
    assert kept is not None
    assert kept.on_disk
    assert kept.stored().keys() == WORDS.stored().keys()
    for name, array in kept.stored().items():
        assert np.array_equal(array, WORDS.stored()[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_users": np.zeros(299, np.int64)}, r"train_users is int64 of shape \(299,\)"),
        ({"test_users": np.zeros(100, np.int32)}, "test_users is int32"),
        ({"test_users": np.full(100, NOBODY)}, "test_users is int64"),
        ({"train_x": np.full((300, 6), 20, np.int32)}, "train_x is from 20 to 20: tokens are 0 to 19"),
        ({"test_x": np.full((100, 6), -1, np.int32)}, "test_x is from -1 to -1: tokens are 0 to 19"),
        ({"train_x": np.ones((300, 6), np.float32)}, "train_x is float32, but the vocabulary is 20"),
    ],
)
def test_what_text_and_users_may_not_be(change: dict[str, Any], message: str) -> None:
    """Oracle: the messages."""

    class Wrong(Words):
        def read(self, progress: Progress) -> Arrays:
            return Arrays(**(vars(WORDS) | change))

    with pytest.raises(BadInput, match=f"data set Wrong: {message}"):
        prepared.load(Wrong(), lambda line: None)


def test_tokens_without_a_vocabulary() -> None:
    """Oracle: the message."""

    class Numberless(Words):
        vocabulary = None

    with pytest.raises(BadInput, match="train_x is int32, but the vocabulary is None"):
        prepared.load(Numberless(), lambda line: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": LogisticRegression()}, "--model = LogisticRegression: has no embedding, .* text of Words"),
        ({"partition": Permuted(Users())}, "--partition = Permuted: permutes pixels, and Words is text"),
        (
            {"local": LocalTraining(augmentation="flip")},
            "--local.augmentation = flip: must be none, for Words has no images",
        ),
        ({"clients": 16}, "--clients = 16: must be at most 15"),
    ],
)
def test_what_does_not_suit_text(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Oracle: the messages, and no file."""
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "x.h5", **{"dataset": Words(), "model": Bag(), "partition": Users(), **settings})
    assert not any(tmp_path.iterdir())


def test_a_data_set_without_users(tmp_path: Path) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match="partition Users: the data set has no information about users"):
        run(tmp_path / "x.h5", partition=Users())


def test_a_model_learns_its_vocabulary_from_the_data_set(tmp_path: Path) -> None:
    """Oracle: as many embeddings as tokens, in a model within another as well."""
    made = run(tmp_path / "x.h5", dataset=Words(), model=Projected(Bag(), 5), partition=Users(), clients=15, rounds=1)
    assert made.state_dict()["extractor.0.0.weight"].shape == (20, 7)
    assert made.partition["samples"].min() == 13
