"""The schedule of asynchronous training, against lists by hand, laws of queues and a simulation's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.policies import (
    All,
    Always,
    Bernoulli,
    FixedList,
    Heterogeneous,
    Ideal,
    Intervals,
    Pool,
    PowerOfChoice,
    RoundRobin,
    Sampler,
    Stratified,
    Uniform,
    Weighted,
    Weighting,
)
from fedmpi.policies.clock import LONGEST, TICKS, to_ticks
from fedmpi.policies.conditions import Conditions, Fate, Job, JobCosts, RoundPlan, Workload
from fedmpi.policies.sampling import Cohort
from fedmpi.policies.timeline import Timeline, check_asynchronous

#: Time of the row's end, client, start version, staleness.
Event = tuple[float, int, int, int]


class Lasting(Ideal):
    """Jobs that last so many seconds, by client; a client's job of a number that is listed has another fate."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds
        self.fates: Mapping[tuple[int, int], Fate] = {}

    def job(self, costs: JobCosts, seed: int) -> Job:
        return lambda client, number: (
            round(self.seconds[client] * TICKS),
            self.fates.get((client, number), "arrives"),
        )


def timeline(clients: int, concurrency: int, cohort: int, buffer: int | None = None, **settings: Any) -> Timeline:
    """By default with one sample at each client; every job takes a second and costs a step and 4 bytes each way."""
    samples = settings.pop("samples", np.ones(clients, dtype=np.int64))
    chosen: dict[str, Any] = {
        "sampler": Uniform(),
        "conditions": Ideal(),
        "availability": Always(),
        "weighting": "uniform",
        "pool": Pool(samples, lambda: samples[:, None]),
        "costs": JobCosts(np.ones(clients), np.full(clients, 4), np.full(clients, 4)),
        "seed": 3,
    }
    buffer = cohort if buffer is None else buffer
    return Timeline(concurrency=concurrency, cohort=cohort, buffer=buffer, **chosen | settings)


def events(line: Timeline, rows: int) -> list[list[Event]]:
    """Each row's arrivals, in order, with the time at the end of the row."""
    found: list[list[Event]] = []
    now = 0.0
    for number in range(1, rows + 1):
        row = line.row(number)
        now += row.columns["virtual_seconds"]
        order = np.argsort(row.order)
        columns = (row.clients, row.version, row.staleness)
        triples = zip(*(column[order].tolist() for column in columns), strict=True)
        found.append([(now, client, version, staleness) for client, version, staleness in triples])
    return found


def without_times(rows: Sequence[Sequence[Event]]) -> list[list[tuple[int, ...]]]:
    return [[event[1:] for event in row] for row in rows]


def stalenesses(line: Timeline, rows: int) -> NDArray[np.int64]:
    """Of all arrivals of the next rows, in order."""
    first = line.rows + 1
    made = [line.row(number) for number in range(first, first + rows)]
    return np.concatenate([row.staleness[np.argsort(row.order)] for row in made])


def test_all_at_once_are_fresh() -> None:
    """Oracle: with as many slots as a row has arrivals, event d draws the cohort of round d; nothing is stale."""
    line = timeline(20, 6, 6, availability=(there := Availability()))
    for round in range(1, 9):
        row = line.row(round)
        pool = Pool(line.pool.samples, line.pool.count_labels, np.flatnonzero(there.present(round, 20, 3)))
        expected = Uniform().cohort(round, 6, pool, "uniform", 3)
        np.testing.assert_array_equal(row.clients, expected.clients)
        np.testing.assert_array_equal(row.mass, expected.mass)
        assert row.version.tolist() == [round - 1] * len(row)
        assert set(row.staleness) == {0}
        assert row.columns["in_flight"] == 0
        assert row.needed_versions.tolist() == [round]
        assert line.state == (round * TICKS, round, 6 * round)


class Availability(Always):
    """Two of three clients, others in every round."""

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return (np.arange(clients) + round) % 3 > 0


