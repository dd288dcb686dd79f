"""Inputs of a run in addition to its settings: the user's code, files and data, and the libraries.

The results file has checksums of them, so that a run is not resumed with others.
"""

from __future__ import annotations

import inspect
import json
import pydoc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedmpi.checksum import sha256_of
from fedmpi.data import Dataset
from fedmpi.errors import BadInput
from fedmpi.experiment import environment
from fedmpi.experiment.catalogue import base_of, bases, own_class
from fedmpi.models import Model
from fedmpi.results import Run
from fedmpi.streams import say
from fedmpi.training.layout import Layout
from fedmpi.user_code import sha256_of_file, user_code


def describe(config: str) -> dict[str, str]:
    """Attributes of the results file: `user_code` and `input_files`, each a JSON object of names and SHA-256."""
    return {name: json.dumps(sums) for name, sums in _checksums(config).items()}


def check(run: Run, config: str) -> None:
    """Check that code and files are unchanged, and print a warning for changed libraries.

    Args:
        run: the run that is resumed.
        config: its settings.

    Raises:
        BadInput: names the first one that has changed.
    """
    if name := changed(run, config):
        reason = f"has changed since {run.path} was begun; --overwrite instead of --resume starts again"
        raise BadInput(f"--resume: {name} {reason}")
    for name, version in environment.libraries().items():
        before = run.environment.get(name, version)
        if before != version:
            said = f"{name} was {before} when {run.path} was begun, and is now {version}"
            say(f"warning: {said}; results may not be bit-identical")


def changed(run: Run, config: str) -> str | None:
    """The first of the user's classes and files that is not as when a run with these settings was begun."""
    for kind, now in _checksums(config).items():
        before = json.loads(run.attributes.get(kind, "null"))
        names = [] if before is None else dict.fromkeys([*now, *before])
        for name in names:
            if now.get(name) != before.get(name):
                return name
    return None


def check_data(run: Run, checksums: Mapping[str, str]) -> None:
    """Check that the data are unchanged.

    Args:
        run: the run that is resumed.
        checksums: `data_sha256` and, if there is one, `proxy_sha256`.

    Raises:
        BadInput: they have changed.
    """
    for name, option in {"data_sha256": "dataset", "proxy_sha256": "algorithm.proxy"}.items():
        if run.attributes.get(name, checksums.get(name)) != checksums.get(name):
            named = run.settings.get("dataset", {}) if option == "dataset" else {}
            kind = named.get("class_path", "").rpartition(".")[2]
            reason = f"has other samples than when {run.path} was begun; --overwrite instead of --resume starts again"
            raise BadInput(f"= {kind}: {reason}" if kind else reason, f"--{option}")


def check_frozen(run: Run, layout: Layout) -> None:
    """Check that the tensors that training does not change are those that the resumed run began with.

    Raises:
        BadInput: they have changed.
    """
    before = run.inputs.get("frozen_sha256")
    if before is not None and before != sha256_of(layout.frozen_arrays):
        reason = f"has other frozen tensors than when {run.path} was begun"
        again = "--overwrite instead of --resume starts again"
        raise BadInput(f"= {run.attributes['model']}: {reason}; {again}", "--model")


def _checksums(config: str) -> dict[str, dict[str, str]]:
    settings = yaml.safe_load(config) or {}
    components = list(_components(settings))
    files = {
        f"--{place}.{option} = {path}": sha256_of_file(path)
        for place, cls, options in components
        for option, path in _files(cls, options)
    }
    if (initial := settings.get("init")) and Path(initial).is_file():
        files[f"--init = {initial}"] = sha256_of_file(Path(initial))
    return {"user_code": user_code(cls for _, cls, _ in components), "input_files": files}


def _components(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """For each class in the settings: its place, the class, and its options."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and "class_path" in value:
            options = value.get("init_args") or {}
            cls = _class_of(value["class_path"], prefix + name)
            if isinstance(cls, type):
                yield prefix + name, cls, options
            yield from _components(options, f"{prefix}{name}.")


def _class_of(path: str, option: str) -> object:
    own = (own_class(path, base) for base in [base_of(option), *bases()])
    return next(filter(None, own), None) or pydoc.locate(path)


def _files(cls: type, options: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The files that fedmpi reads for a component. Data sets are compared by their samples instead."""
    is_ours, of_all = cls.__module__.startswith("fedmpi."), inspect.signature(Model).parameters
    if not issubclass(cls, Dataset):
        for option, parameter in inspect.signature(cls).parameters.items():
            value = options.get(option) if is_ours or option in of_all else None
            if "Path" in str(parameter.annotation) and value:
                path = Path(value)
                yield from ((option, file) for file in [path, *sorted(path.glob("*"))] if _is_read(file, path))


def _is_read(file: Path, given: Path) -> bool:
    """Whether a file is an input: the one that an option names, or the network in the folder that it names."""
    return file.is_file() and (file == given or file.suffix in (".safetensors", ".bin") or file.name == "config.json")
