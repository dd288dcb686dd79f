"""Arrays that user code receives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, which whoever receives them cannot change: NumPy raises an error that says so.

    Others use them later, and ranks that called other code would have other numbers.
    """
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