def test_two_cohorts_in_flight() -> None:
    """Oracles: by hand. Z of 2 Z arrive before the flush, Z after it; likewise for 15 slots and rows of 10."""
    assert stalenesses(timeline(40, 12, 6), 6).tolist() == [
        *[0] * 6,
        *[1] * 6,
        *[0] * 6,
        *[1] * 6,
        *[0] * 6,
        *[1] * 6,
    ]
    pattern = [(10, 0), (5, 1), (5, 0), (10, 1), (10, 0), (5, 1)]
    expected = [value for count, value in pattern for _ in range(count)]
    assert stalenesses(timeline(40, 15, 10), 5).tolist()[:45] == expected


def test_three_clients_by_hand() -> None:
    """Oracle: the lists of events of clients that take 2, 3 and 7 seconds, written by hand."""
    single = timeline(3, 3, 3, 1, conditions=Lasting(2, 3, 7))
    rows = events(single, 6)
    assert without_times(rows) == [
        [(0, 0, 0), (1, 0, 1)],
        [(0, 1, 1)],
        [(0, 3, 0), (1, 2, 2), (2, 0, 5)],
        [(0, 5, 1), (1, 5, 2)],
        [(0, 7, 1)],
        [(0, 9, 0), (1, 8, 2)],
    ]
    assert [row[-1][0] for row in rows] == [3, 4, 7, 9, 10, 12]
    buffered = timeline(3, 3, 2, conditions=Lasting(2, 3, 7))
    rows = events(buffered, 6)
    assert without_times(rows) == [
        [(0, 0, 0), (1, 0, 0)],
        [(0, 1, 0), (1, 1, 0)],
        [(2, 0, 2), (0, 2, 0)],
        [(1, 2, 1), (0, 3, 0)],
        [(0, 4, 0), (1, 4, 0)],
        [(0, 5, 0), (2, 3, 2)],
    ]
    assert [row[-1][0] for row in rows] == [3, 6, 8, 10, 13, 15]


def test_columns_by_hand() -> None:
    """Oracle: the same list; the third row of single updates, and what is in flight after it."""
    line = timeline(3, 3, 3, 1, conditions=Lasting(2, 3, 7))
    row = line.row(3)
    assert row.clients.tolist() == row.order.tolist() == [0, 1, 2]
    assert row.seconds.tolist() == [2, 3, 7]
    assert row.number.tolist() == [3, 4, 5]
    assert row.columns == {
        "virtual_seconds": 3.0,
        "staleness_mean": 7 / 3,
        "staleness_max": 5,
        "version": 6,
        "updates": 3,
        "in_flight": 2,  # client 0 and client 1, which both started from version 5; client 2's slot is filled later
        "versions_in_flight": 1,
        "discarded": 0,
        "dropped": 0,
        "late": 0,
        "waves": 1,
    }
    assert row.needed_versions.tolist() == [5, 6]
    plan = row.plan
    assert plan.cohort is row
    assert {name: values.tolist() for name, values in plan.clients.items()} == {
        "start_version": [3, 2, 0],
        "staleness": [0, 2, 5],
        "virtual_seconds": [2, 3, 7],
        "arrival": [0, 1, 2],
        "arrived_at": [6, 6, 7],
    }


def test_waves() -> None:
    """Oracles: start versions exist when a wave begins, and the next arrival's does not; no wave is split further."""
    line = timeline(60, 20, 40, 1, conditions=Heterogeneous(speed_spread=1, download=1e15, upload=1e15))
    counts = []
    for number in range(1, 30):
        row = line.row(number)
        waves = list(row.waves())
        counts.append(len(waves))
        assert row.columns["waves"] == len(waves)
        arrived = 0
        for wave, following in zip(waves, [*waves[1:], None], strict=True):
            assert (np.diff(wave.clients) > 0).all()
            assert sorted(wave.order) == list(range(arrived, arrived + len(wave)))
            first = wave.number.min()
            assert (wave.version <= first).all()
            arrived += len(wave)
            if following is not None:
                assert following.version[following.order.argmin()] > first
        assert arrived == len(row)
    assert 1 < np.mean(counts) < 8
    one = timeline(60, 20, 10, conditions=Lasting(*range(1, 61)))
    assert all(len(list(one.row(number).waves())) == 1 for number in range(1, 9)), "a buffer is one update"


