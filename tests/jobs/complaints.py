"""Start experiments that cannot be, one after another in one MPI job: python complaints.py FOLDER.

Each line of FOLDER/lines is a name and the options. FOLDER/NAME-RANK.json: what that rank printed, and its status.
"""

import json
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from mpi4py import MPI

from fedmpi.__main__ import run

folder = Path(sys.argv[1])
for line in (folder / "lines").read_text().splitlines():
    name, *options = shlex.split(line)
    sys.argv = ["fedmpi", *options]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status, _ = run()
    seen = {"out": out.getvalue(), "err": err.getvalue(), "status": status}
    (folder / f"{name}-{MPI.COMM_WORLD.Get_rank()}.json").write_text(json.dumps(seen))
