"""What a run needs to go on after its job has ended, on any number of ranks: one file beside the results.

It holds what outlives a round: what the method has at the server (`Algorithm.server_state`, and the state of its
server optimizer), what clients keep, what the placement has learnt, and what privacy has cost. Random numbers are
keyed by the round, and everything else is made anew from the settings.

The file is a NumPy archive (`numpy.load` reads it), with `about.json` in it. Rank 0 writes it, and receives what
clients keep piece by piece from where it lies, so that it never holds more than a piece of it.
"""

import io
import json
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedmpi import __version__
from fedmpi.errors import BadInput, require
from fedmpi.options import Configured

if TYPE_CHECKING:
    from torch import Tensor

    from fedmpi.algorithms import Algorithm
    from fedmpi.client_state import ClientState
    from fedmpi.engine import Engine
    from fedmpi.experiment import Experiment
    from fedmpi.mpi.world import World
    from fedmpi.results import Run

#: What rank 0 holds of the clients' vectors at a time, 64 MiB; one of them at least.
PIECE_ELEMENTS = 1 << 24
#: By how many bytes other names are longer than the results file's, from which they are made: `.NAME.checkpoint.tmp`.
LONGEST_DECORATION = 16
#: Settings that may be others when a run goes on; rounds only more. Data may lie elsewhere, for they are compared.
FREE = ("rounds", "threads", "device", "deadline", "dataset.root", "algorithm.proxy.root")


@dataclass(frozen=True)
class Checkpointing(metaclass=Configured):
    """When a run writes down all that it needs to go on (`--resume`): at times, and when it is interrupted.

    Args:
        every_minutes: from the end of one checkpoint to the next; null: none by time.
        every_rounds: from one checkpoint to the next; null: none by rounds.
        keep: whether the last one stays when the run has finished, so that it can be resumed with more rounds also
            where more is remembered from round to round than the global model.
    """

    every_minutes: float | None = 10.0
    every_rounds: int | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        minutes, rounds = self.every_minutes, self.every_rounds
        require(minutes is None or minutes > 0, "every_minutes", minutes, "above 0")
        require(rounds is None or rounds >= 1, "every_rounds", rounds, "at least 1")


@dataclass(frozen=True)
class Place:
    """Where a run goes on: after so many rounds, of the stage of this name or of the experiment itself.

    Attributes:
        started: when the run began, which tells it from others of the same settings.
        is_end: whether the run has finished.
        is_in_results: whether the results file alone has what the run needs to go on, for there is no checkpoint.
    """

    started: str
    round: int
    stage: str | None = None
    is_end: bool = False
    is_in_results: bool = False

    def __str__(self) -> str:
        return f"round {self.round} of the {self.stage}" if self.stage else f"round {self.round}"


class Layer(NamedTuple):
    """One of the federations that a run consists of: its own, or that of a stage.

    Attributes:
        name: of its part of the file.
    """

    name: str
    fed: "Engine"
    algorithm: "Algorithm"


