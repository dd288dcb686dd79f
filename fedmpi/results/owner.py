"""The process that owns an output or a lock, so that other processes and nodes can tell whether it still runs."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

#: Longest time between two signs of life of a process, in seconds. It equals the shortest `write_interval` of a
#: results file. A process that cannot be looked up from here is considered gone after SILENCE seconds without a sign.
BEAT = 60.0
SILENCE = 10 * BEAT


@dataclass(frozen=True)
class Owner:
    """A process that owns an output or a lock.

    Attributes:
        host, boot, namespace: the node's name, the identifier of its last boot, and the process's PID namespace.
        pid: the process number, which is unique at any one time within the three above.
        start: start time of the process, in ticks of the kernel's clock; empty if unknown.
        since: time since when the process has been the owner, ISO 8601.
        job, restarts: number of the Slurm job, and how often it has been requeued; empty and 0 without Slurm.
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
        """The owner that stands for this process."""
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
        """Read an owner from its `text`; if the text is damaged, all fields are unknown."""
        unknown = cls()
        try:
            owner = cls(**json.loads(text))
        except (TypeError, ValueError):
            return unknown
        alike = all(type(value) is type(getattr(unknown, name)) for name, value in vars(owner).items())
        return owner if alike and 0 <= owner.pid < 1 << 31 else unknown

    @property
    def text(self) -> str:
        """The owner as JSON."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job} since {self.since}"

    @property
    def is_near(self) -> bool:
        """Whether the process can be looked up from here: same node, same boot, same PID namespace."""
        here = Owner.here()
        return (self.host, self.boot, self.namespace) == (here.host, here.boot, here.namespace)

    def is_gone(self, silence: float, longest: float = SILENCE) -> bool:
        """Whether the process has ended, as far as this process can know.

        Args:
            silence: seconds since the last sign of life.
            longest: seconds of silence after which a process that cannot be looked up is considered gone.
        """
        here = Owner.here()
        if self.is_near:
            return not self._runs()
        if self.job and self.job == here.job and self.restarts < here.restarts:
            return True  # Slurm requeues a job only after its earlier processes have ended
        return silence >= longest

    def _runs(self) -> bool:
        """Whether the process still runs on this node. A later process may have the same number."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it exists, but belongs to another user
            pass
        return not self.start or _start(self.pid) in (self.start, "")


def _start(pid: int) -> str:
    """The start time of a process, in ticks of the kernel's clock; empty if unknown, `ended` for a zombie process."""
    if _link("/proc/self") != str(os.getpid()):  # no /proc, or /proc of another PID namespace
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
