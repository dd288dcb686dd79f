"""The summary of a run as text, wrapped at 80 characters."""

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
#: Columns of a generator's classification accuracy score (CAS), and their names in the summary.
CAS = {"cas": "CAS on all images", "cas_test": "on test images", "cas_compat": "as in the authors' code"}


def summarize(run: Run) -> str:
    """Settings, metrics, speed and traffic of a run, as text without a final newline."""
    lines = [f"{'status':{_LABEL_WIDTH}}{_status(run)}"]
    for label, text in _entries(run):
        text = printable(text)
        # Long words are not broken, so that the file's name can be copied.
        lines += textwrap.wrap(
            text,
            width=80,
            initial_indent=f"{label:{_LABEL_WIDTH - 1}} ",
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
    if "frozen_values" in run.inputs:
        yield "model", sizes(len(run.weights), run.inputs["frozen_values"])
    yield "rounds", _rounds(run)
    main = run.main_metric
    if not np.isnan(run.statistics().initial):
        before = [f"{name} {_shown(run, f'test_{name}', 'initial')}" for name in dict.fromkeys((main, "loss"))]
        yield "untrained", f"{', '.join(before)} (of the initial model)"
    if _rounds_done(run):
        yield main, _measured(run, run.main_column)
        columns = {"validation": f"validation_{main}", "cohort mean": f"cohort_mean_{main}"}
        columns |= {"client mean": f"clients_mean_{main}"}
        columns |= {name: f"test_{name}" for name in run.metrics if name not in (main, "loss")}
        columns |= {"backdoor": "backdoor_success"}
        for label, column in columns.items():
            if column in run.rounds:
                yield label, _measured(run, column)
        scores = [name for name in CAS if name in run.rounds]
        if scores:
            yield "generator", ", ".join(f"{CAS[name]} {_shown(run, name)}" for name in scores)
        if main in run.held_out:
            yield "held-out", _held_out(run)
        losses = {"test": "test_loss", "validation": "validation_loss", "training": "train_loss"}
        known = {name: column for name, column in losses.items() if name != "validation" or column in run.rounds}
        yield "loss", ", ".join(f"{name} {_shown(run, column)}" for name, column in known.items())
        if diverged := _total(run, "diverged_clients"):
            some = "local training; its update was" if diverged == 1 else "local trainings; their updates were"
            yield "diverged", f"{diverged:.0f} {some} excluded"
        yield "time", _time_split(run)
        yield "speed", _speed(run)
        if "virtual_seconds" in run.rounds:
            yield "virtual", _virtual(run)
        yield "traffic", _traffic(run)
        if energy := _energy(run):
            yield "energy", energy
    if run.weights_sha256:
        is_personal = "clients_trained" in run.rounds
        note = " (of the server's model alone; the file does not have the clients' own models)" if is_personal else ""
        yield "sha256", run.weights_sha256 + note
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


def _measured(run: Run, column: str) -> str:
    """The last value of a column, the best one if it is known which values are better, and the last ten."""
    if column not in run.rounds or np.isnan(run.statistics(column).last):
        return "-"
    averaged = min(10, np.count_nonzero(~np.isnan(run.rounds[column])))
    last, last10 = (_shown(run, column, statistic) for statistic in ("last", "last10"))
    return ", ".join([f"last {last}", *best(run, column), f"last {averaged} evaluations {last10}"])


def best(run: Run, column: str) -> list[str]:
    """The best value of a column and its round, as text; empty if it is not known which values are better."""
    found = run.statistics(column)
    if not found.best_round:
        return []
    how, *remark = run.best_is(column).split(", ")
    return [f"{how} {_shown(run, column, 'best')} ({', '.join([f'round {found.best_round}', *remark])})"]


def _shown(run: Run, column: str, statistic: str = "last") -> str:
    return run.described(column).shown(getattr(run.statistics(column), statistic))


def _time_split(run: Run) -> str:
    wall = _total(run, "seconds") or math.nan
    shares = {
        name: _total(run, f"{column}_seconds") / wall
        for name, column in (
            ("training", "train"),
            ("MPI", "communication"),
            ("evaluation", "evaluation"),
        )
    }
    for name, column in (("teachers", "teacher_seconds"), ("server", "server_seconds")):
        if column in run.rounds:
            shares[name] = _total(run, column) / wall
    waits = run.environment.get("ranks", 1) > 1
    shares["idle" if waits else "other"] = 1 - sum(shares.values())
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()) + (
        " (waiting for the slowest rank)" if waits else ""
    )


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
    """The virtual time, and how many of the asked clients, or of asynchronous jobs, were of no use."""
    found = {name: _total(run, name) for name in ("selected", "dropped", "late", "updates", "discarded")}
    lost = f"{found['dropped']:.0f} dropped out, {found['late']:.0f} were late"
    if "updates" in run.rounds:
        jobs = sum(found[name] for name in ("updates", "dropped", "late", "discarded"))
        lost = f"of {jobs:.0f} jobs {lost}, {found['discarded']:.0f} were too old"
    else:
        lost = f"of {found['selected']:.0f} asked clients {lost}"
    return f"{duration(_total(run, 'virtual_seconds'))}; {lost}"


def _held_out(run: Run) -> str:
    """The mean of the held-out clients' main metric before and after they fine-tune the global model."""
    values, about = run.held_out[run.main_metric], run.described(run.main_column)
    first, last, epochs = values[:, 0].mean(), values[:, -1].mean(), values.shape[1] - 1
    after = f"after {epochs} epochs of fine-tuning {about.shown(last)}"
    return f"{len(values)} clients, {run.main_metric} of the global model {about.shown(first)}, {after}"


def _traffic(run: Run) -> str:
    up, down = _total(run, "bytes_up"), _total(run, "bytes_down")
    return f"{_bytes(up)} up, {_bytes(down)} down (what simulated clients would send and receive; not MPI)"


def _energy(run: Run) -> str:
    """Energy of the rounds in which it was measured; empty if it was in none."""
    kinds = {"cpu_joules": "processors and their memory", "gpu_joules": "GPUs"}
    known = {name: what for name, what in kinds.items() if name in run.rounds}
    return ", ".join(f"{_total(run, name) / 1e3:.4g} kJ by {what}" for name, what in known.items())


def _total(run: Run, column: str) -> float:
    return float(np.nansum(run.rounds.get(column, np.nan)))


def _rounds_done(run: Run) -> int:
    return len(run.rounds.get("round", ()))


def sizes(trained: int, frozen: int) -> str:
    """A text about how many values of a model are trained, and how many are not."""
    return f"{trained:,} values trained and sent, {frozen:,} frozen"


def way_of_training(at_once: int, reason: str) -> str:
    """A text about how many clients each rank trains at once, and why.

    Args:
        at_once: the largest number of clients in one batched call.
        reason: why it is this number.
    """
    way = "one client after another" if at_once == 1 else f"up to {at_once} clients in one batched call"
    return f"{way} on each rank ({reason})"


def duration(seconds: float) -> str:
    """A duration as text, in seconds, in minutes and seconds, or in hours and minutes."""
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