class Checkpoints:
    """The checkpoint file of a run.

    Args:
        world: the ranks.
        experiment: what is run.
    """

    def __init__(self, world: "World", experiment: "Experiment") -> None:
        self._world = world
        self._experiment = experiment
        self._settings = experiment.checkpoint
        self._last = time.monotonic()

    @property
    def path(self) -> Path:
        """Beside the results file, whose name may be known only when it is written first."""
        return path_beside(self._experiment.output)

    def is_due(self, round: int) -> bool:
        """At rank 0: whether to write one after this round."""
        minutes, rounds = self._settings.every_minutes, self._settings.every_rounds
        by_time = minutes is not None and time.monotonic() - self._last >= 60 * minutes
        return by_time or (rounds is not None and round % rounds == 0)

    def save(self, place: Place, layers: Sequence[Layer]) -> None:
        """Put a new checkpoint in the old one's place; a collective.

        Args:
            place: rank 0's counts.

        Raises:
            OSError: it cannot be written, such as on a full disk; the old one is unharmed.
        """
        with self._archive() as archive:
            states = {name: list(fed.states.states) for name, fed, _ in layers}
            if archive:
                about = {**asdict(place), "version": __version__, "states": states}
                archive.writestr("about.json", json.dumps(about))
            for layer in layers:
                self._save(archive, layer)
        self._last = time.monotonic()

    def restore(self, layer: Layer) -> None:
        """Give a federation that was set up what it had; a collective."""
        with self._opened() as archive:
            self._restore(archive, layer)

    def remove(self) -> None:
        """At rank 0: there is nothing to go on with."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile | None]:
        """At rank 0, what becomes the file when it is complete."""
        if not self._world.is_server:
            yield None
            return
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                with zipfile.ZipFile(file, "w") as archive:
                    yield archive
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile | None]:
        if not self._world.is_server:
            yield None
            return
        with zipfile.ZipFile(self.path) as archive:
            yield archive

    def _save(self, archive: zipfile.ZipFile | None, layer: Layer) -> None:
        fed, keeper = layer.fed, layer.fed.states
        if archive:
            arrays = {name: tensor.numpy() for name, tensor in server_state(layer.algorithm).items()}
            arrays |= {f"estimates/{name}": array for name, array in fed.estimates.items()}
            arrays["seen"] = keeper.home >= 0
            for name, array in arrays.items():
                with _entry(archive, f"{layer.name}/{name}") as file:
                    npy.write_array(file, array, allow_pickle=False)
        for name, state in keeper.states.items():
            self._save_rows(archive, f"{layer.name}/clients/{name}", state, len(keeper.home))

    def _save_rows(self, archive: zipfile.ZipFile | None, place: str, state: "ClientState", clients: int) -> None:
        world, size = self._world, len(state.initial)
        holders = np.zeros(clients, dtype=np.int64)  # rank + 1
        holders[np.fromiter(state.rows, dtype=np.int64)] = world.rank + 1
        world.sum(holders)
        order = np.argsort(holders, kind="stable")[np.count_nonzero(holders == 0) :]
        if archive:
            for name, array in (("initial", state.initial.numpy()), ("numbers", order)):
                with _entry(archive, f"{place}/{name}") as file:
                    npy.write_array(file, array, allow_pickle=False)
        with _entry(archive, f"{place}/rows") as file:
            if archive:
                shape = len(order), size
                npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for source in range(world.size):
                for some in _pieces(order[holders[order] == source + 1], size):
                    rows = np.empty((len(some) if archive else 0, size), dtype=np.float32)
                    if source == world.rank:
                        mine = [state.rows[client].numpy() for client in some.tolist()]
                        if archive:
                            np.stack(mine, out=rows)
                        else:
                            world.exchange([(0, row) for row in mine], [])
                    elif archive:
                        world.exchange([], [(source, row) for row in rows])
                    if archive:
                        file.write(rows.data)

    def _restore(self, archive: zipfile.ZipFile | None, layer: Layer) -> None:
        import torch

        world, fed, keeper = self._world, layer.fed, layer.fed.states

        def read(name: str) -> NDArray:
            assert archive
            with archive.open(f"{layer.name}/{name}.npy") as file:
                array: NDArray = npy.read_array(file, allow_pickle=False)
            return array

        server: dict[str, Tensor] = {}
        told: Any = None
        if archive:
            about = json.loads(archive.read("about.json"))
            names = [name.removeprefix(f"{layer.name}/").removesuffix(".npy") for name in archive.namelist()]
            inside = [name for name in names if name.startswith("server/")]
            # Copies, because what PyTorch makes lies where its libraries want it.
            server = {name: torch.from_numpy(read(name)).clone() for name in inside}
            kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in server.items()}
            estimates = {name: read(f"estimates/{name}") for name in fed.estimates}
            states = {
                name: (read(f"clients/{name}/initial"), read(f"clients/{name}/numbers"))
                for name in about["states"][layer.name]
            }
            told = kinds, estimates, read("seen"), states
        kinds, estimates, seen, states = world.from_server(told)
        for name, (shape, dtype) in kinds.items():
            _, number, *optimizer, attribute = name.split("/")
            part = layer.algorithm.parts[int(number)]
            if not optimizer:
                setattr(part, attribute, server.get(name, torch.empty(shape, dtype=dtype, device="meta")))
            elif archive:
                part.server_optimizer.state[attribute] = server[name]
        fed.estimates = estimates
        workers = np.array(world.workers)
        homes = workers[np.arange(len(seen)) % len(workers)]
        keeper.home[:] = np.where(seen, homes, -1)
        for name, (initial, numbers) in states.items():
            state = keeper.states.get(name) or keeper.create(name, torch.from_numpy(initial), fed.device)
            self._restore_rows(archive, f"{layer.name}/clients/{name}", state, numbers, homes)

    def _restore_rows(
        self,
        archive: zipfile.ZipFile | None,
        place: str,
        state: "ClientState",
        numbers: NDArray[np.int64],
        homes: NDArray[np.int64],
    ) -> None:
        world, size = self._world, len(state.initial)
        with _entry(archive, f"{place}/rows", "r") as file:
            if archive:
                npy.read_magic(file)
                npy.read_array_header_1_0(file)
            for some in _pieces(numbers, size):
                targets = homes[some]
                mine = [(client, state.empty_row()) for client in some[targets == world.rank].tolist()]
                if archive:
                    rows = np.frombuffer(file.read(4 * size * len(some)), dtype=np.float32).reshape(-1, size)
                    for (_, kept), row in zip(mine, rows[targets == 0], strict=True):
                        kept.numpy()[...] = row
                    away = zip(targets.tolist(), rows, strict=True)
                    world.exchange([(target, row) for target, row in away if target], [])
                else:
                    world.exchange([], [(0, kept.numpy()) for _, kept in mine])
                state.rows.update(mine)


def path_beside(output: Path) -> Path:
    """Where the checkpoint of a results file lies."""
    return output.with_name(f"{output.name}.checkpoint")


def server_state(algorithm: "Algorithm") -> "dict[str, Tensor]":
    """What a method has at the server beyond a round: `server/PART/NAME`, of its optimizer PART/optimizer/NAME."""
    found: dict[str, Tensor] = {}
    for number, part in enumerate(algorithm.parts):
        found |= {f"server/{number}/{name}": getattr(part, name) for name in part.server_state}
        if "server_optimizer" in vars(part):
            kept = part.server_optimizer.state.items()
            found |= {f"server/{number}/optimizer/{name}": tensor for name, tensor in kept}
    return found


def missing_in_results(layer: Layer) -> list[str]:
    """What a run would need to go on that its results file does not hold, in words."""
    algorithm, fed = layer.algorithm, layer.fed
    missing = []
    for name in server_state(algorithm):
        _, number, *optimizer, attribute = name.split("/")
        part = algorithm.parts[int(number)]
        owner = type(part.server_optimizer if optimizer else part).__name__
        if name != "server/0/weights":
            missing.append(f"the server's {attribute.replace('_', ' ')} ({owner})")
    missing += [f"what clients keep as {name} ({type(algorithm).__name__})" for name in fed.states.states]
    return missing


def restore_weights(layer: Layer, output: Path) -> None:
    """Give a federation that was set up the global model of the results file, which is all that it needs."""
    import torch

    from fedmpi import results

    if layer.fed.is_server:
        weights = torch.from_numpy(results.open(output).weights)
        layer.algorithm.parts[0].weights = layer.fed.layout.from_canonical(weights)


def find(experiment: "Experiment", config: str) -> Place | None:
    """Where the run goes on that is to be resumed, and a line about it; None: at its start.

    Raises:
        BadInput: the results file is none, or of a run with other settings, code or files; or a run that is over
            cannot do more rounds.
    """
    from fedmpi import inputs, results
    from fedmpi.progress import say

    output, path = experiment.output, path_beside(experiment.output)
    if not output.exists():
        say(f"{output}: is not there yet, the run starts anew")
        return None
    try:
        run = results.open(output)
    except BadInput as error:
        raise BadInput(f"--resume: {error}") from None
    _check_settings(run, config)
    done, is_over = len(run.rounds.get("round", ())), run.status == "finished"
    if not (path.exists() or is_over):
        say(f"{output}: has no checkpoint yet, the run starts anew")
        return None
    inputs.check(run, config)
    if is_over and experiment.rounds <= done:
        say(f"{output}: is finished")
        return Place(run.attributes["started"], done, is_end=True)
    _check_rounds(run, experiment)
    if not path.exists():
        place = _after_the_end(run, done, experiment.rounds)
        say(f"{output}: goes on after {place}, from the model in it")
        return place
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("about.json"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError):
        raise BadInput(f"--resume: {path} is not a checkpoint, or a damaged one") from None
    if (about["started"], about["version"]) != (run.attributes["started"], __version__):
        raise BadInput(f"--resume: {path} is of another run than {output}, or of fedmpi {about['version']}")
    place = Place(about["started"], about["round"], about["stage"])
    say(f"{output}: goes on after {place}")
    return place


def _check_rounds(run: "Run", experiment: "Experiment") -> None:
    """Raise BadInput if a run is to have more rounds than planned and depends on that number."""
    planned, reasons = run.settings.get("rounds", experiment.rounds), str(run.attributes.get("depends_on_rounds", ""))
    if experiment.rounds > planned and reasons:
        raise BadInput(f"= {experiment.rounds}: must be {planned}, on which the run depends ({reasons})", "--rounds")


def _after_the_end(run: "Run", done: int, rounds: int) -> Place:
    """Where a run goes on that has finished, without a checkpoint.

    Raises:
        BadInput: the results file does not have all that it needs.
    """
    missing = str(run.attributes.get("missing", "what the run needs")).splitlines()
    if missing:
        needed = f"more rounds need {', '.join(missing)}, and only a checkpoint has that (--checkpoint.keep true)"
        raise BadInput(f"= {rounds}: must be {done}: {run.path} is finished, {needed}", "--rounds")
    if (version := run.attributes["fedmpi_version"]) != __version__:
        raise BadInput(f"--resume: {run.path} is of fedmpi {version}")
    return Place(run.attributes["started"], done, is_in_results=True)


def _check_settings(run: "Run", config: str) -> None:
    """Raise BadInput for the first setting that would make another experiment of a run.

    Where the data lie may be another place if the file knows their checksum.
    """
    import yaml

    from fedmpi.results.settings import DATA, by_name

    known = {name: run.attributes[name] for name in DATA.values() if name in run.attributes}
    before, now = (by_name({**settings, **known}) for settings in (run.settings, yaml.safe_load(config) or {}))
    for name in dict.fromkeys([*now, *before]):
        if name not in FREE and now.get(name) != before.get(name):
            value, was = (settings.get(name, "null") for settings in (now, before))
            raise BadInput(f"= {value}: must be {was}, as in the run that is resumed", f"--{name}")
    if "rounds" in before:
        planned = f"at least {before['rounds']}, as in the run that is resumed"
        require(int(now["rounds"]) >= int(before["rounds"]), "--rounds", now["rounds"], planned)


@contextmanager
def _entry(archive: zipfile.ZipFile | None, name: str, mode: Literal["r", "w"] = "w") -> Iterator[IO[bytes]]:
    """An array of the archive; where there is none, nothing."""
    if archive is None:
        yield io.BytesIO()
        return
    with archive.open(f"{name}.npy", mode, force_zip64=mode == "w") as file:
        yield file


def _pieces(clients: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Clients whose vectors of this size are moved together."""
    at_once = max(PIECE_ELEMENTS // max(size, 1), 1)
    for first in range(0, len(clients), at_once):
        yield clients[first : first + at_once]
