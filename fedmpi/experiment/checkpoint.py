"""Checkpoints: files next to the results file, from which a run continues on any number of ranks.

A checkpoint holds everything that is kept between rounds: the server's state (`Algorithm.server_state`, and the state
of the server optimizer), the clients' state, what the placement has learnt, and the privacy cost. It also holds the
rows that the results file does not have yet. Random numbers depend on the round, and everything else is made again
from the settings.

Rank 0 writes it (`fedmpi.experiment.archive`). It receives the clients' state piece by piece from the ranks that hold
it, so its memory use is small. Some older checkpoints are kept: if the last one is damaged, the one before is used.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import __version__
from fedmpi.algorithms import Algorithm
from fedmpi.errors import BadInput
from fedmpi.experiment.archive import Archive, Damaged, add, end, entry
from fedmpi.experiment.ownership import Lock
from fedmpi.experiment.settings import Checkpointing
from fedmpi.federation.client_state import ClientState
from fedmpi.federation.engine import Engine
from fedmpi.mpi.world import World
from fedmpi.results.paths import checkpoint_beside, checkpoints_beside, replacing
from fedmpi.streams import say

#: Size of the clients' vectors that rank 0 holds at a time (64 MiB, at least one vector).
PIECE_ELEMENTS = 1 << 24
#: The place in an archive of rows that the results file did not have.
ROWS = "results/"


@dataclass(frozen=True)
class Place:
    """Where a run continues: after this round of the stage of this name, or of the experiment itself.

    Attributes:
        started: start time of the run, which distinguishes runs with the same settings.
        is_end: whether the run has finished.
        is_in_results: whether the run continues from the results file alone, without a checkpoint.
    """

    started: str
    round: int
    stage: str | None = None
    is_end: bool = False
    is_in_results: bool = False

    def __str__(self) -> str:
        return f"round {self.round} of the {self.stage}" if self.stage else f"round {self.round}"


class SavedFederation(NamedTuple):
    """One of the federations of a run: the main one, or that of a stage.

    Attributes:
        name: name of its part of the file.
    """

    name: str
    engine: Engine
    algorithm: Algorithm


class Checkpoints:
    """The checkpoint files of a run: the last one and older ones.

    Args:
        world: the ranks.
        output: the results file.
        settings: when a checkpoint is written, and how many are kept.
        lock: of the output.
    """

    def __init__(self, world: World, output: Path, settings: Checkpointing, lock: Lock) -> None:
        self._world = world
        self._output = output
        self._settings = settings
        self._lock = lock
        self._paths = [checkpoint_beside(output, number) for number in range(settings.copies)]  # the newest first
        self._last = time.monotonic()
        self._archive: Archive | None = None
        self._damaged: list[Path] = []
        self._too_old: list[Path] = []

    def is_due(self, round: int) -> bool:
        """At rank 0: whether a checkpoint is due after this round."""
        minutes, rounds = self._settings.every_minutes, self._settings.every_rounds
        by_time = minutes is not None and time.monotonic() - self._last >= 60 * minutes
        return by_time or (rounds is not None and round % rounds == 0)

    def open(self) -> Archive:
        """At rank 0: open the newest checkpoint that is not damaged.

        It stays open until the next checkpoint is saved, so everything is restored from this file.

        Raises:
            BadInput: all checkpoints are damaged, and there is at least one.
        """
        damaged: list[str] = []
        there = checkpoints_beside(self._output)
        self._too_old = [path for path in there if path not in self._paths]
        for path in there:
            try:
                self._archive = Archive(path)
            except Damaged as error:
                damaged.append(f"{path} is damaged ({error})")
                self._damaged.append(path)
                continue
            if damaged:
                say(f"{', '.join(damaged)}; resuming from {path}")
            return self._archive
        raise BadInput(f"--resume: {', '.join(damaged)}; --overwrite instead of --resume starts again")

    @property
    def rows(self) -> dict[str, NDArray]:
        """At rank 0: the saved rows, by table."""
        archive = self._archive
        names = [name for name in archive.names if name.startswith(ROWS)] if archive else []
        return {name.removeprefix(ROWS): archive.read(name) for name in names if archive}

    def save(self, place: Place, federations: Sequence[SavedFederation], rows: Mapping[str, NDArray]) -> None:
        """Write a new checkpoint; a collective.

        Args:
            place: only that of rank 0 is used.
            rows: on rank 0, the rows that the results file does not have, by table.

        Raises:
            OSError: it cannot be written, for example because the disk is full. Older checkpoints are unchanged.
        """
        self.close()
        with self._new() as archive:
            for saved in federations:
                self._save(archive, saved)
            if archive:
                for name, records in rows.items():
                    add(archive, ROWS + name, records)
                states = {name: list(engine.states.states) for name, engine, _ in federations}
                end(archive, {**asdict(place), "version": __version__, "states": states})
        while self._too_old:
            self._too_old.pop().unlink(missing_ok=True)
        self._last = time.monotonic()

    def restore(self, saved: SavedFederation) -> None:
        """Restore the state of a federation that has been set up; a collective."""
        self._restore(self._archive, saved)

    def remove(self) -> None:
        """At rank 0: remove all checkpoints."""
        self.close()
        for path in checkpoints_beside(self._output):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the open checkpoint."""
        if self._archive:
            self._archive.zip.close()
            self._archive = None

    @contextmanager
    def _new(self) -> Iterator[zipfile.ZipFile | None]:
        """At rank 0: the file that becomes the last checkpoint when it is complete."""
        if not self._world.is_server:
            yield None
            return
        new = replacing(self._paths[0], self._output, self._make_room)
        with new as file, zipfile.ZipFile(file, "w") as archive:
            yield archive

    def _make_room(self) -> None:
        """Rename each checkpoint to the name of the older one; damaged ones are removed."""
        self._lock.confirm()
        while self._damaged:
            self._damaged.pop().unlink(missing_ok=True)
        for older, newer in zip(reversed(self._paths[1:]), reversed(self._paths[:-1]), strict=True):
            if newer.exists():
                os.replace(newer, older)

    def _save(self, archive: zipfile.ZipFile | None, saved: SavedFederation) -> None:
        engine, keeper = saved.engine, saved.engine.states
        if archive:
            arrays = {name: tensor.numpy() for name, tensor in server_state(saved.algorithm).items()}
            arrays |= {f"estimates/{name}": array for name, array in engine.estimates.items()}
            arrays["trained"] = keeper.trained
            for name, array in arrays.items():
                add(archive, f"{saved.name}/{name}", array)
        for name, state in keeper.states.items():
            self._save_rows(archive, f"{saved.name}/clients/{name}", state, keeper.trained)

    def _save_rows(
        self, archive: zipfile.ZipFile | None, place: str, state: ClientState, trained: NDArray[np.int64]
    ) -> None:
        world, size = self._world, len(state.initial)
        mine = np.fromiter(state.rows, dtype=np.int64)
        for client in np.setdiff1d(mine, trained)[:1]:
            reason = "has not been trained: a method writes state only for the clients of `my_clients`"
            raise RuntimeError(f"{place}: was written for client {client}, which {reason}")
        holders = np.zeros(len(trained), dtype=np.int64)  # rank + 1
        holders[np.searchsorted(trained, mine)] = world.rank + 1
        world.sum(holders)
        in_turn = np.argsort(holders, kind="stable")[np.count_nonzero(holders == 0) :]
        order, holders = trained[in_turn], holders[in_turn]
        if archive:
            add(archive, f"{place}/initial", state.initial.numpy())
            add(archive, f"{place}/numbers", order)
        with entry(archive, f"{place}/rows") as file:
            if archive:
                shape = len(order), size
                npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for source in range(world.size):
                for some in _pieces(order[holders == source + 1], size):
                    rows = np.empty((len(some) if archive else 0, size), dtype=np.float32)
                    if source == world.rank:
                        own = [state.rows[client].numpy() for client in some.tolist()]
                        if archive:
                            np.stack(own, out=rows)
                        else:
                            world.exchange([(0, row) for row in own], [])
                    elif archive:
                        world.exchange([], [(source, row) for row in rows])
                    if archive:
                        file.write(rows.data)

    def _restore(self, archive: Archive | None, saved: SavedFederation) -> None:
        world, engine, keeper = self._world, saved.engine, saved.engine.states

        def read(name: str) -> NDArray:
            assert archive
            return archive.read(f"{saved.name}/{name}")

        server: dict[str, Tensor] = {}
        told: Any = None
        if archive:
            names = [name.removeprefix(f"{saved.name}/") for name in archive.names]
            inside = [name for name in names if name.startswith("server/")]
            # Copies, because PyTorch's memory is aligned as its libraries need it.
            server = {name: torch.from_numpy(read(name)).clone() for name in inside}
            kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in server.items()}
            estimates = {name: read(f"estimates/{name}") for name in engine.estimates}
            states = {
                name: (read(f"clients/{name}/initial"), read(f"clients/{name}/numbers"))
                for name in archive.about["states"][saved.name]
            }
            told = kinds, estimates, read("trained"), states
        kinds, estimates, trained, states = world.from_server(told)
        for name, (shape, dtype) in kinds.items():
            _, number, *optimizer, attribute = name.split("/")
            part = saved.algorithm.parts[int(number)]
            if not optimizer:
                setattr(part, attribute, server.get(name, torch.empty(shape, dtype=dtype, device="meta")))
            elif archive:
                part.server_optimizer.state[attribute] = server[name]
        engine.estimates = estimates
        workers = np.array(world.workers)

        def homes(clients: NDArray[np.int64]) -> NDArray[np.int64]:
            return workers[clients % len(workers)]

        keeper.settle(trained, homes(trained))
        for name, (initial, numbers) in states.items():
            device = engine.federation.device
            state = keeper.states.get(name) or keeper.create(name, torch.from_numpy(initial), device)
            self._restore_rows(archive, f"{saved.name}/clients/{name}", state, numbers, homes(numbers))

    def _restore_rows(
        self,
        archive: Archive | None,
        place: str,
        state: ClientState,
        numbers: NDArray[np.int64],
        homes: NDArray[np.int64],
    ) -> None:
        world, size = self._world, len(state.initial)
        with entry(archive.zip if archive else None, f"{place}/rows", "r") as file:
            if archive:
                npy.read_magic(file)
                npy.read_array_header_1_0(file)
            for some, targets in zip(_pieces(numbers, size), _pieces(homes, size), strict=True):
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


