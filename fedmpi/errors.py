"""What a user can put right, and how it is said: one line that names the option, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: What is said where mpi4py finds no MPI library, for this reason.
NO_MPI = "no MPI library found ({}): load your cluster's MPI module, or pip install 'fedmpi[mpich]'"
#: What a user can do where training diverges.
REMEDY = "lower --local.lr, or set --local.clip_norm"


class Diverged(ArithmeticError):
    """What clients would send is not finite: training has diverged, and a mean would be meaningless."""


class BadInput(ValueError):
    """Something the user gave cannot be honoured; the command ends with this one line and exit status 2.

    Args:
        message: what is wrong and what is allowed, without the option's name if `option` is given.
        option: name of the constructor argument at fault; the command line prefixes the component it belongs
            to, so that `mu` of an algorithm is shown as `--algorithm.mu`.

    Attributes:
        agreed: every rank of the job raises it (`World.agreed`). One that only some ranks raise is a failure of the
            job like any other error, for the others go on and wait.
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
    """How the command line names the class of a component: by its import path, unless it is fedmpi's own."""
    cls = type(component)
    return cls.__name__ if cls.__module__.startswith("fedmpi.") else f"{cls.__module__}.{cls.__qualname__}"


@contextmanager
def option_of(place: str) -> Iterator[None]:
    """Complete the option that bad input names: within `option_of("partition")`, `classes` is --partition.classes."""
    try:
        yield
    except BadInput as error:
        if error.option is None or error.option.startswith("--"):
            raise
        raise BadInput(error.message, f"--{place}.{error.option}") from None
