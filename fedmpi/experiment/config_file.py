"""Settings in a YAML file: nested or with dotted names, in any order, each given once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from fedmpi import small_yaml
from fedmpi.errors import BadInput
from fedmpi.experiment.catalogue import GROUPS, INNER_GROUPS
from fedmpi.options import shown

#: Words that YAML 1.1 reads as true or false.
WORD = re.compile(r"\b(?:off|no|on|yes)\b", re.IGNORECASE)


def read(path: Path, given: str) -> dict[str, Any]:
    """The settings in a file, nested.

    Args:
        given: the path as the user wrote it, for messages.

    Raises:
        BadInput: the file cannot be read, or does not hold settings.
    """
    place = f"--config = {given}"
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(small_yaml.LONGEST + 1)
        settings = small_yaml.load(with_words(text), get_yaml_default_loader())
    except OSError as error:
        raise BadInput(f"{place}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{place}: is not UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{place}: {small_yaml.reason(error)}") from None
    if not isinstance(settings, dict) or not settings:
        raise BadInput(f"{place}: must hold settings, as in `clients: 100`")
    try:
        settings = nested(settings)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from None
    if "help" in settings:
        raise BadInput(f"{place}: help is no setting; it is an option of the command line")
    for group in GROUPS.keys() & settings:
        if not isinstance(settings[group], (dict, str, type(None))):
            raise BadInput(f"--{group} = {shown(settings[group])}: must be options, or a YAML file of them")
    return settings


def nested(settings: Mapping[Any, Any], place: str = "") -> dict[str, Any]:
    """Settings in the nested form: `algorithm.mu` among the options of the class that `algorithm` names.

    The order of the settings does not matter.

    Args:
        place: what the settings are options of: `partition.over.`, or nothing for those of an experiment.

    Raises:
        BadInput: an option is given twice, or has no name.
    """
    for name in settings:
        if not isinstance(name, str) or not all(name.split(".")) or re.search(r"\s", name):
            raise BadInput(f"{place}{shown(name)}: must be the name of an option, as in `clients: 100`")
    made: dict[str, Any] = {}
    for name in by_depth(settings):
        *places, last = name.replace(".init_args.", ".").split(".")
        options = _options_at(made, places, f"{place}{name}")
        if last in options:
            raise BadInput(f"{place}{name}: is given twice")
        options[last] = _with_options(settings[name], f"{place}{name}.")
    return made


def by_depth(settings: Mapping[str, Any]) -> list[str]:
    """The names of settings: that of another file first, and a class before its own options."""
    return sorted(settings, key=lambda name: (name != "config", name.count("."), not name.endswith(".class_path")))


def _options_at(settings: dict[str, Any], places: Sequence[str], name: str) -> dict[str, Any]:
    """The options below a place in nested settings, to which the option `name` is added."""
    for place in places:
        there = settings.setdefault(place, {})
        if isinstance(there, str) and place not in (*GROUPS, *INNER_GROUPS):
            there = settings[place] = {"class_path": there}
        if not isinstance(there, dict):
            raise BadInput(f"{place} = {shown(there)}: must hold options, because {name} is given, too")
        has_class = "class_path" in there or "init_args" in there
        settings = there.setdefault("init_args", {}) if has_class else there
    return settings


def _with_options(value: Any, place: str) -> Any:
    """A value whose options are in the nested form. The keys of other mappings are no options."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(options := value.get("init_args"), Mapping):
        return {**value, "init_args": nested(options, place)}
    is_group = place.count(".") == 1 and "class_path" not in value
    return nested(value, place) if is_group else dict(value)


def with_words(text: str) -> str:
    """The text of YAML with words such as off in quotes, because YAML 1.1 reads them as false.

    A word that is the whole text is left alone: jsonargparse reads it for options that are true or false.
    """
    if not WORD.search(text):
        return text
    small_yaml.check(text)
    for start, end in sorted(_words(yaml.compose(text, yaml.SafeLoader)), reverse=True):
        text = f"{text[:start]}'{text[start:end]}'{text[end:]}"
    return text


def _words(node: yaml.Node | None) -> Iterator[tuple[int, int]]:
    """The positions of such words in the text of a node."""
    if isinstance(node, yaml.CollectionNode):
        inside = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        for child in inside:
            if isinstance(child, yaml.ScalarNode) and child.style is None and WORD.fullmatch(child.value):
                yield child.start_mark.index, child.end_mark.index
            yield from _words(child)
