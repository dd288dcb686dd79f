"""Vectors between nodes: who passes them on to whom, and integers in few bytes."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.mpi.ascent import add_packed, pack
from fedmpi.mpi.tree import relatives


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 8, 13, 64])
@pytest.mark.parametrize("blocks", [1, 2, 1000])
@pytest.mark.parametrize("root", [0, 1])
def test_every_node_is_reached(nodes: int, blocks: int, root: int) -> None:
    """Oracle: by hand. One block is everywhere after ceil(log2 N) steps, in each of which a node sends it once.

    Many blocks leave each node once at most.
    """
    if root >= nodes:
        return
    reached, last = {root: 0}, [root]
    while last:
        node = last.pop()
        for number, child in enumerate(relatives(node, nodes, blocks, root)[1]):
            assert child not in reached
            assert relatives(child, nodes, blocks, root)[0] == node
            reached[child] = reached[node] + number + 1
            last.append(child)
    assert relatives(root, nodes, blocks, root)[0] is None
    assert set(reached) == set(range(nodes))
    if blocks == 1:
        assert max(reached.values()) == (nodes - 1).bit_length()
    if blocks == 1000:
        assert max(len(relatives(node, nodes, blocks, root)[1]) for node in range(nodes)) <= 1


@pytest.mark.parametrize(
    ("numbers", "width"),
    [
        ([0, 0, 0], 0),
        ([1, 0, 0], 4),
        ([2**31 - 1, -(2**31)], 4),
        ([2**31, 0, -5], 5),
        ([-(2**31) - 1], 5),
        ([2**39 - 1, -(2**39), 7], 5),
        ([2**39, -1], 6),
        ([-(2**39) - 1], 6),
        ([2**47 - 1, -(2**47)], 6),
        ([2**47], 8),
        ([-(2**63), 2**63 - 1, 0, -1], 8),
    ],
)
def test_numbers_take_as_few_bytes_as_they_need(numbers: list[int], width: int) -> None:
    """Oracle: by hand, and the numbers themselves, added to others."""
    given, memory = np.array(numbers, dtype=np.int64), np.full(8 * len(numbers), 255, np.uint8)
    assert pack(given.copy(), memory) == width
    assert (memory[width * len(numbers) :] == 255).all(), "nothing beyond is written"
    total = np.array([-3 if number > 0 else 4 for number in numbers])
    expected = given + total
    add_packed(width, memory, total, np.empty(100, np.int64))
    np.testing.assert_array_equal(total, expected)
