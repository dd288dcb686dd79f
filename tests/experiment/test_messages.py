"""jsonargparse's messages in one line: each kind, as jsonargparse itself says it."""

from __future__ import annotations

from argparse import ArgumentError

import pytest

from fedmpi.experiment.command_line import make_parser
from fedmpi.experiment.messages import failed_import, in_one_line

#: Kind -> the arguments, words of what jsonargparse says of them, and our line or its beginning.
KINDS: dict[str, tuple[str, str, str]] = {
    "no such option": (
        "--clent=3",
        "unrecognized arguments: --clent=3",
        "--clent: no such option, did you mean --clients or --dataset.length (Sentiment140, TextTable,"
        " TweetCharacters)?",
    ),
    "a word on its own": (
        "clients",
        "unrecognized arguments: clients",
        "clients: belongs to no option, did you mean --clients?",
    ),
    "an option without its value": (
        "--seed 3 --clients",
        "argument --clients: expected one argument",
        "--clients: needs a value",
    ),
    "a class's option without its value": (
        "--algorithm FedProx --algorithm.mu",
        "argument --algorithm: expected one argument",
        "--algorithm.mu: needs a value",
    ),
    "no file of options": (
        "--local no.yaml",
        "Unable to load config 'no.yaml'",
        "--local = no.yaml: must be options, or a YAML file of them",
    ),
    "no such class": (
        "--algorithm FedProks",
        "Expected a dot import path string: FedProks",
        "--algorithm = FedProks: no such name, did you mean FedProx",
    ),
    "a class without a body": (
        "--model Model",
        "Expected an instantiatable class, but is abstract",
        "--model = Model: no such name; known are ",
    ),
    "a class of one's own that lacks a method": (
        "--model tests.jobs.networks.Unfinished",
        "Expected an instantiatable class, but is abstract",
        "--model = tests.jobs.networks.Unfinished: lacks build, which each Model must have",
    ),
    "no such class inside another": (
        "--partition Permuted --partition.over Dirichlett",
        "Expected a dot import path string: Dirichlett",
        "--partition.over = Dirichlett: no such name, did you mean Dirichlet or DirichletPrior?; known are ",
    ),
    "help on no such class": (
        "--algorithm.help FedProks",
        "--algorithm.help: ",
        "--algorithm = FedProks: no such name, did you mean FedProx",
    ),
    "no import path": (
        "--algorithm my_classes.",
        "Unexpected import path format: my_classes.",
        "--algorithm = my_classes.: must be a name, or an import path such as my_package.my_module.MyClass",
    ),
    "a class of another kind": (
        "--algorithm collections.OrderedDict",
        "Import path does not correspond to a subclass of Algorithm",
        "--algorithm = collections.OrderedDict: must be a subclass of Algorithm",
    ),
    "no class at all": (
        "--algorithm=[3]",
        "Not a valid subclass of Algorithm",
        "--algorithm = [3]: must be the name of a class, a subclass of Algorithm",
    ),
    "no such option of a class": (
        "--algorithm FedProx --algorithm.nu 3",
        "Option 'nu' is not accepted",
        "--algorithm.nu: FedProx has no such option, it has mu, anchor",
    ),
    "no such option of a group": (
        '--local {"lrr":3}',
        "Group 'local' does not accept option 'lrr'",
        "--local.lrr: no such option, did you mean --local.lr?",
    ),
    "an option of a class beside its name": (
        '--algorithm {"class_path":"FedProx","mu":3}',
        "Option 'class_path'",
        "--algorithm: options of a class must be under init_args, not next to class_path",
    ),
    "a class's option that has no default": (
        "--sampler FixedList",
        "arguments are required: file",
        "--sampler.file: needs a value, fedmpi.policies.FixedList has no default",
    ),
    "another type": (
        "--clients many",
        "Expected a <class 'int'>. Got value: many",
        "--clients = many: must be a whole number",
    ),
    "another word": (
        "--device tpu",
        "Expected a typing.Literal['auto', 'cpu', 'cuda']. Got value: tpu",
        "--device = tpu: must be one of auto, cpu, cuda",
    ),
    "another type inside a class": (
        "--algorithm FedProx --algorithm.mu x",
        "Expected a <class 'float'>. Got value: x",
        "--algorithm.mu = x: must be a number",
    ),
    "none of several types": (
        "--deadline soon",
        "Subtypes: [<class 'float'>, typing.Literal['auto']]",
        "--deadline = soon: must be a number or auto",
    ),
    "no such module": (
        "--algorithm no_such_module.Mine",
        "Problem with given class_path 'no_such_module.Mine':",
        "--algorithm = no_such_module.Mine: No module named 'no_such_module'",
    ),
    "no such name in a module": (
        "--algorithm collections.Mine",
        "Problem with given class_path 'collections.Mine':",
        "--algorithm = collections.Mine: module 'collections' has no attribute 'Mine'",
    ),
    "an older path of fedmpi's to what is no more": (
        "--sampler fedmpi.scheduling.Unform",
        "Problem with given class_path 'fedmpi.scheduling.Unform':",
        "--sampler = fedmpi.scheduling.Unform: no such name, did you mean Uniform?; known are All, ",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_message(kind: str) -> None:
    line, words, expected = KINDS[kind]
    parser, arguments = make_parser(), line.split()
    with pytest.raises(ArgumentError) as caught:
        parser.parse_args(arguments)
    said = str(caught.value)
    assert words in said, "jsonargparse says it in other words: so must its reader in fedmpi.experiment.messages"
    told = in_one_line(said, parser, arguments)
    assert told == expected or (told.startswith(expected) and "known are " in told)


def test_what_no_reader_knows() -> None:
    """It is said as it is, on one line, behind the option."""
    parser = make_parser()
    assert in_one_line('Parser key "clients":\n  has the\n  hiccups', parser, []) == "--clients: has the hiccups"


def test_an_import_that_has_failed() -> None:
    """The line of the file at which it did, behind whatever jsonargparse raises of it."""
    code = compile("\nraise KeyError('first')", "own.py", "exec")
    with pytest.raises(KeyError) as caught:
        exec(code)
    error = ArgumentError(None, "something")
    error.__cause__ = caught.value
    assert failed_import(error) == "own.py, line 2: KeyError: first"
    assert failed_import(ValueError("no import")) is None
