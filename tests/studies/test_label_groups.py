"""Groups of clients with classes of their own."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.errors import BadInput
from studies.label_groups import LabelGroups


def test_groups_have_their_own_classes_and_clients_are_equally_large() -> None:
    """Oracle, by hand: of 60 samples a group has 20 of two classes; five clients of the first leave 4 for each."""
    labels, rng = np.repeat(np.arange(6), 10)[::-1], np.random.default_rng(0)
    partition = LabelGroups((5, 2, 1))
    groups, parts = partition.groups(8, rng), partition.split(labels, 8, rng)
    assert groups.tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    assert [len(part) for part in parts] == [4] * 8
    for group, part in zip(groups, parts, strict=True):
        assert set(labels[part] // 2) == {group}
    assert len(np.unique(np.concatenate(parts))) == 32
    with pytest.raises(BadInput, match=r"shares = .*: must be at most 2"):
        LabelGroups((1, 1, 1)).split(labels[:20], 3, rng)
    with pytest.raises(BadInput, match="--clients = 80: must be at most as many as there are samples for"):
        partition.split(labels, 80, rng)
