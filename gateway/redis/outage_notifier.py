"""Tells everybody who waits for results that there are none, once an outage has lasted some seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

NOTIFY_AFTER: Final = 3.0
"""Seconds without Redis. A restart takes less, and pages that are notified all begin to poll."""


class OutageNotifier:
    """Watches one outage after another of a server, or of a part of a Cluster."""

    def __init__(self, notify: Callable[[], Iterator[None]]) -> None:
        """Each step of the iterator that `notify` returns tells some of those who wait."""
        self._notify = notify
        self._task: asyncio.Task[None] | None = None
        self.notified = False
        """Whether everybody has been told, or is being told: whoever comes now must be told at once."""

    def begin(self) -> None:
        """The outage begins; no effect if it has begun already."""
        if self._task is None:
            self._task = asyncio.create_task(self._notify_in_time(), name="outage notifier")

    def end(self) -> None:
        """The outage is over, or the node stops. Whoever has not been told by now need not be."""
        self.notified = False
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _notify_in_time(self) -> None:
        await asyncio.sleep(NOTIFY_AFTER)
        self.notified = True
        for _ in self._notify():
            await asyncio.sleep(0)