def server_state(algorithm: Algorithm) -> dict[str, Tensor]:
    """The server's state of a method: `server/PART/NAME`, and for its optimizer `server/PART/optimizer/NAME`."""
    found: dict[str, Tensor] = {}
    for number, part in enumerate(algorithm.parts):
        found |= {f"server/{number}/{name}": declared(part, name) for name in part.server_state}
        if "server_optimizer" in vars(part):
            kept = part.server_optimizer.state.items()
            found |= {f"server/{number}/optimizer/{name}": tensor for name, tensor in kept}
    return found


def declared(part: Algorithm, name: str) -> Tensor:
    """An attribute of a method that `server_state` names.

    Raises:
        BadInput: there is none, or a checkpoint could not hold it.
    """
    value, place = getattr(part, name, None), f"--algorithm = {type(part).__name__}: server_state names {name}"
    if not isinstance(value, Tensor):
        given = f"is of type {type(value).__name__}" if hasattr(part, name) else "does not exist after setup"
        raise BadInput(f"{place}, which {given}: must be a tensor, such as torch.tensor(0)")
    if value.requires_grad or value.layout != torch.strided or value.dtype == torch.bfloat16:
        given = "requires gradients" if value.requires_grad else f"is {value.layout}, {value.dtype}"
        raise BadInput(f"{place}, which {given}: must be a plain tensor, without gradients and not of bfloat16")
    return value


def _pieces(clients: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Number of clients whose vectors of this size are moved together."""
    at_once = max(PIECE_ELEMENTS // max(size, 1), 1)
    for first in range(0, len(clients), at_once):
        yield clients[first : first + at_once]
