"""The notice that results cannot be heard, given to whoever waits once that has lasted for some seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

NOTIFY_AFTER: Final = 3.0
"""Seconds without Redis: a restart passes within them, and pages that are given notice begin to poll, all of
them."""


class OutageNotifier:
    """A line to Redis that is down, as those hear of it who wait for what it would bring."""

    def __init__(self, give: Callable[[], Iterator[None]]) -> None:
        """`give` tells them, a share each time that it is asked for the next."""
        self._give = give
        self._giving: asyncio.Task[None] | None = None
        self.given = False
        """Whether they have been told, or are about to be: who comes now has to be told at once."""

    def begin(self) -> None:
        """The line is down; no harm if it was already."""
        if self._giving is None:
            self._giving = asyncio.create_task(self._give_in_time(), name="notice that push is degraded")

    def end(self) -> None:
        """The line is up, or nobody cares any more. Who has not been told by now need not be."""
        self.given = False
        if self._giving is not None:
            self._giving.cancel()
            self._giving = None

    async def _give_in_time(self) -> None:
        await asyncio.sleep(NOTIFY_AFTER)
        self.given = True
        for _ in self._give():
            await asyncio.sleep(0)
