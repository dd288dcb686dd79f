"""Freed memory stays with the process, for the next step of local training.

Every step allocates the same temporary tensors and frees them. By default, glibc's malloc returns freed memory to the
operating system when some of it lies together. Then the next step pays for page faults, and for pages that the system
fills with zeros. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform

# Freed memory beyond this is returned. It bounds what a process keeps in addition to what it uses.
KEPT_BYTES = 512 << 20
# Larger tensors are returned at once. (Some versions of glibc take no larger number.)
LARGE_BYTES = 32 << 20
# Numbers of these parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Whoever sets these has decided otherwise.
_SETTINGS = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"


def keep_freed_memory() -> bool:
    """Keep up to 512 MiB of freed memory in this process; returns whether the C library can.

    Nothing is changed if the environment has settings of malloc.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


def return_freed_memory() -> None:
    """Return all freed memory to the operating system once, for example that of a set-up, if the C library can."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
