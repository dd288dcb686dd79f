"""Errors that a user can correct. They are one line: the option, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: The message if mpi4py finds no MPI library, with the reason.
NO_MPI = "no MPI library found ({}): load your cluster's MPI module, or pip install 'fedmpi[mpich]'"
#: What a user can do if training diverges.
REMEDY = "lower --local.lr, or set --local.clip_norm"


class Diverged(ArithmeticError):
    """Client updates are not finite: training has diverged, and a mean would be meaningless."""


class BadInput(ValueError):
    """The user's input is refused; the command ends with this line and exit status 2.

    Args:
        message: what is wrong and what is allowed, without the option's name if `option` is given.
        option: name of the constructor's argument. The command line adds the component, so that `mu` of an algorithm
            is shown as `--algorithm.mu`.

    Attributes:
        agreed: whether every rank of the job raises it (`World.agreed`). If only some ranks raise it, it is a failure
            of the job like any other error.
    """

    agreed = False

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(f"{option} {message}" if option else message)
        self.message = message
        self.option = option


def require(condition: bool, option: str, value: object, allowed: str) -> None:
    """Raise `BadInput` unless `condition` holds: `require(mu >= 0, "mu", mu, "at least 0")`."""
    if not condition:
        text = str(value)
        raise BadInput(f"= {text if len(text) <= 80 else f'{text[:60]}...'}: must be {allowed}", option)


def named(component: object) -> str:
    """The name of a component's class on the command line: its import path, unless it is one of fedmpi's classes."""
    cls = type(component)
    return cls.__name__ if cls.__module__.startswith("fedmpi.") else f"{cls.__module__}.{cls.__qualname__}"


@contextmanager
def option_of(place: str) -> Iterator[None]:
    """Complete options in bad input: within `option_of("partition")`, `classes` becomes --partition.classes."""
    try:
        yield
    except BadInput as error:
        if error.option is None or error.option.startswith("--"):
            raise
        raise BadInput(error.message, f"--{place}.{error.option}") from None
