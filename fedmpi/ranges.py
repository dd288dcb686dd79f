"""Which values an option may have, beside its type, as a part of that type: `mu: NonNegativeFloat = 0.01`.

A type with a range is an `Annotated` one. Those that several classes need have a name here; any other is written
where it is needed, as in `trim: Annotated[float, interval("[0, 0.5)")] = 0.2`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any


@dataclass(frozen=True)
class Allowed:
    """What holds of the values that an option may have, and how a message says it: "must be" and these words."""

    holds: Callable[[Any], bool]
    words: str


def interval(text: str, words: str = "") -> Allowed:
    """The numbers of an interval, as mathematicians write it; no interval holds NaN.

    Args:
        text: such as "[0, 1)", from 0 to below 1. A round bracket leaves its end out: "(0, inf)" are the finite
            numbers above 0, and "(0, inf]" those and infinity.
        words: how a message says it; by default "at least 0 and below 1".
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
#: A share of what is kept of the past, of which something has to give way.
BelowOne = Annotated[float, interval("[0, 1)")]
#: A share that is not nothing, or a factor by which something falls from round to round.
UpToOne = Annotated[float, interval("(0, 1]")]
Probability = Annotated[float, interval("[0, 1]", "between 0 and 1")]
#: How wide hidden layers are.
are_widths = Allowed(lambda widths: all(each >= 1 for each in widths), "widths of at least 1")
Widths = Annotated[tuple[int, ...], are_widths]
