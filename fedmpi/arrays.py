"""Arrays that user code receives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, which the code that receives them cannot change: NumPy raises an error that says so.

    They are used again afterwards, also on ranks that do not call this code.
    """
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
