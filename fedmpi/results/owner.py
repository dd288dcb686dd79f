"""The process that has something, as others on this node or another one can tell it, and whether it is gone."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

#: Seconds from one sign of life to the next, at most, like the shortest `write_interval` of a results file; and those
#: without one after which a process is taken to be gone that cannot be looked up from here.
BEAT = 60.0
SILENCE = 10 * BEAT


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        host, boot, namespace: its node, the node's start, and its namespace of process numbers: within these, `pid`
            stands for one process at a time.
        start: when that began, by the kernel's clock; empty where nobody knows.
        since: since when it has what it has, ISO 8601.
        job, restarts: Slurm's number of its job, and how often that has been requeued; empty and 0 without Slurm.
    """

    host: str = "an unknown node"
    boot: str = ""
    namespace: str = ""
    pid: int = 0
    start: str = ""
    since: str = "an unknown time"
    job: str = ""
    restarts: int = 0

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=socket.gethostname(),
            boot=_read("/proc/sys/kernel/random/boot_id"),
            namespace=_link("/proc/self/ns/pid"),
            pid=os.getpid(),
            start=_start(os.getpid()),
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(restarts) if restarts.isdecimal() else 0,
        )

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Of the text of an owner; of one that is damaged, one of which nothing is known."""
        unknown = cls()
        try:
            owner = cls(**json.loads(text))
        except (TypeError, ValueError):
            return unknown
        alike = all(type(value) is type(getattr(unknown, name)) for name, value in vars(owner).items())
        return owner if alike and 0 <= owner.pid < 1 << 31 else unknown

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job} since {self.since}"

    @property
    def is_near(self) -> bool:
        """Whether it can be looked up from here."""
        here = Owner.here()
        return (self.host, self.boot, self.namespace) == (here.host, here.boot, here.namespace)

    def is_gone(self, silence: float, longest: float = SILENCE) -> bool:
        """Whether it has ended, as far as that can be told from here.

        Args:
            silence: seconds since its last sign of life.
            longest: seconds of silence after which one that cannot be looked up is taken to be gone.
        """
        here = Owner.here()
        if self.is_near:
            return not self._runs()
        if self.job and self.job == here.job and self.restarts < here.restarts:
            return True  # Slurm requeues a job when what it ran before is over
        return silence >= longest

    def _runs(self) -> bool:
        """Whether a process of this node has the number, and is no later one."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's, but there
            pass
        return not self.start or _start(self.pid) in (self.start, "")


def _start(pid: int) -> str:
    """When a process began, by the kernel's clock; empty: nobody knows.

    Of one that has ended, and only waits to be asked how, it is no time.
    """
    if _link("/proc/self") != str(os.getpid()):  # there is no /proc, or it has the numbers of another namespace
        return ""
    words = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if not words else "ended" if words[0] in "ZX" else words[19]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
