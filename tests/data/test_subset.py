"""A part of another data set: its own samples, the same in every process, with what is known of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmpi.data import Diabetes, Digits
from fedmpi.data.subset import Subset
from fedmpi.errors import BadInput
from fedmpi.tasks import Regression
from tests.jobs.words import Words
from tests.support.experiments import read, run


def test_samples_of_the_other() -> None:
    """Oracle: every sample is found in the whole, labelled alike, and none twice; what is not cut is all there."""
    whole, part = read(Digits()), read(Subset(samples=300))
    assert part.train_x.shape == (300, 1, 8, 8)
    np.testing.assert_array_equal(part.test_x, whole.test_x)
    flat = whole.train_x.reshape(-1, 64)
    rows = [int(np.flatnonzero((flat == x.reshape(64)).all(1))[0]) for x in part.train_x]
    assert len(set(rows)) == 300
    np.testing.assert_array_equal(part.train_y, whole.train_y[rows])
    assert rows == sorted(rows)
    assert rows != list(range(300))
    np.testing.assert_array_equal(part.train_x, read(Subset(samples=300)).train_x)
    assert len(np.unique(part.train_y)) == 10


def test_users_and_words_stay() -> None:
    whole, part = read(Words()), read(Subset(Words(), 20, 7))
    assert Subset(Words()).vocabulary == Words().vocabulary
    assert Subset(Words()).classes == 2
    assert isinstance(Subset(Diabetes()).task, Regression)
    assert read(Subset(Diabetes(), 20)).train_y.shape == (20, 1)
    assert part.train_users is not None
    assert whole.train_users is not None
    for x, user in zip(part.train_x, part.train_users, strict=True):
        assert user in whole.train_users[(whole.train_x == x).all(1)]
    assert part.test_users is not None
    assert len(part.test_users) == 7


def test_more_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        run(tmp_path / "never.h5", dataset=Subset(samples=2000))
    expected = "--dataset.samples = 2000: must be at most 1442, the number of samples of the data set"
    assert str(error.value) == expected
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput):
        Subset(samples=0)
