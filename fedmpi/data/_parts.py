"""The training and the test rows of a table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput, require
from fedmpi.options import shown
from fedmpi.randomness import stream
from fedmpi.typing import Frame

#: What to do about missing values, in messages.
COMPLETE = "fill them in, or remove these rows"


def is_test_row(frame: Frame, split: str | None, test_share: float, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n] whether a row is a test row: as a column says, or drawn from the rows of each label.

    Args:
        split: the column that says train or test; null: test rows are drawn, the same ones for every seed.
        test_share: share of the test rows of each label, if they are drawn.
        labels: [n] the label of each row.

    Raises:
        BadInput: the column has other words, or there would be no test row.
    """
    if split is not None:
        parts = np.array([str(part).strip().lower() for part in frame.without_gaps(split, COMPLETE)])
        is_train, is_test = parts == "train", parts == "test"
        if (others := parts[~is_train & ~is_test]).size:
            reason = f"has {shown(others[0])}, but only train and test are allowed"
            raise BadInput(f"= {split}: {reason}", "split")
        for part, is_part in (("train", is_train), ("test", is_test)):
            if not is_part.any():
                raise BadInput(f"= {split}: has no row with {part}", "split")
        return is_test
    order = stream(0, "test samples of a table").permutation(len(labels))
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        is_test[members[: int(len(members) * test_share + 1e-9)]] = True
    reason = f"larger, because none of {len(labels)} rows would be a test sample"
    require(bool(is_test.any()), "test_share", test_share, reason)
    return is_test