def test_kept_versions_are_enough() -> None:
    """Oracle: a replay of a server that keeps only what it is told; every start is there."""
    for buffer in (1, 10):
        line = timeline(50, 15, 10, buffer, conditions=Heterogeneous(speed_spread=1))
        kept, version = {0}, 0
        for number in range(1, 200):
            row = line.row(number)
            for arrival in np.argsort(row.order):
                assert int(row.version[arrival]) in kept
                if buffer == 1:
                    version += 1
                    kept.add(version)
            version += buffer > 1
            kept = (kept | {version}) & set(row.needed_versions.tolist())
            assert kept == set(row.needed_versions.tolist())


@pytest.mark.parametrize("buffer", [1, 10])
def test_mean_staleness(buffer: int) -> None:
    """Oracle: Little's law; C - 1 arrivals lie between a start and its end, whatever the speeds (8000 arrivals)."""
    line = timeline(400, 41, 10, buffer, conditions=Heterogeneous(speed_spread=1, bandwidth_spread=1))
    stalenesses(line, 100)
    late = stalenesses(line, 800)
    assert abs(late.mean() / (40 / buffer) - 1) < 0.02


def test_the_slow_and_the_fast() -> None:
    """Oracle: an independent simulation of 1000 clients (log-normal with sigma 1), C 100, Z 10; see its figures."""
    speeds = {"speed_spread": 1.0, "bandwidth_spread": 0.0, "download": 1e15, "upload": 1e15}
    conditions = Heterogeneous(seconds_per_step=1.0, **speeds)
    line = timeline(1000, 100, 10, conditions=conditions)
    rows = [line.row(number) for number in range(1, 1001)][200:]
    late = np.concatenate([row.staleness for row in rows])
    assert late.mean() == pytest.approx(9.9, rel=0.02)
    assert np.median(late) in (6, 7)
    assert np.percentile(late, 99) == pytest.approx(57, rel=0.25)
    assert np.mean([row.columns["versions_in_flight"] for row in rows]) == pytest.approx(33.1, rel=0.08)
    assert np.mean([row.columns["virtual_seconds"] for row in rows]) == pytest.approx(0.138, rel=0.12)
    assert np.mean([len(np.unique(row.version)) for row in rows]) == pytest.approx(8.0, rel=0.05)
    times = conditions.profile(np.arange(1000), 1000, 3).seconds_per_step
    of = np.bincount(np.concatenate([row.clients for row in rows]), minlength=1000)[np.argsort(times)]
    assert of[:100].sum() / of.sum() == pytest.approx(0.110, abs=0.005)
    assert of[900:].sum() / of.sum() == pytest.approx(0.074, abs=0.012)


def test_ties_are_broken_by_client() -> None:
    """Oracle: by hand. All that end at an instant arrive, by number, before their slots are filled."""
    line = timeline(6, 4, 4, 1, conditions=Lasting(*[2] * 6))
    for number in range(1, 6):
        row = line.row(number)
        assert (np.diff(row.clients) > 0).all()
        assert row.order.tolist() == [0, 1, 2, 3]
        assert set(row.version) == {4 * (number - 1)}
    assert line.state == (10 * TICKS, 5, 20)


def test_who_is_in_the_buffer_is_not_asked_again() -> None:
    """Oracle: by hand. Client 0 is fast and rests till the flush; with single updates it arrives ten times."""
    buffered = timeline(2, 2, 2, conditions=Lasting(1, 10))
    assert events(buffered, 2) == [[(10.0, 0, 0, 0), (10.0, 1, 0, 0)], [(20.0, 0, 1, 0), (20.0, 1, 1, 0)]]
    assert buffered.state.events == 4, "of which two found nobody who is free"
    single = timeline(2, 2, 2, 1, conditions=Lasting(1, 10))
    arrived = [client for row in events(single, 10) for _, client, *_ in row]
    assert arrived.count(0) == 10


