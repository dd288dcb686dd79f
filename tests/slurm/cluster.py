"""A Slurm of one node on this machine: munged, slurmctld and slurmd, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "setpriv")
#: Seconds until something that is to happen has happened.
PATIENCE = 120.0
LOST = subprocess.DEVNULL
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
FirstJobId={first_job}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8
NodeName=far[1-4] CPUs=64 Gres=gpu:4 State=FUTURE
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=far Nodes=far[1-4] MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty: there can."""
    if os.geteuid():
        return "a Slurm for tests is started by root"
    lacking = [name for name in NEEDED if not shutil.which(name)]
    return f"{', '.join(lacking)} missing: apt-get install slurm-wlm munge" if lacking else ""


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs.

    Attributes:
        environment: of commands that speak to it.
    """

    environment: dict[str, str]

    def ask(self, *command: str | Path) -> str:
        """Standard output of a command, however it went."""
        return subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=self.environment, timeout=PATIENCE
        ).stdout

    def call(self, *command: str | Path) -> str:
        """Standard output of a command that must go well."""
        result = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=self.environment, timeout=PATIENCE
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def about(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        text = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """Start a Slurm, and end it with all its jobs."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    configuration = folder / "slurm.conf"
    # MPICH calls a job's shared memory by the job's number: another than that of what was killed in an earlier Slurm.
    first_job = int(time.time()) % 60_000_000
    host = socket.gethostname()
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=ports, first_job=first_job))
    (folder / "gres.conf").write_text("NodeName=far[1-4] Name=gpu Count=4\n")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{name}" for option, name in names.items()]
    slurm = Slurm({**os.environ, "SLURM_CONF": str(configuration)})
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        # With --force in a folder that others may write, too.
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            # Whatever becomes of this process, they end with it.
            alone = ["setpriv", "--pdeathsig", "TERM", *command]
            daemons.append(subprocess.Popen(alone, env=slurm.environment, stdout=LOST, stderr=LOST))
        until(lambda: "idle" in slurm.ask("sinfo", "--noheader", "--format=%T"))
        yield slurm
        slurm.ask("scancel", "--user=root")
        until(lambda: not slurm.ask("squeue", "--noheader"))
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(PATIENCE)


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something to happen."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)
