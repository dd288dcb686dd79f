"""Ranges of options, as parts of their types: `mu: NonNegativeFloat = 0.01`.

A type with a range is `Annotated`. Types that several classes need have a name here. Others are written where they
are needed, as in `trim: Annotated[float, interval("[0, 0.5)")] = 0.2`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any


@dataclass(frozen=True)
class Allowed:
    """A condition on values, and its words in a message, after "must be"."""

    holds: Callable[[Any], bool]
    words: str


def interval(text: str, words: str = "") -> Allowed:
    """The numbers of an interval in mathematical notation. NaN is in no interval.

    Args:
        text: for example "[0, 1)", from 0 to below 1. A round bracket excludes its end: "(0, inf)" are the finite
            numbers above 0, and "(0, inf]" includes infinity.
        words: words in a message; by default made from the interval, as "at least 0 and below 1".
    """
    low, high = map(float, text[1:-1].split(","))
    with_low, with_high = text[0] == "[", text[-1] == "]"
    above, below = f"{'at least' if with_low else 'above'} {low:g}", f"{'at most' if with_high else 'below'} {high:g}"

    def holds(value: float) -> bool:
        return (low <= value if with_low else low < value) and (value <= high if with_high else value < high)

    return Allowed(holds, words or (f"{above} and {below}" if high < inf else above))


PositiveInt = Annotated[int, interval("[1, inf)")]
NonNegativeInt = Annotated[int, interval("[0, inf)")]
PositiveFloat = Annotated[float, interval("(0, inf)")]
NonNegativeFloat = Annotated[float, interval("[0, inf)")]
#: A share that is kept of old values; it must be below 1.
BelowOne = Annotated[float, interval("[0, 1)")]
#: A share that is not 0, or a factor per round.
UpToOne = Annotated[float, interval("(0, 1]")]
Probability = Annotated[float, interval("[0, 1]", "between 0 and 1")]
#: Widths of hidden layers.
are_widths = Allowed(lambda widths: all(each >= 1 for each in widths), "widths of at least 1")
Widths = Annotated[tuple[int, ...], are_widths]