def test_lost_late_and_old() -> None:
    """Oracle: by hand; the bytes of lost jobs are those that the clients have received."""
    conditions = Lasting(1, 2, 9)
    conditions.fates = {(0, 1): "dropped", (1, 1): "late"}
    line = timeline(3, 3, 2, 1, conditions=conditions, max_staleness=3)
    rows = [line.row(number) for number in range(1, 10)]
    lost = [tuple(row.columns[name] for name in ("dropped", "late", "discarded")) for row in rows]
    assert lost[0] == (1, 1, 0)
    assert rows[0].bytes_lost == 8
    assert sum(discarded for *_, discarded in lost) == 1, "that of client 2"
    assert max(int(row.staleness.max()) for row in rows) <= 3


def test_samplers_choose_by_event(tmp_path: Path) -> None:
    """Oracle: by hand. A line for each event; who is busy is passed over, and the rest is cut to the free slots."""
    file = tmp_path / "list.txt"
    file.write_text("3 1 2\n0\n1 4\n")
    line = timeline(5, 2, 2, sampler=FixedList(file), conditions=Lasting(1, 2, 3, 4, 5))
    rows = events(line, 3)
    # 0 s: 3 and 1 are asked. 2 s: 1 arrives, 0 is asked. 3 s: 0 arrives, the buffer is full.
    # 3 s: 1 is asked, 4 would be the third. 4 s: 3 arrives. Line 4 is the first again: 2, as 3 rests and 1 is busy.
    assert without_times(rows[:2]) == [[(1, 0, 0), (0, 0, 0)], [(3, 0, 1), (1, 1, 0)]]


def test_clients_without_samples_are_never_asked() -> None:
    samples = np.array([3, 0, 5, 0, 1])
    line = timeline(5, 5, 3, samples=samples, weighting="samples")
    row = line.row(4)
    assert row.clients.tolist() == [0, 2, 4]
    assert row.mass.tolist() == row.samples.tolist() == [3, 5, 1]


def test_rows_without_arrivals() -> None:
    """Oracle: by hand. The deadline is below the fastest job, so nobody arrives, and each row ends all the same."""
    speeds: dict[str, float] = {"seconds_per_step": 5.0, "speed_spread": 0.0, "download": 1e15, "upload": 1e15}
    line = timeline(30, 6, 3, conditions=Heterogeneous(**speeds, deadline=0.5))
    for number in range(1, 5):
        row = line.row(number)
        assert len(row) == 0
        assert row.columns["late"] == 30, "as many ends in turn as there are clients"
        assert row.columns["virtual_seconds"] == 2.5, "five of them at a time"
        assert np.isnan(row.columns["staleness_mean"])
        assert list(row.waves()) == []
        assert row.needed_versions.tolist() == [0]
    assert not len(timeline(4, 2, 2, availability=Nobody()).row(3))


class Nobody(Always):
    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return np.zeros(clients, dtype=bool)


def test_availability_by_the_row() -> None:
    """Oracle: whoever has started in a row could be reached in the round of its number; rows end where nobody can."""

    class Odd(Always):
        def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
            return np.arange(clients) % 3 == round % 3 if round != 3 else np.zeros(clients, bool)

    line = timeline(30, 4, 4, availability=Odd())
    rows = [line.row(number) for number in range(1, 7)]
    assert [len(row) for row in rows] == [4, 4, 0, 4, 4, 4]
    assert [set(row.clients % 3) for row in rows if len(row)] == [{1}, {2}, {1}, {2}, {0}]


def test_availability_by_the_clock(tmp_path: Path) -> None:
    """Oracle: by hand. Nobody is there from 3 to 10 and from 12 on; a period repeats the file for ever."""
    file = tmp_path / "times.csv"
    file.write_text("client,begin,end\n0,0,2\n1,1,3\n0,10,12\n")
    rows = events(timeline(3, 1, 1, availability=Intervals(file)), 6)
    # At 0 s only 0 is there, at 1 s both are, at 2 s only 1, at 3 s nobody, till 0 comes at 10 s.
    assert [row[0][:2] for row in rows[2:5]] == [(3, 1), (11, 0), (12, 0)]
    assert [row[0][0] for row in rows[:2]] == [1, 2]
    assert rows[5] == []
    again = timeline(3, 1, 1, availability=Intervals(file, period=20.0))
    assert [row[0][0] for row in events(again, 10)][5:] == [21, 22, 23, 31, 32]


