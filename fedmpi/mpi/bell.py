"""A bell for the ranks of a node: they sleep without CPU time until one of them rings, and wake at once.

On Linux it is a futex: a process can wait for a change of a word in shared memory (futex(2)). On other systems ranks
sleep for short times.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import time

import numpy as np
from numpy.typing import NDArray

# The number of the system call is the processor's own; newer ones share theirs.
_CALLS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_WAIT, _WAKE = 0, 1
_ALL = 2**31 - 1
_CALL = _CALLS.get(platform.machine(), 0) if sys.platform == "linux" else 0
_NAP = 1e-3


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Bell:
    """A word of shared memory that waiting ranks watch.

    Args:
        word: [1], shared by the ranks of a node.
    """

    def __init__(self, word: NDArray[np.int32]) -> None:
        self._word = word
        self._address = ctypes.c_void_p(word.ctypes.data)
        self._libc = ctypes.CDLL(None) if _CALL else None

    @property
    def last(self) -> int:
        """The last rung value. Read it before checking whether there is still something to wait for."""
        return int(self._word[0])

    def ring(self, value: int) -> None:
        """Wake all sleeping ranks; `value` must differ from recently rung values."""
        self._word[0] = value & 0x7FFFFFFF
        if self._libc is not None:
            self._libc.syscall(ctypes.c_long(_CALL), self._address, _WAKE, _ALL, None, None, 0)

    def sleep(self, last: int, seconds: float) -> None:
        """Sleep until a rank rings (unless one has since `last` was read), or until the time is over."""
        if self._libc is None:
            time.sleep(min(seconds, _NAP))
            return
        limit = _TimeSpec(int(seconds), int(seconds % 1 * 1e9))
        self._libc.syscall(ctypes.c_long(_CALL), self._address, _WAIT, last, ctypes.byref(limit), None, 0)
