"""Who can be reached: as often, and for as long, as promised, and the same whoever asks, in whatever order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import randomness
from fedmpi.errors import BadInput
from fedmpi.policies import Always, Availability, Diurnal, Independent, Markov, Trace
from tests.support.experiments import SEED, run

CLIENTS, ROUNDS = 40, 2400
SHARE = 0.3
EVERYBODY = np.arange(CLIENTS)


def presence(availability: Availability, clients: int = CLIENTS) -> NDArray[np.bool_]:
    """[rounds, clients]"""
    return np.stack([availability.present(round, clients, SEED) for round in range(1, ROUNDS + 1)])


@pytest.mark.parametrize("availability", [Independent(SHARE), Markov(SHARE, 8), Diurnal(SHARE)])
def test_every_rank_sees_the_same(availability: Availability) -> None:
    """Oracle: another order of rounds; a client among fewer others; other seeds and rounds differ."""
    backwards = [availability.present(round, CLIENTS, SEED) for round in range(20, 0, -1)][::-1]
    for round, present in enumerate(backwards, 1):
        np.testing.assert_array_equal(availability.present(round, CLIENTS, SEED), present)
        np.testing.assert_array_equal(availability.present(round, 7, SEED), present[:7])
    assert (availability.present(1, CLIENTS, SEED + 1) != backwards[0]).any()
    assert (backwards[0] != backwards[-1]).any()


def test_independent() -> None:
    """Oracle: the binomial distribution over rounds and of two rounds in a row, 4 sigma; 0 is nobody, 1 everybody."""
    present = presence(Independent(SHARE))
    sigma = np.sqrt(SHARE * (1 - SHARE) / ROUNDS)
    assert np.abs(present.mean(0) - SHARE).max() < 4 * sigma
    again = (present[1:] & present[:-1]).mean()
    assert abs(again - SHARE**2) < 4 * np.sqrt(SHARE**2 / present.size)
    assert not Independent(0).present(1, CLIENTS, SEED).any()
    assert Independent(1).present(1, CLIENTS, SEED).all()
    assert Always().present(1, CLIENTS, SEED).all()


class Free(Availability):
    """Whatever is given."""

    def __init__(self, mask: Any, later: Any = None) -> None:
        self.mask = mask
        self.later = later

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return self.mask

    def next_arrival(self, now: int, waiting: NDArray[np.bool_], seed: int) -> int | None:
        return self.later


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.ones(3, bool), r"bool of shape \(3,\)"),
        (np.ones((4, 1), bool), r"bool of shape \(4, 1\)"),
        (np.array([1, 0, 1, 1]), r"int64 of shape \(4,\)"),
        ([True, False, True, True], r"list of shape \(4,\)"),
        (None, r"NoneType of shape \(\)"),
    ],
)
def test_what_is_no_mask(mask: Any, said: str) -> None:
    """Oracle: the line."""
    message = (
        rf"^--availability = \S*test_availability\.Free: present\(\) returned {said}: must return a bool array of"
    )
    with pytest.raises(BadInput, match=message):
        Free(mask).reachable(1, 4, SEED)
    right = np.array([True, False, True, True])
    assert Free(right).reachable(1, 4, SEED) is right


def test_time_does_not_run_backwards() -> None:
    """Oracle: the line."""
    nobody = np.zeros(4, bool)
    assert [Free(nobody, later).arrival(7, ~nobody, SEED) for later in (8, None)] == [8, None]
    with pytest.raises(BadInput, match=r"Free: next_arrival\(\) returned 7: must return a tick after 7, or None$"):
        Free(nobody, 7).arrival(7, ~nobody, SEED)


def test_markov_looks_back_as_a_chain_runs_forward() -> None:
    """Oracle: the chain simulated forwards from the same draws."""
    share, absence = SHARE, 8.0
    state = np.zeros(CLIENTS, bool)
    for round in range(1, 60):
        changes = randomness.uniform(SEED, "availability changes", round, EVERYBODY) < 1 / (share * absence)
        drawn = randomness.uniform(SEED, "availability", round, EVERYBODY) < share
        state = np.where(changes | (round == 1), drawn, state)
        np.testing.assert_array_equal(Markov(share, absence).present(round, CLIENTS, SEED), state)


def test_markov_in_the_long_run() -> None:
    """Oracle: 40 chains of 2400 rounds: the mean share, and both transitions.

    The variance of the former is by the chain's correlation. A step away has probability (1 - share) /
    (share absence), a step back 1 / absence; all within 4 sigma. With the shortest absence allowed, rounds are
    independent.
    """
    absence = 8.0
    present = presence(Markov(SHARE, absence))
    stays = 1 - 1 / (SHARE * absence)
    sigma = np.sqrt(SHARE * (1 - SHARE) / present.size * (1 + stays) / (1 - stays))
    assert abs(present.mean() - SHARE) < 4 * sigma
    for before, chance in ((True, (1 - SHARE) / (SHARE * absence)), (False, 1 / absence)):
        begun = present[:-1] == before
        changed = (present[1:] != before)[begun]
        assert abs(changed.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / begun.sum())
    shortest = Markov(0.5, 2)
    np.testing.assert_array_equal(presence(shortest)[:50], presence(Independent(0.5))[:50])


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_diurnal(share: float) -> None:
    """Oracle: each client's mean is the share, and its Fourier amplitude at a day's frequency the swing, 5 sigma.

    The phases lie all around the clock: their resultant is what random ones give.
    """
    period = 24
    present = presence(Diurnal(share, period))
    sigma = np.sqrt(0.25 / ROUNDS)
    assert np.abs(present.mean(0) - share).max() < 5 * sigma
    waves = np.exp(2j * np.pi * np.arange(ROUNDS) / period) @ present * 2 / ROUNDS
    assert np.abs(np.abs(waves) - min(share, 1 - share)).max() < 5 * 2 * sigma
    phases = waves / np.abs(waves)
    assert abs(phases.mean()) < 3 / np.sqrt(CLIENTS)


def test_trace(tmp_path: Path) -> None:
    """Oracle: the file; it begins anew at its end."""
    file = tmp_path / "trace.txt"
    file.write_text("0 2\n\n1\n")
    found = [np.flatnonzero(Trace(file).present(round, 3, SEED)).tolist() for round in range(1, 6)]
    assert found == [[0, 2], [], [1], [0, 2], []]


def test_a_cohort_is_of_those_available(tmp_path: Path) -> None:
    """Oracles: the file; and a run that ended before the round in which nobody could be reached, bit for bit."""
    file = tmp_path / "trace.txt"
    file.write_text("0 2 3\n\n")
    made = run(tmp_path / "two.h5", availability=Trace(file), rounds=2)
    assert made.clients["client"].tolist() == [0, 2, 3]
    assert made.rounds["unavailable"].tolist() == [1, 4]
    assert made.rounds["bytes_down"][1] == made.rounds["bytes_up"][1] == 0
    assert made.weights_sha256 == run(tmp_path / "one.h5", availability=Trace(file)).weights_sha256
    assert made.rounds["test_loss"][0] == made.rounds["test_loss"][1] != made.initial["test_loss"]
