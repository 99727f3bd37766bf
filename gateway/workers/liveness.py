"""When a worker counts as silent or hung, and how long to wait before it is replaced. Pure.

To kill a worker that is only slow costs its sessions, to leave one that hangs keeps its browsers waiting. So
the parent asks the kernel what the silent worker does:

    sleeps, or is stopped        It could send a heartbeat, and does not.         counts
    runs, and gets a processor   It has been in one piece of work all the while.  counts
    wants to run, and may not    The machine is overloaded.                       does not count
    waits for a disk             The machine lacks memory, or a disk hangs.       does not count
    is stopped by a debugger     Somebody looks at it.                            does not count

A worker is hung after `HUNG_AFTER` checks that count, or `GIVEN_UP_AFTER` checks of any kind. A check for
which the parent itself was late is none: the machine, or its clock, stood still.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HEARTBEAT_INTERVAL: Final = 0.5
"""Seconds between two heartbeats of a worker, and between two checks of its parent."""

SILENT_AFTER: Final = 3
"""Checks without a heartbeat until other workers take a worker's new connections."""

HUNG_AFTER: Final = 5
"""Checks that count until a worker is killed: 2 to 2.5 s after its last heartbeat. A full collection of ten
million objects takes as long; 100,000 sessions have a tenth of them."""

GIVEN_UP_AFTER: Final = 20
"""Checks until a worker is killed whatever the kernel says."""

MAX_LATE: Final = 0.5
"""Intervals by which a check may be late."""

STABLE_SECONDS: Final = 60.0
"""Seconds after which a worker's end is answered with the first, short delay again."""

FIRST_RESTART_DELAY: Final = 0.1
MAX_RESTART_DELAY: Final = 30.0
"""Seconds between a worker's end and its replacement, doubling while none lives for `STABLE_SECONDS`."""


class ProcessState(NamedTuple):
    """What the kernel says of a process at one moment."""

    states: str
    """The state of each thread, as in proc(5): R runs or wants to, S sleeps, D waits for a disk, T is
    stopped, t is stopped by a debugger."""
    cpu_seconds: float
    """Of all threads since their start."""


class Heartbeat:
    """Counts the checks since a worker's last heartbeat.

    It counts checks and not seconds: when the whole machine stood still, the worker has missed one at most.
    """

    __slots__ = ("_counted", "_cpu_seconds", "_started", "missed")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """The slot has a new worker. Until its first heartbeat, no check counts: it is being built."""
        self.missed = 0
        self._counted = 0
        self._cpu_seconds: float | None = None
        self._started = False

    def beat(self) -> None:
        """A heartbeat has come."""
        self.missed = 0
        self._counted = 0
        self._started = True

    def check(self, state: ProcessState | None, interval: float = HEARTBEAT_INTERVAL) -> None:
        """Another `interval` seconds are over; `state` is the worker's now, None if nobody knows."""
        self.missed += 1
        if self._started and state is not None and self._could_have(state, interval):
            self._counted += 1
        self._cpu_seconds = state.cpu_seconds if state is not None else None

    def _could_have(self, state: ProcessState, interval: float) -> bool:
        """Whether the worker could have sent a heartbeat since the last check."""
        if "D" in state.states or "t" in state.states:
            return False
        if "R" not in state.states:
            return True
        # A thread that runs may hold the interpreter's lock, which another one sleeps for.
        return self._cpu_seconds is not None and state.cpu_seconds - self._cpu_seconds >= interval / 2

    @property
    def silent(self) -> bool:
        return self.missed > SILENT_AFTER

    @property
    def hung(self) -> bool:
        return self._counted >= HUNG_AFTER or self.given_up

    @property
    def given_up(self) -> bool:
        """Silent for longer than a replacement takes."""
        return self.missed > GIVEN_UP_AFTER
