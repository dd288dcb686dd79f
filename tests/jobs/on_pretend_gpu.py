"""Run another program with a pretend GPU: python on_pretend_gpu.py PROGRAM ARGUMENTS..."""

import runpy
import sys

from tests.support.pretend_gpu import pretend_gpu

del sys.argv[0]
with pretend_gpu():
    runpy.run_path(sys.argv[0], run_name="__main__")
