"""When a worker counts as silent or hung, and how long to wait before it is replaced. Pure."""

from __future__ import annotations

from typing import Final

HEARTBEAT_INTERVAL: Final = 1.0
"""Seconds between two heartbeats of a worker, and between two checks of its parent."""

SILENT_AFTER: Final = 3
"""Checks without a heartbeat until other workers take a worker's new connections: longer than a full
collection or the resubscription of 100,000 ids blocks a loop."""

HUNG_AFTER: Final = 10
"""Checks without a heartbeat until a worker is killed. This is long: a worker that is only slow would lose
its sessions for nothing, and others serve its new connections by then."""

STABLE_SECONDS: Final = 60.0
"""Seconds after which a worker's end is answered with the first, short delay again."""

FIRST_RESTART_DELAY: Final = 0.1
MAX_RESTART_DELAY: Final = 30.0
"""Seconds between a worker's end and its replacement, doubling while none lives for `STABLE_SECONDS`."""


class Heartbeat:
    """Counts the checks since a worker's last heartbeat.

    It counts checks and not seconds: when the whole machine stood still, the worker has missed one at most.
    """

    __slots__ = ("missed",)

    def __init__(self) -> None:
        self.missed = 0

    def beat(self) -> None:
        """A heartbeat has come."""
        self.missed = 0

    def check(self) -> None:
        """Another `HEARTBEAT_INTERVAL` is over."""
        self.missed += 1

    @property
    def silent(self) -> bool:
        return self.missed > SILENT_AFTER

    @property
    def hung(self) -> bool:
        return self.missed > HUNG_AFTER
