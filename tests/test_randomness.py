"""Random streams: a function of (seed, purpose, round, client), and as good as random."""

from __future__ import annotations

import ast
import itertools
import re

import numpy as np
import pytest

from fedmpi import randomness
from tests.support.mpi import REPOSITORY


def test_numbers_stay_what_they_are() -> None:
    """Oracle: SplitMix64's finaliser and BLAKE2b in whole numbers of Python; published seeds must keep their runs."""
    import hashlib

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    golden = 0x9E3779B97F4A7C15
    bits = int.from_bytes(hashlib.blake2b(b"7/order 0", digest_size=8).digest(), "little")
    key = mix((mix((bits + golden * 4) % 2**64) + golden * 6) % 2**64)
    words = [mix(mix((key + golden * i) % 2**64) ^ key) for i in (1, 2, 3)]
    keys = randomness.keys(7, "order 0", 3, [5])
    assert keys.tolist() == [key]
    assert randomness.hashed_bits(keys, 3).tolist() == [words]
    assert randomness.key(7, "order 0", 3, 5) == key // 2 < 2**63


def test_the_same_key_gives_the_same_numbers() -> None:
    """Oracle: itself, with other draws in between."""
    first = randomness.stream(1, "cohort", 2, 3).random(5)
    randomness.stream(1, "cohort", 2, 4).random(7)
    np.testing.assert_array_equal(randomness.stream(1, "cohort", 2, 3).random(5), first)
    assert randomness.key(1, "dropout", 2, 3) == randomness.key(1, "dropout", 2, 3)


def test_each_part_of_the_key_counts() -> None:
    """Oracle: none of 81 neighbouring keys may share a number, for the keys, the streams and the hashed bits."""
    parts = list(itertools.product((0, 1, 2**40), ("cohort", "order 0", "order 1"), (0, 1, 2), (0, 1, 2)))
    assert len({randomness.key(*part) for part in parts}) == 81
    assert len({randomness.stream(*part).integers(2**63) for part in parts}) == 81
    assert len({int(randomness.hashed_bits(randomness.keys(*part[:3], [part[3]]), 1)[0, 0]) for part in parts}) == 81


def test_neighbours_have_half_of_their_bits_in_common() -> None:
    """Oracle: the binomial distribution of 64 fair bits, mean within 4 sigma, over rounds and over clients."""
    by_client = randomness.keys(0, "order 0", 1, np.arange(10_001))
    by_round = np.array([randomness.keys(0, "order 0", round) for round in range(10_001)])
    for keys in (by_client, by_round):
        differing = np.unpackbits((keys[1:] ^ keys[:-1]).view(np.uint8)).sum() / 10_000
        assert abs(differing - 32) < 4 * 4 / np.sqrt(10_000)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_keys_have_the_shape_of_the_clients(shape: tuple[int, ...]) -> None:
    """Oracle: one client at a time."""
    clients = np.arange(np.prod(shape, dtype=int)).reshape(shape) * 11
    keys = randomness.keys(0, "order 0", 1, clients)
    assert keys.shape == shape
    assert keys.dtype == np.uint64
    assert keys.ravel().tolist() == [int(randomness.keys(0, "order 0", 1, int(client))) for client in clients.ravel()]


def test_no_two_of_a_million_participations_share_a_key() -> None:
    """Oracle: the birthday bound, 3e-8 expected collisions of 64 bits."""
    keys = np.stack([randomness.keys(0, "order 0", round, np.arange(1000)) for round in range(1, 1001)])
    assert len(np.unique(keys)) == 1_000_000


def test_hashed_bits_depend_on_key_and_position_alone() -> None:
    """Oracle: one key at a time, and fewer numbers."""
    keys = randomness.keys(0, "order 0", 1, np.arange(20))
    bits = randomness.hashed_bits(keys, 100)
    assert bits.shape == (20, 100)
    np.testing.assert_array_equal(randomness.hashed_bits(keys, 7), bits[:, :7])
    np.testing.assert_array_equal(randomness.hashed_bits(keys, 9, first=41), bits[:, 41:50])
    np.testing.assert_array_equal(randomness.hashed_bits(keys[[13, 2]], 100), bits[[13, 2]])
    assert randomness.hashed_bits(keys, 0).shape == (20, 0)
    assert len(np.unique(bits)) == bits.size


def test_each_hashed_bit_is_fair() -> None:
    """Oracle: 64 binomials of 200,000 draws, each within 4.5 sigma."""
    bits = randomness.hashed_bits(randomness.keys(0, "augmentation 0", 1, np.arange(2000)), 100)
    ones = [int(((bits >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)]
    assert np.abs(np.array(ones) - 100_000).max() < 4.5 * np.sqrt(200_000 / 4)


def test_sorting_hashed_bits_shuffles() -> None:
    """Oracle: chi-square over the 4! orders of four samples (23 degrees of freedom, 4 sigma)."""
    orders = randomness.hashed_bits(randomness.keys(0, "order 0", 1, np.arange(24_000)), 4).argsort(axis=1)
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 23 + 4 * np.sqrt(2 * 23)


def test_no_sample_comes_first_more_often_than_another() -> None:
    """Oracle: the mean place of each of 50 samples over 4,000 orders is 24.5, within 4 sigma."""
    places = randomness.hashed_bits(randomness.keys(0, "order 0", 1, np.arange(4000)), 50).argsort(1).argsort(1)
    deviation = places.mean(0) - 24.5
    assert np.abs(deviation).max() < 4 * np.sqrt((50**2 - 1) / 12 / 4000)


def test_methods_never_draw_what_fedmpi_draws() -> None:
    """Oracle: the purposes of all draws in its code, but for those that methods name; names that methods have."""
    purposes = set()
    for path in (REPOSITORY / "fedmpi").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            draws = ("key", "stream", "randomness.key", "randomness.stream", "standard_normal")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in draws and node.args[1:]:
                purposes.add(ast.unparse(node.args[1]))
    names = {purpose for purpose in purposes if "'" not in purpose}
    # Of attacks, of conditions, and of siblings, whose key is the seed of other draws.
    assert names == {"purpose", "name", "randomness.of_method(purpose)"}
    fixed = {eval(re.sub(r"\{.*?\}", "7", purpose)) for purpose in purposes - names}
    assert len(fixed) > 20
    for purpose in (*fixed, "attack 3", "download", "upload", "method: mine"):
        assert randomness.of_method(purpose) == f"method: {purpose}"
    for purpose in ("clusters", "cohort of mine", "FedDF proxies", "generator", "slices", "3"):
        assert randomness.of_method(purpose) == purpose
