"""When a worker counts as hung, and how long to wait before it is replaced. Pure: the time is an argument."""

from __future__ import annotations

from typing import Final

HEARTBEAT_INTERVAL: Final = 1.0
"""Seconds between two signs of life of a worker, and between two looks of its parent."""

SILENT_AFTER: Final = 3
"""Looks without a sign of life until others take a worker's new connections: longer than a full collection
or the subscribing anew of 100,000 ids keeps a loop."""

HUNG_AFTER: Final = 10
"""Looks without a sign of life until a worker is killed. A worker that is only slow would lose its sessions
for nothing, so this is long, and what cannot wait has been taken care of by then."""

STABLE_SECONDS: Final = 60.0
"""Seconds after which a life was no failure to start."""

FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 30.0
"""Seconds between a worker's end and its replacement, doubling while none lives for `STABLE_SECONDS`."""


class Heartbeat:
    """A worker's signs of life, as its parent counts them.

    It counts its own looks and not the time between: when the whole machine stood still, the worker has
    missed no more than one.
    """

    __slots__ = ("missed",)

    def __init__(self) -> None:
        self.missed = 0

    def beat(self) -> None:
        """A sign of life has come."""
        self.missed = 0

    def look(self) -> None:
        """Another `HEARTBEAT_INTERVAL` is over."""
        self.missed += 1

    @property
    def quiet(self) -> bool:
        return self.missed > SILENT_AFTER

    @property
    def hung(self) -> bool:
        return self.missed > HUNG_AFTER


class Backoff:
    """Pauses between the lives of a worker."""

    __slots__ = ("_failures",)

    def __init__(self) -> None:
        self._failures = 0

    def pause(self, lived: float) -> float:
        """Seconds to wait now that a life of so many seconds has ended."""
        self._failures = 0 if lived >= STABLE_SECONDS else self._failures + 1
        return float(min(LAST_PAUSE, FIRST_PAUSE * 2 ** max(0, self._failures - 1)))