def test_a_free_slot_is_filled_when_a_client_comes(tmp_path: Path) -> None:
    """Oracle: by hand. Client 0 trains for 100 s. Client 1 is there till 1.5 s, 2 from 5 s, and 3 from 5.5 s on.

    With two slots, client 3 finds none: at the end of each job of 2 the sampler prefers 2.
    """
    file = tmp_path / "times.csv"
    file.write_text("client,begin,end\n0,0,900\n1,0,1.5\n2,5,900\n3,5.5,900\n")
    settings: dict[str, Any] = {
        "availability": Intervals(file),
        "conditions": Lasting(100, 1, 1, 4),
        "sampler": First(),
    }
    line = timeline(4, 2, 1, **settings)
    rows = [line.row(number) for number in range(1, 6)]
    assert [row.clients.tolist() for row in rows] == [[1], [1], [2], [2], [2]]
    assert [row.arrived_at.tolist() for row in rows] == [[1.0], [2.0], [6.0], [7.0], [8.0]]
    assert [row.version.tolist() for row in rows] == [[0], [1], [2], [3], [4]]
    found = events(timeline(4, 3, 1, **settings), 8)
    assert [row[0] for row in found] == [
        (1.0, 1, 0, 0),
        (2.0, 1, 1, 0),
        *[(6.0 + n, 2, 2 + n, 0) for n in range(3)],
        (9.0, 2, 5, 0),
        (9.5, 3, 2, 4),
        (10.0, 2, 6, 1),
    ]
    file.write_text("client,begin,end\n0,3,900\n1,4,900\n")
    both = timeline(2, 2, 1, availability=Intervals(file), conditions=Lasting(3, 3), sampler=First())
    assert [both.row(number).arrived_at.tolist() for number in (1, 2)] == [[6.0], [7.0]]
    other = timeline(4, 3, 1, **settings)
    other.row(8)
    again = timeline(4, 3, 1, **settings)
    for number in range(1, 9):
        again.row(number)
    assert other.state == again.state


def test_a_client_that_goes_away_loses_its_job(tmp_path: Path) -> None:
    """Oracle: by hand. Jobs take 4 s. Those across the end of an interval are lost there, and the next one starts."""
    file = tmp_path / "times.csv"
    file.write_text("client,begin,end\n0,0,3\n1,2,6\n1,6,9\n2,0,0.5\n2,17,20\n")
    settings: dict[str, Any] = {"conditions": Lasting(4, 4, 4), "sampler": First()}
    line = timeline(3, 1, 1, availability=Intervals(file, interrupts=True), **settings)
    rows = [line.row(number) for number in range(1, 3)]
    # 0 is lost at 3 s. Then 1 ends at 7 s, because its intervals touch; its next job is lost at 9 s, and 2's at 20 s.
    assert [(row.clients.tolist(), row.arrived_at.tolist()) for row in rows] == [([1], [7.0]), ([], [])]
    assert [row.columns["dropped"] for row in rows] == [1, 2]
    assert rows[1].bytes_lost == 8
    ends = timeline(3, 1, 1, availability=Intervals(file), **settings)
    assert [ends.row(number).arrived_at.tolist() for number in (1, 2, 3)] == [[4.0], [8.0], [12.0]]
    # With a period of 20 s, client 2 stays from 17 to 20.5 s. A row ends after as many lost jobs in turn as clients.
    again = timeline(3, 1, 1, availability=Intervals(file, 20.0, interrupts=True), **settings)
    assert [again.row(number).arrived_at.tolist() for number in (1, 2, 3)] == [[7.0], [], [27.0]]
    file.write_text("client,begin,end\n0,0,8\n1,0,3\n1,5,8\n")
    stays = Intervals(file, 8.0, interrupts=True)
    assert stays.departure(0, 5 * TICKS, 2, 3) is None
    assert stays.departure(1, 5 * TICKS, 2, 3) == 11 * TICKS
    assert stays.departure(1, 10 * TICKS, 2, 3) == 11 * TICKS


class First(Uniform):
    """The clients of the lowest numbers."""

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return pool.available[:size]


