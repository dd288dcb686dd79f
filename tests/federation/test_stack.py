"""The models of a round, one after the other, as a method sees them; on many ranks: tests/mpi/test_rows.py."""

from __future__ import annotations

import numpy as np

from tests.algorithms.test_robust import models, stacked


def test_each_model_that_is_present() -> None:
    """Oracle: the vectors in order, without the one that is not finite; and the bytes that clients receive."""
    vectors = models(5)
    vectors[2, 7] = np.nan
    stack = stacked(vectors)
    assert stack.rejected == 1
    passed = {position: model.numpy().copy() for position, model in stack.everywhere(received=30)}
    assert list(passed) == stack.present.tolist() == [0, 1, 3, 4]
    for position, model in passed.items():
        np.testing.assert_array_equal(model, vectors[position])
    assert stack._ledger.bytes_down == 120
    list(stack.everywhere(received=1))
    assert stack._ledger.bytes_down == 124
