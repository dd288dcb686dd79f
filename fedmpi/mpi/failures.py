"""Messages between ranks about failures, and the end of a job after them.

An error on any rank is sent to rank 0, which prints one report for all. If ranks do not arrive within the deadline
(`fedmpi.mpi.guard`), each of the others reports what it is doing, and rank 0 concludes which ranks are missing.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from mpi4py import MPI

from fedmpi import streams
from fedmpi.mpi.guard import Guard, end_soon

# Seconds that a failed rank waits for an answer of rank 0, and then for the end of the job.
PATIENCE_SECONDS = 3.0
ENDING_SECONDS = 600.0
# Seconds in which rank 0 collects the other ranks' messages after the deadline.
COLLECTING_SECONDS = 2.0
# Seconds for the launcher to forward printed text before the end of the job closes its pipes.
FORWARDING_SECONDS = 0.5
# Seconds between two looks for messages of a waiting rank.
LOOK_SECONDS = 5e-3
# Kinds of messages: the report of an error; a rank's note after the deadline.
REPORT, NOTE = 0, 1


class RemoteFailure(Exception):
    """Another rank failed; the message is its report, which rank 0 prints on its behalf."""


class Silence(Exception):
    """Other ranks have not arrived within the deadline."""


class Failures:
    """Messages about failures between the ranks of a job.

    Args:
        comm: all ranks of the job.
        hosts: the name of each rank's node.
        guard: of this process.
    """

    def __init__(self, comm: MPI.Intracomm, hosts: Sequence[str], guard: Guard) -> None:
        self._job = comm
        self._rank, self._size = comm.Get_rank(), comm.Get_size()
        # A process may run many experiments, and MPI knows a limited number of communicators.
        self._comm = comm.Dup() if self._size > 1 else comm
        self._hosts = hosts
        self._guard = guard
        self._notes: dict[int, bytes] = {}
        self._heard: set[int] = set()

    def raise_any(self) -> None:
        """Raise failures that were reported while this rank waits.

        Raises:
            Silence: the deadline has passed.
            RemoteFailure: at rank 0, another rank has failed.
        """
        if self._guard.exceeded:
            raise Silence
        # Called on every rank, because it also lets MPI make progress with messages of other ranks.
        if self._comm.Iprobe() and self._rank == 0:
            tag, text = self._hear()
            if tag == NOTE:
                self._guard.expire()
                raise Silence
            raise RemoteFailure(text)

    def announce_end(self) -> None:
        """Tell the other ranks that rank 0 is ending the job.

        Called before and after it writes results, which may take long.

        After the deadline, only ranks that have answered get it, because some MPI libraries end a process that
        sends to a rank that no longer exists.
        """
        ranks = self._heard if self._guard.exceeded else range(1, self._size)
        for rank in ranks if self._may_talk else ():
            self._tell(rank)

    def report(self, report: str) -> NoReturn:
        """Send a worker's report to rank 0, which prints it and ends the job. If rank 0 does not, do so here."""
        self._end_by_server(REPORT, report, unanswered=report)

    def report_silence(self, note: str, unanswered: str) -> NoReturn:
        """Send a worker's `note` to rank 0, which ends the job. If rank 0 does not, do so here.

        Args:
            unanswered: the text that is printed here in that case; empty: nothing.
        """
        self._end_by_server(NOTE, note, unanswered)

    def note(self, where: str, meeting: int) -> str:
        """The message of a rank to rank 0 after the deadline.

        Args:
            where: what the rank is doing.
            meeting: number of meetings (barriers) that it has reached.
        """
        stack = "".join(traceback.format_list(self._guard.stack()))
        return json.dumps({"meeting": meeting, "where": where, "stack": stack})

    def who_is_late(self, note: str) -> str:
        """At rank 0, after the deadline: the ranks that did not arrive, and what they are doing if they answer.

        If a rank's report of an error arrives now, that error was the cause, and the report is returned instead. Rank
        0 tells each rank that answers that it is ending the job.

        Args:
            note: of rank 0.
        """
        self._notes[0] = note.encode()
        began, told = time.monotonic(), set[int]()
        while self._may_talk and len(self._notes) < self._size and time.monotonic() - began < COLLECTING_SECONDS:
            if self._comm.Iprobe():
                tag, text = self._hear()
                if tag == REPORT:
                    return text
            else:
                time.sleep(LOOK_SECONDS)
            for rank in self._heard - told:
                self._tell(rank)
            told |= self._heard
        notes = {rank: json.loads(its) for rank, its in self._notes.items()}
        lines = [
            f"fedmpi: failed on rank 0 of {self._size}: {notes[0]['where']}: not all ranks arrived within the "
            f"deadline of {self._guard.exceeded:.0f} s (--deadline)"
        ]
        if silent := [rank for rank in range(self._size) if rank not in notes]:
            lines.append(f"{self._named(silent)}: no answer")
        busy = {rank: its for rank, its in notes.items() if its["stack"]}
        for rank, its in sorted(busy.items()):
            lines.append(f"{self._named([rank])}: did not arrive; {its['where']}, at\n{its['stack'].rstrip()}")
        if not silent and not busy:
            meetings = {rank: f"{its['where']}, barrier {its['meeting']}" for rank, its in sorted(notes.items())}
            for what in dict.fromkeys(meetings.values()):
                ranks = [rank for rank, its in meetings.items() if its == what]
                lines.append(f"{self._named(ranks)}: waiting at {what}, while others wait elsewhere")
        return "\n".join(lines)

    def abort(self, report: str = "", status: int = 1) -> NoReturn:
        """Print a report and end all ranks at once with this exit status; if MPI cannot, at least this process."""
        end_soon()
        if report:
            streams.say(report, "stderr")
        streams.flush()
        time.sleep(FORWARDING_SECONDS)
        self._job.Abort(status)
        os._exit(status)

    @property
    def _may_talk(self) -> bool:
        """Whether this thread may call MPI. The guard's thread may not if the library does not support threads."""
        is_main = threading.current_thread() is threading.main_thread()
        return is_main or MPI.Query_thread() == MPI.THREAD_MULTIPLE

    def _tell(self, rank: int) -> None:
        """Tell a rank again that rank 0 is ending the job."""
        self._comm.Isend(b"", dest=rank, tag=REPORT)

    def _hear(self) -> tuple[int, str]:
        """The tag and the text of the next message, which has arrived. Notes are stored."""
        status = MPI.Status()
        self._comm.Probe(status=status)
        text = bytearray(status.Get_count(MPI.BYTE))
        tag, source = status.Get_tag(), status.Get_source()
        self._comm.Recv(text, source=source, tag=tag)
        self._heard.add(source)
        if tag == NOTE:
            self._notes[source] = bytes(text)
        return tag, text.decode(errors="replace")

    def _end_by_server(self, tag: int, text: str, unanswered: str) -> NoReturn:
        """Tell rank 0, which ends the job. If it does not, print `unanswered` and end it here."""
        if self._may_talk:
            request = self._comm.Isend(text.encode(), dest=0, tag=tag)
            deadline, answers = time.monotonic() + PATIENCE_SECONDS, 0
            while time.monotonic() < deadline:
                request.Test()
                if self._comm.Iprobe(source=0):
                    self._comm.Recv(bytearray(), source=0)
                    answers += 1
                    deadline = time.monotonic() + (ENDING_SECONDS if answers == 1 else PATIENCE_SECONDS)
                time.sleep(LOOK_SECONDS)
            if answers > 1:
                self.abort()  # the launcher should have ended this process, but cannot
        self.abort(unanswered)

    def _named(self, ranks: Sequence[int]) -> str:
        """These ranks and their nodes, in words."""
        nodes: dict[str, list[int]] = {}
        for rank in ranks:
            nodes.setdefault(self._hosts[rank], []).append(rank)
        some = [
            f"rank{'s' if len(of_node) > 1 else ''} {', '.join(map(str, of_node))} on {host}"
            for host, of_node in nodes.items()
        ]
        return " and ".join(some)
