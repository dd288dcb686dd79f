"""Finds where a run continues, from its results file and its checkpoint, after checking that both belong to it."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

import torch
import yaml

from fedmpi import __version__, results
from fedmpi.errors import BadInput, require
from fedmpi.experiment import inputs
from fedmpi.experiment.checkpoint import Checkpoints, Place, SavedFederation, server_state
from fedmpi.experiment.settings import Settings
from fedmpi.experiment.stopping import Stopping, reason_to_stop
from fedmpi.federation.client_state import INTERNAL
from fedmpi.results import Run
from fedmpi.results.check import check_intact
from fedmpi.results.paths import checkpoints_beside
from fedmpi.results.settings import DATA, by_name
from fedmpi.streams import say

#: Settings that may differ when a run is resumed (rounds only increased). Data may be elsewhere, because they are
#: compared.
FREE = {"rounds", "threads", "device", "deadline", "track", "dataset.root", "algorithm.proxy.root"}
FREE |= {f"stop.{one.name}" for one in fields(Stopping)}


#: What is said of attributes that keep state.
UNDECLARED = (
    "{} keeps something from round to round that no checkpoint has: declare it (server_state, or fed.client_state)"
)


def missing_in_results(saved: SavedFederation) -> list[str]:
    """What a run needs to continue that its results file does not contain, in words."""
    algorithm, engine = saved.algorithm, saved.engine
    missing = []
    for name in server_state(algorithm):
        _, number, *optimizer, attribute = name.split("/")
        part = algorithm.parts[int(number)]
        owner = type(part.server_optimizer if optimizer else part).__name__
        if name != "server/0/weights":
            missing.append(f"the server's {attribute.replace('_', ' ')} ({owner})")
    states = [name.removeprefix(INTERNAL) for name in engine.states.states]
    return missing + [f"the clients' {name} ({type(algorithm).__name__})" for name in states]


def restore_weights(saved: SavedFederation, output: Path) -> None:
    """Set the global model of the results file, if the method needs nothing else."""
    if saved.engine.federation.is_server:
        weights = torch.from_numpy(results.open(output).weights)
        saved.algorithm.parts[0].weights = saved.engine.federation.layout.from_canonical(weights)


def find(experiment: Settings, config: str, checkpoints: Checkpoints) -> Place | None:
    """Find where a resumed run continues, and print a line about it; None: at its start. At rank 0.

    Args:
        config: the settings.
        checkpoints: the checkpoint that the run continues from is then open.

    Raises:
        BadInput: the results file is damaged, not a results file, missing although its checkpoint exists, or of a run
            with other settings, code or files; all checkpoints are damaged; or a finished run cannot have more
            rounds.
    """
    output, rounds = experiment.output, experiment.rounds
    kept = checkpoints_beside(output)
    if kept and not output.exists():
        reason = (
            f"{output} is missing, but its checkpoint {kept[0]} exists; --overwrite instead of --resume starts again"
        )
        raise BadInput(f"--resume: {reason}")
    if not output.exists():
        say(f"{output}: does not exist, starting a new run")
        return None
    try:
        run = results.open(output)
        check_intact(output)
    except BadInput as error:
        raise BadInput(f"--resume: {error}") from None
    check_settings(run, config)
    done, is_over = len(run.rounds.get("round", ())), run.status == "finished"
    if not (kept or is_over):
        say(f"{output}: has no checkpoint yet, starting a new run")
        return None
    inputs.check(run, config)
    if is_over and rounds <= done:
        say(f"{output}: the run has finished, nothing to do (--rounds adds rounds)")
        return Place(run.attributes["started"], done, is_end=True)
    if is_over and (stopped_by := _stopped_by(experiment, run)):
        say(f"{output}: the run has finished, nothing to do (stopped by {stopped_by})")
        return Place(run.attributes["started"], done, is_end=True)
    if names := run.attributes.get("undeclared_state"):
        again = "--overwrite instead of --resume starts again"
        raise BadInput(f"--resume: {output}: {UNDECLARED.format(names)}; {again}")
    _check_rounds(run, rounds)
    if not kept:
        place = _after_the_end(run, done)
        say(f"{output}: resuming after {place}, from the model in this file")
        return place
    archive = checkpoints.open()
    about = archive.about
    if (about["started"], about["version"]) != (run.attributes["started"], __version__):
        raise BadInput(
            f"--resume: {archive.path} belongs to another run than {output}, or to fedmpi {about['version']}"
        )
    place = Place(about["started"], about["round"], about["stage"])
    say(f"{output}: resuming after {place}")
    return place


def _stopped_by(experiment: Settings, run: Run) -> str | None:
    return reason_to_stop(experiment.stop, experiment.evaluated, run.rounds, experiment.described_metrics)


def continuation(experiment: Settings, ranks: int) -> str:
    """The command that continues an interrupted run on this number of ranks."""
    if experiment.arguments is None:
        return f"the same experiment with output={str(experiment.output)!r} and resume=True"
    options = [argument.partition("=")[0] for argument in experiment.arguments]
    flags = ("--overwrite", "--resume")
    kept = [argument for argument, name in zip(experiment.arguments, options, strict=True) if name not in flags]
    anew = ["--overwrite=false"] if experiment.overwrite and "--config" in options else []  # which may set it as well
    named = ["--output", str(experiment.output)] if experiment.names_output else []
    command = shlex.join(["python", "-m", "fedmpi", *kept, *anew, *named, "--resume"])
    return f"mpirun -n {ranks} {command}" if ranks > 1 else command


def _check_rounds(run: Run, rounds: int) -> None:
    """Raise BadInput if rounds are added to a run that depends on their number."""
    planned, reasons = run.settings.get("rounds", rounds), str(run.attributes.get("depends_on_rounds", ""))
    if rounds > planned and reasons:
        raise BadInput(
            f"= {rounds}: must be {planned}, because the run depends on the number of rounds ({reasons})", "--rounds"
        )


def _after_the_end(run: Run, done: int) -> Place:
    """Where a finished run without a checkpoint continues.

    Raises:
        BadInput: the results file does not have everything that the run needs.
    """
    missing = str(run.attributes.get("missing", "what the run needs")).splitlines()
    if missing:
        needed = f"more rounds need {', '.join(missing)}, and only a checkpoint has that (--checkpoint.keep true)"
        raise BadInput(f"--resume: {run.path} has finished after round {done}; {needed}")
    if (version := run.attributes["fedmpi_version"]) != __version__:
        raise BadInput(f"--resume: {run.path} was written by fedmpi {version}")
    return Place(run.attributes["started"], done, is_in_results=True)


def check_settings(run: Run, config: str) -> None:
    """Raise BadInput for the first setting that differs from those of the run, except those that may (`FREE`).

    The place of the data may differ if the file has their checksum.
    """
    known = {name: run.attributes[name] for name in DATA.values() if name in run.attributes}
    before, now = (by_name({**settings, **known}) for settings in (run.settings, yaml.safe_load(config) or {}))
    for name in dict.fromkeys([*now, *before]):
        if name not in FREE and now.get(name) != before.get(name):
            value, was = (settings.get(name, "null") for settings in (now, before))
            raise BadInput(f"= {value}: must be {was}, as in the run that is resumed", f"--{name}")
    if "rounds" in before:
        planned = f"at least {before['rounds']}, as in the run that is resumed"
        require(int(now["rounds"]) >= int(before["rounds"]), "--rounds", now["rounds"], planned)
