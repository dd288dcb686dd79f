"""The placement of a cohort's clients on ranks, by the times of earlier rounds.

Every rank computes the same placement from the same measurements, without communication. So that different processors
agree, only exact sums and elementwise operations are used: no matrix library, and no sum whose order matters.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

# The measurements of a rank for the fit: sums over its blocks, divided by their steps where they are products (that
# is least squares with weights 1 / steps: all that is expected is then as much as was measured); and what it moved.
OBSERVED = (
    "blocks",
    "fixed",
    "steps",
    "seconds",
    "fixed2",
    "fixed_seconds",
    "seconds2",
    "moved_bytes",
    "moving_seconds",
)
# What a round counts in the next one.
KEPT = 0.7
# No block counts for more than so many times what was expected of it: a pause, or other work on the machine.
LONGEST = 2.0
# Weight of the belief that there is no fixed cost, for when all blocks are alike.
RIDGE = 0.01
# Relative standard deviation of a block's seconds, believed as if one block had shown it.
NOISE = 0.1
# Before anything has been moved: 1 GB/s, as if one MB had shown it.
BYTES_BEFORE, SECONDS_BEFORE = 1e6, 1e-3
# The speeds depend on the costs and the costs on the speeds: a fit goes on where the last ended, and so many times
# over in the first rounds.
FIRST_PASSES, FIRST_ROUNDS = 3, 5


class CostModel:
    """The time of a block of clients on a rank, learnt from round to round:

        seconds = slowness of the rank * (fixed_cost * fixed + step_cost * steps)

    `steps` is the sum of the optimizer steps of the block's clients. `fixed` is 1 for a client that is trained alone.
    For clients that are trained together it is the number of their common steps: the largest number of steps. Before
    the end of the first round, all ranks count as equally fast, and a step takes 1.

    Args:
        ranks: number of ranks that train.
        at_once: K, the largest number of clients that a rank trains together.

    Attributes:
        slowness: [ranks], 1 / speed; the mean speed is 1.
        fixed_cost, step_cost: seconds at mean speed, not negative.
        seconds_a_byte: seconds per byte for moving the vectors that clients keep between rounds.
        is_fitted: whether it has learnt from a round.
    """

    def __init__(self, ranks: int, at_once: int = 1) -> None:
        self.slowness = np.ones(ranks)
        self.fixed_cost, self.step_cost = 0.0, 1.0
        self.seconds_a_byte = SECONDS_BEFORE / BYTES_BEFORE
        self._ranks = ranks
        self._at_once = at_once
        self._sums = np.zeros((ranks, len(OBSERVED)))
        self._rounds = np.zeros(ranks, dtype=np.int64)  # in which each has trained

    @property
    def is_fitted(self) -> bool:
        return bool(self._rounds.any())

    def place(
        self, steps: NDArray[np.int64], home: NDArray[np.int64] | None = None, state_bytes: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Assign clients, the longest first, each to the rank that would finish it first (Graham, 1969).

        Clients that are short compared with the remaining work are assigned several at a time, at most half of a
        rank's equal share of the rest. A rank finishes these before the end of an even distribution of the rest, so
        nothing is lost. So the number of assignments grows with the number of ranks, and hardly with the number of
        clients.

        Args:
            steps: [m] optimizer steps of each client.
            home: [m] the rank that holds the vectors of a client; negative: none. Another rank must spend the time
                for moving them. So a client stays at home unless moving it saves more time.
            state_bytes: bytes that a client keeps.

        Returns: [m] numbers in 0..ranks-1, and [ranks] the expected time of each rank.
        """
        home = np.full(len(steps), -1) if home is None else home
        order = np.lexsort((home, -steps))
        steps, home, alone = steps[order], home[order], self._at_once == 1
        homes, upto = home.tolist(), [0, *np.cumsum(steps).tolist()]
        another_home = [*(np.flatnonzero(np.diff(home)) + 1).tolist(), len(steps)]
        most = len(steps) if alone else self._at_once
        moving = state_bytes * self.seconds_a_byte
        least = self.fixed_cost * (len(steps) if alone else int(steps[:: self._at_once].sum()))
        even = (least + self.step_cost * upto[-1]) / math.fsum(1 / self.slowness)
        # Of equals another one begins in every round, or the longest client would always be on the same rank, and
        # its cost could not be told from the rank's slowness.
        finish = 1e-12 * ((np.arange(self._ranks) - self._rounds.max()) % self._ranks)
        room = np.zeros(self._ranks, dtype=np.int64)  # in each rank's last block
        counts, takers = [], []
        first = 0
        while first < len(steps):
            few = bisect_right(upto, upto[first] + (upto[-1] - upto[first]) / (2 * self._ranks)) - 1
            stop = min(max(few, first + 1), first + most, another_home[bisect_right(another_home, first)])
            count, longest = stop - first, upto[first + 1] - upto[first]
            fixed = count if alone else longest * (room < count)
            then = finish + self.slowness * (self.fixed_cost * fixed + self.step_cost * (upto[stop] - upto[first]))
            at_home = homes[first]
            if at_home >= 0:
                then += moving * count
                then[at_home] -= moving * count
            stays = at_home >= 0 and then[at_home] <= even + moving
            rank = at_home if stays else int(then.argmin())
            finish[rank] = then[rank]
            room[rank] = (room[rank] - count) % self._at_once
            counts.append(count)
            takers.append(rank)
            first = stop
        placement = np.empty(len(steps), dtype=np.int64)
        placement[order] = np.repeat(*np.array([takers, counts], dtype=np.int64))
        return placement, finish

    def observation(self, rank: int, steps: NDArray[np.int64], seconds: float) -> dict[str, float]:
        """The measurements of a block of clients with these `steps` [K], in descending order."""
        fixed, total = 1 if self._at_once == 1 else int(steps[0]), int(steps.sum())
        if not total:
            return {}
        if self._rounds[rank]:
            expected = self.slowness[rank] * (self.fixed_cost * fixed + self.step_cost * total)
            seconds = min(seconds, LONGEST * expected)
        products = {"fixed2": fixed**2, "fixed_seconds": fixed * seconds, "seconds2": seconds**2}
        sums = {"blocks": 1, "fixed": fixed, "steps": total, "seconds": seconds}
        return {**sums, **{name: value / total for name, value in products.items()}}

    def learn(self, measured: NDArray[np.float64]) -> None:
        """Learn from a round's measurements [ranks, OBSERVED], the same on every rank."""
        worked = measured[:, OBSERVED.index("blocks")] > 0
        if not worked.any():
            return
        # In its first round a rank warms up: that counts only as long as there is no other.
        kept = np.where(worked & (self._rounds == 1), 0, KEPT)
        self._sums = kept[:, None] * self._sums + measured
        self._rounds += worked
        for _ in range(FIRST_PASSES if self._rounds.max() <= FIRST_ROUNDS else 1):
            self._fit()

    @property
    def learnt(self) -> dict[str, NDArray]:
        """Everything that was learnt, as arrays."""
        costs = np.array([self.fixed_cost, self.step_cost, self.seconds_a_byte])
        return {"costs": costs, "slowness": self.slowness, "sums": self._sums, "rounds": self._rounds}

    @learnt.setter
    def learnt(self, learnt: dict[str, NDArray]) -> None:
        """Continue from what was learnt earlier; with another number of ranks, from the mean over ranks."""
        self.fixed_cost, self.step_cost, self.seconds_a_byte = learnt["costs"].tolist()
        if len(learnt["sums"]) == self._ranks:
            self.slowness, self._sums, self._rounds = (learnt[name].copy() for name in ("slowness", "sums", "rounds"))
        else:
            self._sums[:], self._rounds[:] = learnt["sums"].mean(0), learnt["rounds"].max()

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """[ranks] each, for the results; NaN before the first round."""
        known = np.full(self._ranks, 1.0 if self.is_fitted else np.nan)
        fixed, step = self.fixed_cost * self.slowness, self.step_cost * self.slowness
        return {"speed": known / self.slowness, "fixed_seconds": known * fixed, "step_seconds": known * step}

    def _fit(self) -> None:
        measured = dict(zip(OBSERVED, self._sums.T, strict=True))
        blocks, steps = math.fsum(measured["blocks"]), math.fsum(measured["steps"])
        # The costs, given the speeds, by the normal equations
        #   fixed2 * fixed_cost + fixed * step_cost = fixed_seconds,  fixed * fixed_cost + steps * step_cost = seconds
        fixed, fixed2 = math.fsum(measured["fixed"]), (1 + RIDGE) * math.fsum(measured["fixed2"])
        seconds = math.fsum(measured["seconds"] / self.slowness)
        fixed_seconds = math.fsum(measured["fixed_seconds"] / self.slowness)
        step_cost = (fixed2 * seconds - fixed * fixed_seconds) / (fixed2 * steps - fixed * fixed)
        step_cost = min(max(step_cost, 0.0), seconds / steps)
        fixed_cost = (seconds - steps * step_cost) / fixed
        # The speeds, given the costs. What single blocks are off by says how far a rank may be off by chance, and a
        # rank's own slowness is believed as far as it goes beyond.
        expected = fixed_cost * measured["fixed"] + step_cost * measured["steps"]
        found = np.divide(measured["seconds"], expected, out=np.ones(self._ranks), where=expected > 0)
        cross = fixed_cost * measured["fixed_seconds"] + step_cost * measured["seconds"]
        square = fixed_cost * (fixed_cost * measured["fixed2"] + step_cost * measured["fixed"]) + step_cost * expected
        errors = max(math.fsum(measured["seconds2"] - 2 * found * cross + found * found * square), 0.0)
        believed = NOISE * NOISE * seconds * seconds / (blocks * steps)
        noise = (errors + believed) / (1 + max(blocks - self._ranks, 0.0))
        off = measured["seconds"] - expected
        by_chance = noise * measured["steps"] / np.maximum(off * off, 1e-300)
        slowness = 1 + np.maximum(1 - by_chance, 0) * (found - 1)
        mean_speed = math.fsum(1 / slowness) / self._ranks
        self.slowness = slowness * mean_speed
        self.fixed_cost, self.step_cost = fixed_cost / mean_speed, step_cost / mean_speed
        moved, took = math.fsum(measured["moved_bytes"]), math.fsum(measured["moving_seconds"])
        self.seconds_a_byte = (took + SECONDS_BEFORE) / (moved + BYTES_BEFORE)