def test_a_replay_is_the_same() -> None:
    """Oracle: another object that is asked for the last row only."""
    settings: dict[str, Any] = {"conditions": Heterogeneous(dropout=0.2, deadline=0.06), "max_staleness": 20}
    for buffer in (1, 10):
        one, other = (timeline(100, 20, 10, buffer, **settings) for _ in range(2))
        rows = [one.row(number) for number in range(1, 60)]
        assert other.row(59).checksum == rows[-1].checksum
        assert one.state == other.state
        assert rows[-1].checksum != rows[-2].checksum
        assert sum(row.columns["dropped"] for row in rows) > 0
        assert sum(row.columns["late"] for row in rows) > 0
        with pytest.raises(ValueError, match="row 59 is over"):
            one.row(59)


def test_times_do_not_depend_on_when_a_client_is_asked() -> None:
    """Oracles: the profile of synchronous rounds; dropouts by a client's own count of its jobs."""
    conditions = Heterogeneous(dropout=0.5, deadline=0.6)
    costs = JobCosts(np.array([3.0, 7.0]), np.array([1000, 1000]), np.array([400, 4000]))
    profile = conditions.profile(np.arange(2), 2, 5)
    seconds = costs.down / profile.download + costs.work * profile.seconds_per_step + costs.up / profile.upload
    job = conditions.job(costs, 5)
    fates: dict[int, list[Fate]] = {0: [], 1: []}
    for number in range(1, 200):
        for client in (1, 0):
            ticks, fate = job(client, number)
            assert ticks == round(min(seconds[client], 0.6) * TICKS)
            fates[client].append(fate)
    for client, told in fates.items():
        assert abs(told.count("dropped") - 99.5) < 4 * np.sqrt(199 / 4)
        assert told.count("late") == (0 if seconds[client] <= 0.6 else 199 - told.count("dropped"))
    assert conditions.job(costs, 5)(1, 7) == job(1, 7)
    assert Ideal().job(costs, 5)(0, 1) == (TICKS, "arrives")


def test_ticks() -> None:
    assert to_ticks(np.array([0.0, 1.0, 2.5, 1e300, np.inf])).tolist()[:3] == [0, TICKS, 5 * TICKS // 2]
    assert to_ticks(np.inf) == to_ticks(1e300) == LONGEST * TICKS


class Unknown(Conditions):
    """Says nothing about jobs."""

    def plan(self, asked: Cohort, size: int, workload: Workload, seed: int) -> RoundPlan:
        return RoundPlan(asked)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "concurrency": ({"concurrency": 31}, "algorithm.concurrency = 31: must be at most the number of clients, 30"),
    "over_select": (
        {"conditions": Heterogeneous(over_select=1.3)},
        "conditions.over_select = 1.3: must be 1 with an asynchronous method",
    ),
    "stragglers": (
        {"conditions": Heterogeneous(stragglers=0.5)},
        "conditions.stragglers = 0.5: must be 0 with an asynchronous method",
    ),
    "conditions": (
        {"conditions": Unknown()},
        f"conditions = {Unknown.__module__}.Unknown: says nothing about jobs of asynchronous training",
    ),
    "samples": (
        {"buffer": 1, "weighting": "samples"},
        "weighting = samples: must be uniform where each arrival is a",
    ),
    "chances": (
        {"weighting": "horvitz_thompson"},
        "weighting = horvitz_thompson: must be uniform or samples, because",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    settings, message = REFUSALS[name]
    accepted: dict[str, Any] = {"concurrency": 30, "clients": 30, "buffer": 5, "sampler": Uniform()}
    accepted |= {"conditions": Ideal(), "weighting": "samples"}
    check_asynchronous(**accepted)
    with pytest.raises(BadInput) as raised:
        check_asynchronous(**accepted | settings)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("sampler", [PowerOfChoice(), Bernoulli(), All(), Weighted(), RoundRobin(), Stratified()])
def test_refused_samplers(sampler: Sampler) -> None:
    weighting: Weighting = "uniform"
    with pytest.raises(BadInput) as raised:
        check_asynchronous(5, 30, 5, sampler, Heterogeneous(), weighting)
    name = type(sampler).__name__
    assert str(raised.value).startswith(f"sampler = {name}: cannot be combined with an asynchronous method: ")
