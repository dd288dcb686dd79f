"""The model of another run, from which a run starts (`--init`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.mpi.world import World
from fedmpi.results.check import check_intact
from fedmpi.training.flat import FlatModel


@dataclass(frozen=True)
class InitialModel:
    """The last global model of another run.

    Attributes:
        path: the results file.
        trained: the tensors of the model's vector, by name.
        frozen: the tensors that training does not change, by name.
    """

    path: Path
    trained: Mapping[str, NDArray[np.float32]]
    frozen: Mapping[str, NDArray[Any]]

    def load_into(self, model: FlatModel) -> None:
        """Replace all tensors of the model.

        Raises:
            BadInput: names the first tensor that only one of the models has, or that has another shape in the other.
        """
        layout = model.layout
        views, frozen = layout.views(model.weights[0]), layout.frozen
        needed = _kinds(
            {name: tensor.numpy(force=True) for name, tensor in views.items()},
            layout.frozen_arrays,
        )
        given = _kinds(self.trained, self.frozen)
        for name in dict.fromkeys([*needed, *given]):
            mine, theirs = (kinds.get(name, "missing") for kinds in (needed, given))
            if mine != theirs:
                reason = f"its tensor {name} is {theirs}, and {mine} in the network of this run"
                raise BadInput(f"= {self.path}: {reason}", "--init")
        for name, values in self.trained.items():
            views[name].copy_(torch.tensor(values))
        for name, values in self.frozen.items():
            # Through .data, because a constant buffer that is written to is an error in training.
            frozen[name].data.copy_(torch.tensor(values))


def read_initial_model(world: World, path: Path | None) -> InitialModel | None:
    """The model in a results file, which rank 0 reads, on every rank; None: there is no file. A collective.

    Raises:
        BadInput: it is damaged or no results file, has no model, or its run has not ended; on every rank alike.
    """
    model: InitialModel | None = None
    if path is None:
        return None
    with world.agreed():
        if world.is_server:
            try:
                model = _read(path)
            except BadInput as error:
                raise BadInput(f"= {error.message}", "--init") from None
    return world.from_server(model)


def _read(path: Path) -> InitialModel:
    check_intact(path)
    run = results.open(path)
    if run.status == "running":
        raise BadInput(f"{path}: the run has not ended")
    if not np.isfinite(run.weights).all():
        raise BadInput(f"{path}: its model has values that are not finite")
    frozen = run.frozen
    return InitialModel(path, {n: t for n, t in run.state_dict().items() if n not in frozen}, frozen)


def _kinds(trained: Mapping[str, NDArray[Any]], frozen: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Type and shape of each tensor, in words."""
    kinds = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in trained.items()}
    return kinds | {name: f"frozen {tensor.dtype} {list(tensor.shape)}" for name, tensor in frozen.items()}
