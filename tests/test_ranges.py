"""Options of a class and their ranges: the same one-line message from Python and from the command line."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from fedmpi.algorithms import FedAvg, FedProx
from fedmpi.data import IID, Partition
from fedmpi.described import settings_of
from fedmpi.errors import BadInput, require
from fedmpi.experiment.command_line import HelpPrinted, parse
from fedmpi.options import null_for, options_of, with_options
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.ranges import (
    BelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    UpToOne,
    Widths,
    interval,
)

NAN, INF = math.nan, math.inf


@with_options
class Ranged(FedAvg):
    """A method with an option of every range.

    Args:
        natural: how many.
        maybe: or none.
    """

    positive: PositiveInt = 1
    natural: NonNegativeInt = 0
    above: PositiveFloat = 1.0
    least: NonNegativeFloat = 0.0
    past: BelowOne = 0.0
    share: UpToOne = 1.0
    chance: Probability = 0.5
    hidden: Widths = (3,)
    maybe: PositiveInt | None = None
    word: Annotated[int, interval("[1, inf)", "auto or at least 1")] | Literal["auto"] = "auto"
    endless: Annotated[float, interval("(0, inf]")] = 1.0
    between: Annotated[float, interval("[-1, 0.5)")] = 0.0


#: What each option takes, and what each of its other values is said to be.
TAKEN: dict[str, list[Any]] = {
    "positive": [1, 2, 10**12],
    "natural": [0, 3],
    "above": [1e-300, 2, 1e300],
    "least": [0.0, 0, 1e300],
    "past": [0.0, 0.999],
    "share": [1e-9, 1.0],
    "chance": [0.0, 1.0, 0.3],
    "hidden": [(1, 2), ()],
    "maybe": [None, 1],
    "word": ["auto", 1],
    "endless": [INF, 0.1],
    "between": [-1.0, 0.49],
}
REFUSED: dict[str, dict[str, list[Any]]] = {
    "positive": {"at least 1": [0, -1], "a whole number": [1.5, True, None, "x", NAN]},
    "natural": {"at least 0": [-1], "a whole number": ["x", None]},
    "above": {"above 0": [0.0, -1.0, NAN, INF, -INF], "a number": ["x", None, False]},
    "least": {"at least 0": [-1e-9, NAN, INF], "a number": ["x", None]},
    "past": {"at least 0 and below 1": [-0.1, 1.0, 2.0, NAN, INF]},
    "share": {"above 0 and at most 1": [0.0, 1.1, NAN, INF]},
    "chance": {"between 0 and 1": [-0.1, 1.1, NAN]},
    "hidden": {"widths of at least 1": [(3, 0)], "a list": [(1, "x"), 3, None]},
    "maybe": {"at least 1": [0]},
    "word": {"auto or at least 1": [0]},
    "endless": {"above 0": [0.0, NAN]},
    "between": {"at least -1 and below 0.5": [-1.1, 0.5, NAN]},
}
CASES = [
    (option, value, words) for option, all in REFUSED.items() for words, values in all.items() for value in values
]


def written(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(written, value))}]"
    special = {"None": "null", "True": "true", "False": "false", "nan": ".nan", "inf": ".inf", "-inf": "-.inf"}
    return special.get(str(value), str(value))


def from_command_line(option: str, value: Any) -> None:
    parse(["--algorithm", f"{__name__}.Ranged", f"--algorithm.{option}={written(value)}"])


@pytest.mark.parametrize("option", TAKEN)
def test_what_an_option_takes(option: str) -> None:
    for value in TAKEN[option]:
        assert getattr(Ranged(**{option: value}), option) == value
        from_command_line(option, value)


@pytest.mark.parametrize(("option", "value", "words"), CASES)
def test_what_an_option_refuses(option: str, value: Any, words: str) -> None:
    with pytest.raises(BadInput) as python:
        Ranged(**{option: value})
    assert str(python.value).startswith(f"{option} = ")
    assert str(python.value).endswith(f": must be {words}")
    with pytest.raises(BadInput) as line:
        from_command_line(option, value)
    if words in ("a list", "a number", "a whole number"):  # jsonargparse's word on types
        assert str(line.value).startswith(f"--algorithm.{option} = ")
        assert len(str(line.value).splitlines()) == 1
    else:
        assert str(line.value) == f"--algorithm.{python.value}"


def test_the_help_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Docs, types, ranges and defaults."""
    with pytest.raises(HelpPrinted):
        parse(["--algorithm.help", f"{__name__}.Ranged"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--algorithm.natural how many. (a whole number, at least 0; default: 0)" in text
    assert "--algorithm.maybe or none. (a whole number or null, at least 1; default: null)" in text


@with_options
class Base(Partition):
    over: Partition = null_for(IID)
    size: PositiveInt = 2

    def __post_init__(self) -> None:
        require(self.size != 13, "size", self.size, "another number")

    def split(self, labels: Any, clients: int, rng: Any) -> Any:
        return self.over.split(labels, clients, rng)


class Ordinary(Base):
    def __init__(self, half: float = 1, root: Path = Path("a")) -> None:
        super().__init__(size=int(2 * half))
        self.half, self.root = half, root


@with_options
class More(Base):
    size: PositiveInt = 3
    more: float = 1


def test_null_stands_for_something() -> None:
    """In the object, not in the settings of the run."""
    made = Base()
    assert isinstance(made.over, IID)
    assert options_of(made) == {"over": None, "size": 2}
    assert Base(over=made).over is made
    with pytest.raises(BadInput, match="over = 3: must be a Partition or null"):
        Base(over=3)  # type: ignore[arg-type]


def test_options_of_a_subclass() -> None:
    """Those of the base come first; an ordinary constructor has its own, and those of the base are checked."""
    assert list(inspect.signature(More).parameters) == ["over", "size", "more"]
    assert options_of(More(more=2)) == {"over": None, "size": 3, "more": 2.0}
    assert options_of(Ordinary(2)) == {"half": 2.0, "root": Path("a")}
    assert Ordinary(2).size == 4
    cases: dict[str, Callable[[], Base]] = {
        "size = 0: must be at least 1": lambda: Ordinary(0.0),
        "size = 13: must be another number": lambda: Ordinary(6.5),
        "half = x: must be a number": lambda: Ordinary("x"),  # type: ignore[arg-type]
    }
    for message, make in cases.items():
        with pytest.raises(BadInput, match=f"^{message}$"):
            make()


def test_copies() -> None:
    """They keep what they were given; each object is equal to itself alone, and may be a key."""
    made = FedProx(2, "zero")
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert settings_of(copied, "algorithm") == settings_of(made, "algorithm")
        assert (copied.mu, copied.anchor) == (2.0, "zero")
        assert copied != made
    assert len({made, Momentum(), Momentum()}) == 3
