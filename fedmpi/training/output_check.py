"""A check of a network's output before training."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedmpi.errors import BadInput
from fedmpi.randomness import globals_kept, seed_globals
from fedmpi.tasks import Task
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.samples import Batch, Samples

# Numbers of samples in training mode and in evaluation mode. With three samples, [B, classes] cannot be confused with
# [classes, B] for two classes. One sample shows a `squeeze` that removes too many dimensions.
TRAINED, MEASURED = 2, (3, 1)
PACKAGES = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))
OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


class Predicting(Protocol):
    """A method that computes logits from a network's output; see `fedmpi.algorithms.Algorithm`."""

    def predict(self, net: Net, batch: Batch, client: Mapping[str, Tensor]) -> Tensor: ...


def check_outputs(
    model: FlatModel, samples: Samples, task: Task, outputs: int, algorithm: Predicting, name: str, method: str
) -> None:
    """Run a few samples through a network, and through `Algorithm.predict` if that is already possible.

    Args:
        model: a network that is not used afterwards, because its statistics change.
        samples: training samples.
        task: what is learned.
        outputs: number of outputs of the network.
        name, method: how the command line names the classes of the model and of the method.

    Raises:
        BadInput: forward fails, or does not return the output that the task needs.
    """
    shape = task.output_shape(tuple(samples.y.shape[1:]), outputs)
    for size in (TRAINED, *MEASURED):
        training = size == TRAINED
        model.module.train(training)
        batch = samples.batch(np.arange(size) % len(samples.y))
        mode = "training" if training else "evaluation"
        sent = [*(entry.name for entry in model.layout.entries), *model.layout.frozen]
        before = {n: (b, b.clone()) for n, b in model.module.named_buffers() if n in sent}
        with torch.set_grad_enabled(training):
            try:
                output = Net(model)(batch.x)
            except Exception as error:
                if size == 1:
                    continue  # normalised by what one sample has in itself, it may have no variance
                inputs = f"inputs {_described(batch.x)} in {mode} mode"
                raise BadInput(f"= {name}: forward fails on {inputs}: {_place(error)}", "--model") from None
            if problem := _problem(output, (size, *shape)):
                raise BadInput(f"= {name}: gives {problem}", "--model")
            after = dict(model.module.named_buffers())
            written = [n for n, (b, value) in before.items() if after[n] is not b or not _is_same(b, value)]
            if written and not training:
                problem = f"writes to buffer {written[0]} in evaluation mode: results would depend on earlier samples"
                raise BadInput(f"= {name}: {problem}", "--model")
            if training and (problem := _remembered(model, batch.x)):
                again = "gives other outputs for the same inputs the second time"
                raise BadInput(f"= {name}: {again}: {problem}", "--model")
            trains = training and any(parameter.requires_grad for parameter in model.module.parameters())
            if trains and not output.requires_grad:
                problem = "an output without gradient in training mode: forward must not detach it"
                raise BadInput(f"= {name}: gives {problem}", "--model")
            predicted = _predicted(algorithm, model, batch)
            if predicted is not None and (problem := _problem(predicted, (size, *shape))):
                raise BadInput(f"= {method}: predict gives {problem}", "--algorithm")


def _is_same(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return one.equal(other)
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)


def _remembered(model: FlatModel, x: Tensor) -> str | None:
    """Why a network gives other outputs for the same inputs; None: it does not do so.

    Its buffers and random numbers are the same each time. An attribute that is no buffer would pass from client to
    client, so that results depended on the number of ranks.
    """
    weights, outputs, seen = model.weights[0].clone(), [], []
    with globals_kept(), torch.no_grad():
        for _ in range(2):
            seed_globals(0)
            model.load(weights)
            seen.append(dict(_numbers(model.module)))
            outputs.append(Net(model)(x).clone())
    if _is_same(*outputs):
        return None
    changed = [name for name, value in seen[1].items() if not np.array_equal(value, seen[0].get(name, np.nan))]
    if changed:
        return f"forward changes its attribute {changed[0]}, which must be a buffer (register_buffer)"
    return "what it remembers must be in buffers, and random numbers must come from the global generators"


def _numbers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Numbers and tensors that layers hold as plain attributes, by name."""
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}".strip("."), value.detach().cpu().numpy().copy()
            elif isinstance(value, (int, float)):
                yield f"{path}.{name}".strip("."), value


def _predicted(algorithm: Predicting, model: FlatModel, batch: Batch) -> Any:
    """The method's logits; None: it does not override `predict`, or needs more than the received model."""
    try:
        return algorithm.predict(Net(model), batch, {"received": model.weights[0].clone()})
    except Exception:  # it may need anything that there will be in a round
        return None


def _problem(output: object, shape: tuple[int, ...]) -> str | None:
    """What is wrong with the output, what is expected, and what may help."""
    size = shape[0]
    given, wanted = _described(output), f"must be floating-point {list(shape)}"
    if len(shape) == 2:
        wanted = f"must be logits, floating-point {list(shape)}"
    if not isinstance(output, Tensor):
        return f"{given} for {size} samples: {wanted}{_way_to_logits(output, shape)}"
    if output.shape != shape:
        help = f"; {_way_to_shape(tuple(output.shape), *shape)}" if len(shape) == 2 else ""
        return f"{given} for {size} samples: {wanted}{help}"
    if not output.is_floating_point():
        return f"{given} for {size} samples: {wanted}, not the classes themselves"
    if size > 1 and output.isnan().any():
        return f"NaN for finite inputs of {size} samples, with its first weights"
    return None


def _way_to_logits(output: object, shape: tuple[int, ...]) -> str:
    """How the logits can be taken out of a container."""
    ways: Iterator[tuple[str, object]]
    if getattr(output, "logits", None) is not None:
        ways = iter([("output.logits", output.logits)])  # type: ignore[attr-defined]
    elif isinstance(output, Mapping):
        ways = ((f'output["{key}"]', part) for key, part in output.items())
    elif isinstance(output, (tuple, list)):
        ways = ((f"output[{place}]", part) for place, part in enumerate(output))
    else:
        return ""
    fit = [way for way, part in ways if isinstance(part, Tensor) and part.shape == shape]
    return f"; let forward return {fit[0]}" if fit else ""


def _way_to_shape(shape: tuple[int, ...], size: int, classes: int) -> str:
    if shape[:2] == (size, classes):
        return "flatten(1) it" if set(shape[2:]) == {1} else "average over the other dimensions, or flatten before"
    if shape in ((size,), (size, 1)) and classes == 2:
        return "two classes need two logits each"
    if len(shape) == 2 and shape[0] == size:
        return f"the last layer must have an output for each of {classes} classes"
    return "the first dimension must be the samples, however many there are, and the second one the classes"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        parts = ", ".join(f"{key}: {_described(part)}" for key, part in list(value.items())[:3])
        return f"a {type(value).__name__} ({parts})"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} ({', '.join(map(_described, value[:3]))})"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _place(error: Exception) -> str:
    """An exception, and the line of the user's code that raised it, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*PACKAGES, *OURS))]
    others = [frame for frame in frames if not frame.filename.startswith(OURS)]
    frame = (own or others or frames)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno}, in {frame.name})"
