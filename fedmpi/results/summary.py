"""What a run did, on one screen of 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedmpi.options import printable
from fedmpi.results.paths import checkpoints_beside
from fedmpi.results.reader import Run
from fedmpi.results.settings import describe

_LABEL_WIDTH = 12


def summarize(run: Run) -> str:
    """Settings, accuracies, speed and traffic of a run, as text without a final newline."""
    lines = [f"{'status':{_LABEL_WIDTH}}{_status(run)}"]
    for label, text in _entries(run):
        text = printable(text)
        # The file's name is kept whole, so that it can be copied.
        lines += textwrap.wrap(
            text,
            width=80,
            initial_indent=f"{label:{_LABEL_WIDTH}}",
            subsequent_indent=" " * _LABEL_WIDTH,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _entries(run: Run) -> Iterator[tuple[str, str]]:
    settings = run.identity
    experiment = [describe(settings[name]) for name in ("algorithm", "model", "dataset")]
    yield "experiment", ", ".join([*experiment, f"seed {settings['seed']}"])
    if "clients" in settings:
        yield "clients", _clients(settings)
    if "local" in settings:
        yield "local", describe(settings["local"])
    if "clients_at_once" in run.environment:
        reason = run.environment.get("clients_at_once_reason", "")
        yield "training", way_of_training(int(run.environment["clients_at_once"]), reason)
    if run.frozen:
        frozen = sum(tensor.size for tensor in run.frozen.values())
        yield "model", f"{len(run.weights):,} values trained and sent, {frozen:,} frozen"
    yield "rounds", _rounds(run)
    yield (
        "untrained",
        f"accuracy {percent(run.accuracy().initial)}, loss {loss(run.initial.get('test_loss'))}",
    )
    if _rounds_done(run):
        yield "accuracy", _accuracy(run)
        for label, column in (("cohort mean", "cohort_mean_accuracy"), ("client mean", "clients_mean_accuracy")):
            if column in run.rounds:
                yield label, _accuracy(run, column)
        scores = [name for name in ("cas", "cas_test", "cas_compat") if name in run.rounds]
        if scores:
            yield "generator", ", ".join(f"{name} {percent(run.accuracy(name).last)}" for name in scores)
        yield "loss", f"test {loss(_last(run, 'test_loss'))}, training {loss(_last(run, 'train_loss'))}"
        if diverged := _total(run, "diverged_clients"):
            some = "local training; its update was" if diverged == 1 else "local trainings; their updates were"
            yield "diverged", f"{diverged:.0f} {some} excluded"
        yield "time", _time_split(run)
        yield "speed", _speed(run)
        if "virtual_seconds" in run.rounds:
            yield "virtual", _virtual(run)
        yield "traffic", _traffic(run)
    if run.weights_sha256:
        yield "sha256", run.weights_sha256
    yield "file", str(run.path)


def _status(run: Run) -> str:
    ended_early = run.status not in ("running", "finished")
    goes_on = ended_early and checkpoints_beside(run.path)
    return f"{run.status}; continue with --resume" if goes_on else run.status


def _clients(settings: dict[str, Any]) -> str:
    cohort, partition = settings.get("cohort"), settings.get("partition")
    parts = [str(settings["clients"])]
    if cohort:
        parts.append(f"{cohort} per round")
    if partition:
        parts.append(describe(partition))
    return ", ".join(parts)


def _rounds(run: Run) -> str:
    done, planned = _rounds_done(run), run.settings.get("rounds")
    text = f"{done} of {planned}" if planned else str(done)
    return f"{text}, {duration(_total(run, 'seconds'))}" if done else text


def _accuracy(run: Run, column: str = "test_accuracy") -> str:
    score = run.accuracy(column)
    if np.isnan(score.last):
        return "-"
    return (
        f"last {percent(score.last)}, best {percent(score.best)} (round {score.best_round}), "
        f"last 10 evaluations {percent(score.last10)}"
    )


def _time_split(run: Run) -> str:
    wall = _total(run, "seconds") or math.nan
    shares = {
        name: _total(run, f"{column}_seconds") / wall
        for name, column in (
            ("training", "train"),
            ("communication", "communication"),
            ("evaluation", "evaluation"),
        )
    }
    for name, column in (("teachers", "teacher_seconds"), ("server", "server_seconds")):
        if column in run.rounds:
            shares[name] = _total(run, column) / wall
    shares["idle"] = 1 - sum(shares.values())
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def _speed(run: Run) -> str:
    wall = _total(run, "seconds") or math.nan
    parts = [f"{wall / _rounds_done(run):.3g} s per round"]
    if "clients" in run.ranks:
        parts.insert(0, f"{run.ranks['clients'].sum() / wall:.3g} clients/s")
    if "ranks" in run.environment:
        ranks = run.environment["ranks"]
        parts.append(f"{ranks} ranks" if ranks > 1 else "1 rank")
    return ", ".join(parts)


def _virtual(run: Run) -> str:
    """Virtual time, and what became of the clients that were asked."""
    asked, dropped, late = (f"{_total(run, column):.0f}" for column in ("selected", "dropped", "late"))
    return f"{duration(_total(run, 'virtual_seconds'))}; of {asked} clients asked {dropped} dropped out, {late} late"


def _traffic(run: Run) -> str:
    up, down = _total(run, "bytes_up"), _total(run, "bytes_down")
    return f"{_bytes(up)} up, {_bytes(down)} down (of the simulated clients, not MPI)"


def _total(run: Run, column: str) -> float:
    return float(np.nansum(run.rounds.get(column, np.nan)))


def _last(run: Run, column: str) -> float | None:
    values = run.rounds.get(column, np.empty(0))
    values = values[~np.isnan(values)]
    return float(values[-1]) if values.size else None


def _rounds_done(run: Run) -> int:
    return len(run.rounds.get("round", ()))


def way_of_training(at_once: int, reason: str) -> str:
    """How clients are trained, and why: so many at once on each rank, for a reason that is a clause."""
    way = "one by one" if at_once == 1 else f"up to {at_once} at once per rank"
    return f"{way} ({reason})"


def percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f} %"


def loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    if not 60 <= seconds < 1e9:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
