"""Whether freed memory stays with the process: by the page faults of a program that frees and allocates."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from fedmpi.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    print(keep_freed_memory())
for step in range(30):
    if step == 10:
        before = faults()
    temporary = [np.ones(1 << 17) for _ in range(16)]  # 1 MiB each
    del temporary
print((faults() - before) // 20)
large = [np.ones(1 << 22) for _ in range(24)]  # 32 MiB each
del large
print(resident() >> 20)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def printed(how: str, **environment: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True, env=os.environ | environment
    ).stdout.split()


@glibc
def test_steps_do_not_fault_again() -> None:
    (plain, _), (done, kept, resident) = printed("leave"), printed("keep")
    assert done == "True"
    assert int(plain) > 100  # else there is nothing to save
    assert int(kept) < 0.02 * int(plain)
    assert int(resident) < 300  # large tensors were returned


@glibc
def test_settings_of_the_user_are_kept() -> None:
    done, kept, _ = printed("keep", MALLOC_TRIM_THRESHOLD_="65536")
    assert done == "False"
    assert int(kept) > 100
