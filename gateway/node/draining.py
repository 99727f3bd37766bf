"""Close a node's sessions evenly over a time, so that their browsers do not come back all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from ..core.session import Session
from ..core.timer_wheel import TimerWheel
from ..messages import CloseCode

DRAIN_STEP: Final = 0.05
"""Seconds between two batches of sessions that are closed."""

CLOSES_PER_TURN: Final = 500
"""Sessions closed before others get the loop. A worker that closed 100,000 at once would count as hung."""


async def close_sessions(
    sessions: list[Session],
    seconds: float,
    clock: Callable[[], float],
    unfinished: Callable[[], int],
    close_timeout: float,
) -> None:
    """Close `sessions` over `seconds`, then wait until none is `unfinished`, for `close_timeout` at most."""
    total, start = len(sessions), clock()
    while sessions:
        elapsed = clock() - start
        keep = int(total * (1 - elapsed / seconds)) if elapsed < seconds else 0
        await each_in_turns(
            sessions[keep:], lambda session: session.close(CloseCode.SERVICE_RESTART, "service restart")
        )
        del sessions[keep:]
        if sessions:
            await asyncio.sleep(DRAIN_STEP)
    end = clock() + close_timeout + 2 * TimerWheel.TICK
    # A client that polls learns of the close by its next poll, milliseconds later.
    while unfinished() and clock() < end:  # noqa: ASYNC110 - sessions have nobody else to tell of their end
        await asyncio.sleep(DRAIN_STEP)


async def each_in_turns(sessions: Sequence[Session], do: Callable[[Session], None]) -> None:
    """Call `do` with each session, and let others have the loop in between."""
    for count, session in enumerate(sessions, 1):
        do(session)
        if not count % CLOSES_PER_TURN:
            await asyncio.sleep(0)
